"""The losses that peer_losses.py compares: what TRL's config says, and by which constants the two sides may differ."""

from dataclasses import dataclass, field
from typing import Any

TWICE = "a sum over the pair, where ours is its mean"
TOKENS = "the likelihood is a mean over the batch's chosen tokens, ours over each response"
LENGTH = 16  # max_completion_length


@dataclass(frozen=True)
class Case:
    """One loss. TRL's config goes to its trainer and through `import-config`; what follows is TRL's over ours."""

    trainer: str
    keys: dict[str, Any] = field(default_factory=dict)
    gradient: float | None = 1.0  # None: no constant, and `why` says what differs
    value: float | None = 1.0
    why: str = ""
    ours: dict[str, Any] = field(default_factory=dict)  # of the objective, which the importer does not write
    unsaid: tuple[str, ...] = ()  # keys that the importer would refuse
    moved: bool = True  # own samples are of an older policy, so that ratios differ from 1
    rewards: float = 1.0  # scale of the rewards of own samples
    swapped: bool = False  # policy and reference change places
    level: float | None = None  # instead of ours' zero or midpoint of log-ratios, in nats

    @property
    def name(self) -> str:
        told = ", ".join(f"{k}={_short(v)}" for k, v in self.keys.items() if k not in ("num_generations", "beta"))
        more = [name for name in ("swapped",) if getattr(self, name)]
        more += [] if self.moved else ["first step"]
        more += [f"{k}={_short(v)}" for k, v in self.ours.items()] + ([] if self.level is None else ["level 0"])
        return " ".join([self.trainer, told, *(f"[{x}]" for x in more)]).strip()


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def dpo(loss: str | list[str] = "sigmoid", **more: Any) -> dict[str, Any]:
    return {"loss_type": loss, "beta": 0.3} | more


PAIRS = [
    Case("dpo", dpo()),
    Case("dpo", dpo("hinge")),
    Case("dpo", dpo("ipo")),
    Case("dpo", dpo("exo_pair", label_smoothing=0.01)),
    Case("dpo", dpo("nca_pair")),
    Case("dpo", dpo("robust", label_smoothing=0.2)),
    Case("dpo", dpo("robust")),
    Case("dpo", dpo("bco_pair"), 2.0, 2.0, f"{TWICE}; with the midpoint at 0", level=0.0),
    Case("dpo", dpo("bco_pair"), None, None, "TRL has no midpoint, which is the paper's; ours runs"),
    Case("dpo", dpo("sppo_hard"), 2.0, 2.0, TWICE),
    Case("dpo", dpo("aot")),
    Case("dpo", dpo("aot", label_smoothing=0.1)),
    Case("dpo", dpo("aot_unpaired"), 1.0, 0.5, "ours counts a pair of ranks from both ends"),
    Case("dpo", dpo("apo_zero")),
    Case("dpo", dpo("apo_down")),
    Case("dpo", dpo("discopop", discopop_tau=0.07)),
    Case("dpo", dpo("sigmoid_norm", beta=5.0)),
    Case("dpo", dpo("sft")),
    Case("dpo", dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.5]), None, None, TOKENS),
    Case("dpo", dpo(["hinge", "sft"], loss_weights=[1.0, 0.5]), None, None, TOKENS),
    Case("dpo", dpo(label_smoothing=0.1), None, None, "TRL leaves label_smoothing unread in sigmoid"),
    Case("dpo", dpo(label_smoothing=0.1), ours={"label_smoothing": 0.0}),
    Case("dpo", dpo(f_divergence_type="forward_kl")),
    Case("dpo", dpo(f_divergence_type="js_divergence")),
    Case("dpo", dpo(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3)),
    Case("dpo", dpo(ld_alpha=0.5)),
    Case("dpo", dpo(ld_alpha=0.0)),
    Case("dpo", dpo(use_weighting=True), why="where no pair weighs more than 1, the most here and in WPO's code"),
    Case("dpo", dpo("ipo", use_weighting=True), why="where no pair weighs more than 1"),
    Case("cpo", {"beta": 0.3}, None, None, TOKENS),
    Case("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0}),
    Case("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0, "label_smoothing": 0.1}),
    Case("cpo", {"loss_type": "simpo", "beta": 2.0}, None, None, TOKENS),
    Case("cpo", {"loss_type": "hinge", "beta": 0.3, "cpo_alpha": 0.0}, 0.3, 0.3, "ours is in nats: over beta"),
    Case("cpo", {"loss_type": "hinge", "beta": 0.3}, None, None, TOKENS),
    Case("orpo", {"beta": 0.3}, None, None, f"{TOKENS}, and TRL's counts the prompt's tokens as well"),
]

SINGLE = [
    Case("kto", {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}),
    Case("kto", {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}, swapped=True),
    Case(
        "kto",
        {"beta": 0.3, "loss_type": "apo_zero_unpaired"},
        why="KTO with z0 at 0, which no config of ours says",
        unsaid=("loss_type",),
        level=0.0,
    ),
    Case("sft", {}),
    Case("reward", {}),
    Case("reward", {"center_rewards_coefficient": 0.1}),
    Case("reward", {}, why="a column margin", ours={"margin_weight": 1.0}),
]

OWN = [
    Case("online_dpo", {"beta": 0.3, "loss_type": "sigmoid"}),
    Case("online_dpo", {"beta": 0.3, "loss_type": "ipo"}),
    Case("rloo", {"beta": 0.05}, 1.0, None, "TRL's value is of ratios, ours of log-probabilities", moved=False),
    Case("rloo", {"beta": 0.05}, None, None, "TRL clips the response's ratio, ours takes a sample once"),
    Case("grpo", {"loss_type": "grpo", "beta": 0.04}, rewards=100.0),
    Case("grpo", {"loss_type": "grpo", "beta": 0.04}, None, None, "std + 1e-4 there, + 1e-6 here"),
    Case("grpo", {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, rewards=100.0),
    Case("grpo", {"loss_type": "bnpo", "beta": 0.04}, rewards=100.0),
    Case("grpo", {"loss_type": "dapo", "beta": 0.04, "epsilon_high": 0.28}, rewards=100.0),
    Case(
        "grpo",
        {"loss_type": "dr_grpo", "beta": 0.04, "scale_rewards": "none"},
        1 / LENGTH,
        1 / LENGTH,
        f"over max_completion_length, here {LENGTH}",
    ),
    Case("grpo", {"loss_type": "cispo", "epsilon_high": 1.1}, rewards=100.0),
    Case("grpo", {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05}, rewards=100.0),
    Case(
        "grpo",
        {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.05},
        None,
        None,
        "a response counts by its length there",
        rewards=100.0,
    ),
]

CASES = [*PAIRS, *SINGLE, *OWN]
NONE_HERE = {  # of TRL 1.16, and why it is not compared
    "cpo, loss_type=ipo": "no IPO without a reference; the importer refuses it",
    "cpo, alpha (AlphaPO)": "no such objective",
    "grpo, loss_type=sapo, vespo, luspo": "no such objectives; the importer refuses them",
    "grpo, delta": "no second limit of the ratio; the importer lists it as lost",
    "sft, loss_type=dft": "no such objective; the importer refuses it",
}
NONE_THERE = "BCO with its midpoint, XPO, Nash-MD, PPO with a critic"  # TRL 1.16 has no trainer of these
