"""One training run, from its config to a model directory and a record of how it went."""

import atexit
import contextlib
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from modeseek import checkpoint
from modeseek.batch import Batch
from modeseek.build import Parts, build, corrected, device_of, optimiser_of, sampled_by, samples, source_of, stage_of
from modeseek.config import Run, to_dict
from modeseek.data.tokenise import Groups
from modeseek.diagnostics import displacement
from modeseek.distributed import Team, shared
from modeseek.distributed.shard import full_state, saved_as, shard
from modeseek.estimate import Estimate, mean
from modeseek.evaluate import answer
from modeseek.objectives import BradleyTerry, may_read, pair_metrics, reads
from modeseek.ops import seq
from modeseek.policies.cache import Cached
from modeseek.policies.hf import HFPolicy
from modeseek.policies.sync import InStep
from modeseek.record import Record, read
from modeseek.rewards.assess import assess
from modeseek.rewards.model import RewardModel
from modeseek.selftest import self_test
from modeseek.train import Loop, NotFinite
from modeseek.train import run as run_loop

SHOWN = ("loss", "rewards/margins", "reward", "kl", "eval/reward", "eval/kl")


def train(config: Run, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train as the config says and return `output_dir`, which then holds the model, its card and the record.

    With `resume` the run goes on from its newest checkpoint, bit for bit on a CPU. Raises ValueError in the user's
    words before anything is spent, and NotFinite, with the batch saved, when a number is no longer finite.
    """
    cuda = device_of(config.device).startswith("cuda")
    with Team.start(config.parallel, cuda=cuda, hang_timeout=config.hang_timeout) as team:
        return _train(config, team, resume, console or Console(stderr=True, quiet=not team.leads))


def _train(config: Run, team: Team, resume: bool, console: Console) -> Path:
    folder = Path(config.output_dir)
    displacement.refuse_unknown(config.stop_on)
    parts = build(config)
    _refuse_blind(parts)
    found = team.first(lambda: checkpoint.latest(folder / "checkpoints")) if resume else None
    if resume and found is None and (folder / "rows.jsonl").exists() is False:
        raise ValueError(f"resume: {folder} holds no run; leave --resume out to start one")
    for line in parts.card["warnings"]:
        console.print(f"[yellow]note[/] {line}", highlight=False)
    if found is not None:
        _same_run(found, parts.run)
    elif config.self_test:
        parts.card["self_test"] = _prove(parts)
    parts = spread(parts, team)
    run, loop = parts.run, parts.loop
    if found is not None:
        checkpoint.restore(found, loop)
        console.print(f"resumed from step {loop.step} of {run.max_steps}")
    record = _record(parts, folder, resume)
    watch = Watch(parts, record, folder)
    try:
        with watch.bar(console), _stopping_softly(watch):
            if loop.step == 0 and run.eval_steps and watch.evaluated_at != 0:
                watch.evaluate()
            run_loop(loop, watch)
        if not watch.stopped and watch.evaluated_at != loop.step:
            watch.evaluate()
        watch.save()
        watch.saver.wait(loop)
    except NotFinite as error:
        path = record.path / "not_finite.safetensors"
        save_file({k: v.contiguous() for k, v in error.batch.tensors().items()}, path)
        record.warn(f"{error}; the batch is in {path.name}")
        raise
    finally:
        record.close()
    if watch.stopped:
        console.print(f"stopped at step {loop.step}; go on with --resume")
        return folder
    if watch.ended:
        console.print(f"ended at step {loop.step}: {watch.seen.verdict}", highlight=False, markup=False)
        console.print("what there is at this step is exported; go on with --resume --stop-on none", highlight=False)
    _export(parts, record, folder, watch)
    return folder


def spread(parts: Parts, team: Team) -> Parts:
    """The same parts over a team: weights in pieces where asked for, and what stages and sources ask shared out."""
    if team.size == 1 and not team.sharded:
        return parts
    run, policy, reference = parts.run, parts.policy, parts.reference
    if run.sampler:
        raise ValueError("sampler: a server is given weights by one process only; leave it out, or start one")
    refuse_sharded(run, policy, _device(parts).type) if team.sharded else team.agree(parts.loop.trainable.values())
    if team.sharded:
        shard(policy, team, bf16=run.bf16, offload=run.fsdp_offload)
        if reference is not None and reference.module is not policy:
            shard(reference.module, team, bf16=run.bf16, offload=run.fsdp_offload)
    asked = {"policy": policy, "reference": reference, "reward": parts.reward}
    given = {name: x if x is None else shared(x, team, run.microbatch) for name, x in asked.items()}
    loop = Loop(
        policy,
        run.objective,
        source_of(run, given["policy"], parts.train),
        [stage_of(spec, given) for spec in run.stages],
        run,
        [stage_of(spec, given) for spec in corrected(run)],
        optimiser_of(run, _device(parts).type),
        team,
    )
    card = parts.card | {"devices": {"processes": team.size, "weights": "in pieces" if team.sharded else "whole"}}
    if _device(parts).type == "cuda":
        unverified = "parallel: several CUDA devices are unverified: no one has run this path on them"
        card["warnings"] = [*card["warnings"], unverified]
    return replace(parts, loop=loop, card=card)


def refuse_sharded(run: Run, policy: HFPolicy | RewardModel, device: str) -> None:
    """What cannot be honoured where weights are in pieces, in the user's words."""
    if run.token_budget is not None:
        raise ValueError(
            "token_budget: fsdp needs as many passes on every rank; leave it out and write microbatch (prompts)"
        )
    if run.reference_cache:
        raise ValueError("reference_cache: fsdp needs as many passes on every rank; leave it out, or --parallel ddp")
    if run.load_in_4bit or run.optim != "adamw":
        raise ValueError("parallel: fsdp has not been run with 4-bit weights or 8-bit moments; write --parallel ddp")
    if run.fsdp_offload and device != "cuda":
        raise ValueError("fsdp_offload: the pieces are in host memory already; it needs CUDA devices")
    if any(spec.name == "moving_reference" for spec in run.before):
        raise ValueError("before.moving_reference: copies the policy, which fsdp keeps in pieces; write --parallel ddp")
    if "kl" in reads(run.objective) | may_read(run.objective) and not getattr(policy, "has_adapter", False):
        raise ValueError("objective: exact kl under fsdp is measured against LoRA's base only; write --lora.r 16")


def _record(parts: Parts, folder: Path, resume: bool) -> Record:
    """The run's record, which the leading rank writes; another rank's is thrown away."""
    run, loop = parts.run, parts.loop
    if not loop.team.leads:
        loop.team.wait("opening the record")
        aside = tempfile.mkdtemp(prefix="modeseek-")
        atexit.register(shutil.rmtree, aside, ignore_errors=True)
        return Record.start(aside, to_dict(run), parts.card)
    if resume:
        record = Record.resume(folder, loop.step, run.report_to)
    else:
        record = Record.start(folder, to_dict(run), parts.card, run.report_to)
    loop.team.wait("opening the record")
    return record


@dataclass
class Watch:
    """What happens after each optimiser step: rows, held-out evaluation, checkpoints, the progress bar."""

    parts: Parts
    record: Record
    folder: Path
    evaluated_at: int = -1
    stopped: bool = False
    best: float | None = None
    best_path: Path | None = None
    last: dict[str, float] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)  # each change of what the run is doing
    progress: Progress | None = None
    ended: bool = False  # by a state of stop_on

    def __post_init__(self) -> None:
        team = self.parts.loop.team
        self.saver = checkpoint.Saver(self.folder / "checkpoints", background=self.parts.run.background_saves)
        self.best, self.best_path = team.first(lambda: _best_so_far(self.folder, self.parts.run))
        rows = team.first(lambda: read(self.folder).rows)
        self.seen = displacement.Watch(stop_on=self.parts.run.stop_on, rows=[dict(row) for row in rows])
        steps = [row["step"] for row in rows if any(k.startswith("eval/") for k in row)]
        if team.pulse is not None:
            team.pulse.last_words = self._last_words
        self.evaluated_at = steps[-1] if steps else -1  # a resumed run does not measure the same step again

    def __call__(self, loop: Loop, row: dict[str, float]) -> bool:
        run = self.parts.run
        if loop.step % run.logging_steps == 0 or loop.step == run.max_steps:
            self._log(row)
        self.last |= row
        if run.eval_steps and loop.step % run.eval_steps == 0:
            self.evaluate()
        if run.save_steps and loop.step % run.save_steps == 0:
            self.save()
        self._tick(loop)
        self.stopped, self.ended = loop.team.any(self.stopped), loop.team.any(self.ended)
        if self.stopped:
            self.save()
        return self.stopped or self.ended

    def _log(self, row: dict[str, Any]) -> None:
        """Keep a row, and name what the run is doing; a change of state goes to the card, and a sick one is said."""
        self.record.row(row)
        before = self.seen.verdict
        if not self.ended:  # what ended the run stays its state, whatever its last evaluation shows
            self.ended = self.seen(self.parts.loop, row)
        now = self.seen.verdict
        if now is None or (before is not None and now.state == before.state and not self.ended):
            return
        self.states.append({"step": now.step, "state": now.state})
        self.record.card(state=displacement.told(now), states=self.states)
        if self.progress is not None and now.state in displacement.SICK:
            self.progress.console.print(f"step {now.step}: {now}", highlight=False, markup=False)

    def evaluate(self) -> None:
        """Measure on held-out pairs and prompts, and keep samples."""
        parts, step = self.parts, self.parts.loop.step
        self.evaluated_at = step
        row, texts = held_out(parts)
        if not row:
            return
        self._log({"step": step, **row})
        if texts:
            self.record.samples([{"step": step, **text} for text in texts])
        self.last |= row
        metric = parts.run.metric_for_best_model
        if not metric:
            return
        if metric not in row:
            raise ValueError(f"metric_for_best_model: {metric} is not measured; there are {', '.join(row)}")
        sign = 1 if parts.run.greater_is_better else -1
        if self.best is None or sign * row[metric] > sign * self.best:
            self.best = row[metric]
            self.best_path = self.saver.save(parts.loop)
            self.record.card(best={"metric": metric, "value": self.best, "step": step})
            self.save()

    def save(self) -> None:
        """A checkpoint of now; older ones go, the best stays."""
        self.saver.save(self.parts.loop, keep=self.parts.run.save_total_limit, never_delete=self.best_path)

    def _last_words(self, message: str) -> str:
        """Said by a process that answers, of one that does not."""
        Record(self.folder).warn(message)
        last = checkpoint.latest(self.folder / "checkpoints")
        return f"The newest checkpoint is {last.name}: go on with --resume" if last else "There is no checkpoint yet"

    def bar(self, console: Console) -> Progress:
        """The progress bar: steps, rate, time left, and the numbers to look at."""
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[state]}"),
        ]
        self.progress = Progress(*columns, console=console, transient=False)
        name, loop = self.parts.run.method or "train", self.parts.loop
        self.progress.add_task(name, total=self.parts.run.max_steps, completed=loop.step, numbers="", rate="", state="")
        return self.progress

    def _tick(self, loop: Loop) -> None:
        if self.progress is not None:
            shown = "  ".join(f"{name} {self.last[name]:.3g}" for name in SHOWN if name in self.last)
            speed = self.progress.tasks[0].speed
            rate = f"{speed:.2g}/s" if speed else ""
            state = self.seen.verdict.title if self.seen.verdict else ""
            self.progress.update(self.progress.task_ids[0], completed=loop.step, numbers=shown, rate=rate, state=state)


@torch.no_grad()
def held_out(parts: Parts) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the policy does on held-out data: `eval/...` numbers, and samples beside the reference's."""
    data, run = parts.held_out, parts.run
    if data is None or not len(data):
        return {}, []
    row = _on_pairs(parts, data)
    if isinstance(parts.policy, RewardModel):
        return row | (_assessed(parts, data) if row else {}), []
    if not run.eval_prompts:
        return row, []
    index = torch.arange(min(run.eval_prompts, len(data)))
    rows, texts = _on_prompts(parts, data, index)
    return row | rows, texts


def _on_pairs(parts: Parts, data: Groups) -> dict[str, float]:
    """Log-probabilities and margins of held-out pairs, for every method alike."""
    if not data.prompts(slice(0, 1)).response.shape[1] > 1:
        return {}
    sums: dict[str, list[float]] = {}
    beta = getattr(parts.run.objective, "beta", 1.0)
    for index in torch.arange(min(len(data), 256)).split(16):
        batch = data.prompts(index).to(_device(parts))
        batch = batch.prompts(batch.present[:, :2].all(-1))
        policy, reference = _asked(parts, parts.policy), _asked(parts, parts.reference)
        if isinstance(parts.policy, RewardModel):
            found = BradleyTerry()(policy.score(batch)).metrics
        else:
            logp = policy.logp(batch)
            ref = None if reference is None else reference.logp(batch)
            found = pair_metrics(logp, batch.mask, ref, beta)
        for name, values in found.items():
            sums.setdefault(name, []).extend(values.tolist())
    return {f"eval/{name}": sum(values) / len(values) for name, values in sums.items()}


def _assessed(parts: Parts, data: Groups) -> dict[str, float]:
    """Calibration, the pull of length and the accuracy by source of a reward model, on the pairs of `_on_pairs`."""
    scores, lengths, sources = [], [], []
    for index in torch.arange(min(len(data), 256)).split(16):
        batch = data.prompts(index).to(_device(parts))
        batch = batch.prompts(batch.present[:, :2].all(-1))
        scores += _asked(parts, parts.policy).score(batch)[:, :2].tolist()
        lengths += batch.mask.sum(-1)[:, :2].tolist()
        sources += [data.records[i].source for i in batch["row"].tolist()]
    if not scores:
        return {}
    found = assess(np.array(scores), np.array(lengths), sources)
    named = ("ece", "length_correlation", "margin_length_correlation", "longer_chosen", "longer_preferred")
    row = {f"eval/{name}": float(getattr(found, name)) for name in named}
    return row | {f"eval/accuracy/{name}": e.value for name, e in found.by_source.items() if len(found.by_source) > 1}


def _on_prompts(parts: Parts, data: Groups, index: torch.Tensor) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Reward, KL, length of fresh answers to held-out prompts."""
    none = lambda batch: torch.zeros(batch.fresh.shape, device=batch.fresh.device)
    prompts = data.prompts(index)
    assert isinstance(parts.policy, HFPolicy)
    policy, reference, reward = (_asked(parts, x) for x in (parts.policy, parts.reference, parts.reward))
    answers = answer(policy, prompts, reward or none, reference=reference, batch_size=32, seed=parts.run.seed)
    column = lambda read: torch.cat([read(b).flatten() for b in answers]).tolist()
    numbers: dict[str, Estimate] = {
        "eval/completions/mean_length": mean(column(lambda b: b.mask.sum(-1).float())),
        "eval/completions/finished": mean(column(lambda b: b["finished"].float())),
    }
    if parts.reward is not None:
        numbers["eval/reward"] = mean(column(lambda b: b["reward"]))
    if (gold := _asked(parts, parts.gold)) is not None:
        numbers["eval/gold_reward"] = mean(column(gold))
    if parts.reference is not None:
        numbers["eval/kl"] = mean(column(lambda b: seq(b["old_logp"] - b["ref_logp"], b.mask)))
        numbers["eval/surprise"] = mean(column(lambda b: -seq(b["ref_logp"], b.mask)))
    row = {name: e.value for name, e in numbers.items()}
    row |= {f"{name}/low": e.low for name, e in numbers.items() if name in ("eval/reward", "eval/kl")}
    row |= {f"{name}/high": e.high for name, e in numbers.items() if name in ("eval/reward", "eval/kl")}
    row["eval/n"] = len(index)
    return row, [_text(parts, b, p) for b in answers for p in range(len(b))][:8]


def _text(parts: Parts, batch: Batch, p: int) -> dict[str, Any]:
    decode = parts.template.decode
    sample = {
        "prompt": decode(batch.prompt[p][batch.prompt_mask[p]].tolist()),
        "response": decode(batch.response[p, 0][batch.mask[p, 0]].tolist()),
    }
    return sample | ({"reward": float(batch["reward"][p, 0])} if parts.reward is not None else {})


def _refuse_blind(parts: Parts) -> None:
    """Refuse to end the run on what its rows will not show."""
    run, measured = parts.run, parts.held_out is not None and bool(len(parts.held_out)) and parts.run.eval_steps > 0
    displacement.refuse_blind(
        run.stop_on,
        pairs=parts.train.prompts(slice(0, 1)).response.shape[1] > 1,
        samples=bool(measured and run.eval_prompts and parts.reference is not None),
        score=run.gold_reward is not None,
    )


def _prove(parts: Parts) -> dict[str, float]:
    if isinstance(parts.policy, RewardModel):
        return {}  # it has neither a reference nor a sampler
    told = parts.train.prompts(torch.arange(min(4, len(parts.train)))).to(_device(parts))
    found = self_test(
        parts.loop,
        parts.policy,
        parts.reference,
        told,
        ends=parts.policy.eos,
        samples=samples(parts.run) or bool(parts.run.eval_prompts),
    )
    drawn = sampled_by(parts.loop)
    return found | (drawn.prove(told.prompt, told.prompt_mask) if isinstance(drawn, InStep) else {})


def _export(parts: Parts, record: Record, folder: Path, watch: Watch) -> None:
    """The model directory: the best checkpoint's weights where one was asked for, else the last."""
    loop, team, model = parts.loop, parts.loop.team, parts.policy.model
    if watch.best_path is not None:
        checkpoint.load_weights(checkpoint.weights(watch.best_path, loop.trainable), loop.trainable)
    target = folder / "model"
    draft = folder / "model.draft"
    final = {name: value for name, value in watch.last.items() if name.startswith("eval/")}
    counts = _summed(team.hear(getattr(parts.reward, "counts", None)))
    state = full_state(model, team, trained_only=hasattr(model, "disable_adapter")) if team.sharded else None
    with team.busy("writing the model"):
        if team.leads:
            shutil.rmtree(draft, ignore_errors=True)
            with saved_as(model, state) if state is not None else contextlib.nullcontext():
                parts.policy.save(draft, parts.template.tokenizer)
            (draft / "README.md").write_text(model_card(parts, final))
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    if counts:
        record.card(reward_counts=counts)
    if isinstance(parts.reference, Cached):
        record.card(reference_cache=parts.reference.describe() | {"rows": _summed(team.hear(parts.reference.counts))})
    if watch.seen.verdict is not None:
        record.card(state=displacement.told(watch.seen.verdict))
    record.card(final=final, steps=loop.step, model_directory=str(target.name))
    team.wait("the model is written")


def _summed(counts: Sequence[Mapping[str, int] | None]) -> dict[str, int]:
    every = Counter[str]()
    for some in counts:
        every.update(some or {})
    return dict(every)


def model_card(parts: Parts, final: Mapping[str, float]) -> str:
    """What a stranger who finds the model needs to know."""
    card, run = parts.card, parts.run
    facts = {
        "Method": f"{run.method or card['objective']['name']}: `{card['equation']}`",
        "Objective": ", ".join(f"{k} {v}" for k, v in card["objective"].items() if k != "name") or "no options",
        "Initial model and reference": run.model,
        "Data": f"{card['data']} ({card['rows']['train']['kept']} of {card['rows']['train']['rows']} rows kept)",
        "Source of responses": ", ".join(f"{k} {v}" for k, v in card["source"].items()),
        "Dials": ", ".join(f"{k} {v}" for k, v in card["dials"].items()),
        "Learning rate": f"{run.learning_rate}, {run.schedule}, {parts.loop.step} steps",
        "Seed": run.seed,
    }
    results = [f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in final.items()]
    lines = [
        "---",
        "library_name: peft" if getattr(parts.policy, "has_adapter", False) else "library_name: transformers",
        "tags: [preference-fine-tuning, modeseek]",
        "---",
        "# " + Path(run.output_dir).name,
        "",
        *(f"- **{name}**: {value}" for name, value in facts.items()),
        "",
        f"Held-out results (KL in nats per response, to the initial model; {int(final.get('eval/n', 0))} prompts):",
        "",
        "| metric | value |",
        "|---|---|",
        *results,
        "",
    ]
    return "\n".join(lines)


def _same_run(path: Path, run: Run) -> None:
    """A resumed run must be the run that was stopped; only how long and where it is shown may differ."""
    free = {"max_steps", "output_dir", "report_to", "save_steps", "save_total_limit", "self_test", "logging_steps"}
    free |= {"sampler", "stop_on", "parallel", "fsdp_offload", "hang_timeout", "background_saves"}
    before, now = read(path.parent.parent).config, to_dict(run)
    for key in sorted(before.keys() | now.keys()):
        if key not in free and before.get(key) != _plain(now.get(key)):
            raise ValueError(
                f"resume: {key} was {before.get(key)!r} and is now {now.get(key)!r}; a resumed run keeps it"
            )


def _plain(value: Any) -> Any:
    return yaml.safe_load(yaml.safe_dump(value))


def _best_so_far(path: Path, run: Run) -> tuple[float | None, Path | None]:
    best = read(path).card.get("best")
    if not run.metric_for_best_model or not best:
        return None, None
    return best["value"], path / "checkpoints" / f"{checkpoint.PREFIX}{best['step']:08d}"


def _asked(parts: Parts, model: Any) -> Any:
    """Who is asked: the model, or all ranks together."""
    return None if model is None else shared(model, parts.loop.team, parts.run.microbatch)


def _device(parts: Parts) -> torch.device:
    return next(iter(parts.loop.trainable.values())).device


class _stopping_softly:
    """Ctrl-C ends after the step in flight, with a checkpoint; a second one ends at once."""

    def __init__(self, watch: Watch):
        self.watch, self.before = watch, None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        if self.watch.stopped:
            raise KeyboardInterrupt
        self.watch.stopped = True
