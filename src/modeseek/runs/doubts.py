"""What a run's own rows say it wastes, each said once: prompts that teach nothing, answers that are all cut off."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modeseek.build import samples
from modeseek.config import Run

STEPS = 5  # logged steps over which the share of wasted prompts is taken
MOST = 0.5  # of the prompts drawn, wasted, from which it is said
FEWEST = 0.1  # of the answers, ended by themselves, up to which it is said


@dataclass
class Doubts:
    """Hears every row, and says what is doubtful when it has seen enough of it."""

    run: Run
    wasted: list[float] = field(default_factory=list)  # of each logged step, the share of its prompts
    cut: bool = False  # said already

    def __call__(self, row: Mapping[str, float]) -> Iterator[str]:
        if samples(self.run) and "loss" in row:
            dropped = row.get("prompts/dropped", 0.0) / self.run.prompts_per_round
            self.wasted.append(max(dropped, row.get("frac_reward_zero_std", 0.0)))
            share = sum(self.wasted) / len(self.wasted)
            if len(self.wasted) == STEPS and share >= MOST:
                yield (
                    f"{share:.0%} of the prompts of the first {STEPS} logged steps taught nothing: the rewards of "
                    "their samples tie; raise source.num_generations, or take a reward that tells samples apart"
                )
        finished = row.get("eval/completions/finished", 1.0)
        if not self.cut and finished <= FEWEST and (samples(self.run) or self.run.reward is not None):
            self.cut = True
            yield (
                f"{1 - finished:.0%} of the held-out answers are cut off at {self.run.max_completion_length} tokens: "
                "rewards and lengths are of pieces; raise max_completion_length, or teach it to end first (pref_ft)"
            )
