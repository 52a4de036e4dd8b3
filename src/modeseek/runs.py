"""One training run, from its config to a model directory and a record of how it went."""

import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from modeseek import checkpoint
from modeseek.batch import Batch
from modeseek.build import Parts, build, samples
from modeseek.config import Run, to_dict
from modeseek.data.tokenise import Groups
from modeseek.estimate import Estimate, mean
from modeseek.evaluate import answer
from modeseek.objectives import BradleyTerry, pair_metrics
from modeseek.ops import seq
from modeseek.policies.hf import HFPolicy
from modeseek.record import Record, read
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
    console = console or Console(stderr=True)
    parts = build(config)
    run, loop, folder = parts.run, parts.loop, Path(config.output_dir)
    found = checkpoint.latest(folder / "checkpoints") if resume else None
    if resume and found is None and (folder / "rows.jsonl").exists() is False:
        raise ValueError(f"resume: {folder} holds no run; leave --resume out to start one")
    for line in parts.card["warnings"]:
        console.print(f"[yellow]note[/] {line}", highlight=False)
    if found is not None:
        _same_run(found, run)
        checkpoint.restore(found, loop)
        record = Record.resume(folder, loop.step, run.report_to)
        console.print(f"resumed from step {loop.step} of {run.max_steps}")
    else:
        if run.self_test:
            parts.card["self_test"] = _prove(parts)
        if resume:
            record = Record.resume(folder, 0, run.report_to)
        else:
            record = Record.start(folder, to_dict(run), parts.card, run.report_to)
    watch = Watch(parts, record, folder)
    try:
        with watch.bar(console), _stopping_softly(watch):
            if loop.step == 0 and run.eval_steps and watch.evaluated_at != 0:
                watch.evaluate()
            run_loop(loop, watch)
        if not watch.stopped and watch.evaluated_at != loop.step:
            watch.evaluate()
        watch.save()
    except NotFinite as error:
        path = folder / "not_finite.safetensors"
        save_file({k: v.contiguous() for k, v in error.batch.tensors().items()}, path)
        record.warn(f"{error}; the batch is in {path.name}")
        raise
    finally:
        record.close()
    if watch.stopped:
        console.print(f"stopped at step {loop.step}; go on with --resume")
        return folder
    _export(parts, record, folder, watch)
    return folder


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
    progress: Progress | None = None
    also: Callable[[Loop, Mapping[str, float]], bool | None] | None = None

    def __post_init__(self) -> None:
        self.best, self.best_path = _best_so_far(self.record.path, self.parts.run)
        steps = [row["step"] for row in read(self.record.path).rows if any(k.startswith("eval/") for k in row)]
        self.evaluated_at = steps[-1] if steps else -1  # a resumed run does not measure the same step again

    def __call__(self, loop: Loop, row: dict[str, float]) -> bool:
        run = self.parts.run
        if loop.step % run.logging_steps == 0 or loop.step == run.max_steps:
            self.record.row(row)
        self.last |= row
        if run.eval_steps and loop.step % run.eval_steps == 0:
            self.evaluate()
        if run.save_steps and loop.step % run.save_steps == 0:
            self.save()
        self._tick(loop)
        if self.stopped:
            self.save()
        return self.stopped

    def evaluate(self) -> None:
        """Measure on held-out pairs and prompts, and keep samples."""
        parts, step = self.parts, self.parts.loop.step
        self.evaluated_at = step
        row, texts = held_out(parts)
        if not row:
            return
        self.record.row({"step": step, **row})
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
            self.best_path = checkpoint.save(self.folder / "checkpoints", parts.loop, never_delete=None)
            self.record.card(best={"metric": metric, "value": self.best, "step": step})
            self.save()

    def save(self) -> None:
        """A checkpoint of now; older ones go, the best stays."""
        keep = self.parts.run.save_total_limit
        folder = self.folder / "checkpoints"
        checkpoint.save(folder, self.parts.loop, keep=keep, never_delete=self.best_path)
        checkpoint.prune(folder, keep, self.best_path)

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
        ]
        self.progress = Progress(*columns, console=console, transient=False)
        name, loop = self.parts.run.method or "train", self.parts.loop
        self.progress.add_task(name, total=self.parts.run.max_steps, completed=loop.step, numbers="", rate="")
        return self.progress

    def _tick(self, loop: Loop) -> None:
        if self.progress is not None:
            shown = "  ".join(f"{name} {self.last[name]:.3g}" for name in SHOWN if name in self.last)
            speed = self.progress.tasks[0].speed
            rate = f"{speed:.2g}/s" if speed else ""
            self.progress.update(self.progress.task_ids[0], completed=loop.step, numbers=shown, rate=rate)


@torch.no_grad()
def held_out(parts: Parts) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the policy does on held-out data: `eval/...` numbers, and samples beside the reference's."""
    data, run = parts.held_out, parts.run
    if data is None or not len(data):
        return {}, []
    row = _on_pairs(parts, data)
    if not run.eval_prompts:
        return row, []
    if isinstance(parts.policy, RewardModel):
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
        if isinstance(parts.policy, RewardModel):
            found = BradleyTerry()(parts.policy.score(batch)).metrics
        else:
            logp = parts.policy.logp(batch)
            ref = None if parts.reference is None else parts.reference.logp(batch)
            found = pair_metrics(logp, batch.mask, ref, beta)
        for name, values in found.items():
            sums.setdefault(name, []).extend(values.tolist())
    return {f"eval/{name}": sum(values) / len(values) for name, values in sums.items()}


def _on_prompts(parts: Parts, data: Groups, index: torch.Tensor) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Reward, KL, length of fresh answers to held-out prompts."""
    none = lambda batch: torch.zeros(batch.fresh.shape, device=batch.fresh.device)
    prompts = data.prompts(index)
    assert isinstance(parts.policy, HFPolicy)
    answers = answer(
        parts.policy, prompts, parts.reward or none, reference=parts.reference, batch_size=32, seed=parts.run.seed
    )
    column = lambda read: torch.cat([read(b).flatten() for b in answers]).tolist()
    numbers: dict[str, Estimate] = {
        "eval/completions/mean_length": mean(column(lambda b: b.mask.sum(-1).float())),
        "eval/completions/finished": mean(column(lambda b: b["finished"].float())),
    }
    if parts.reward is not None:
        numbers["eval/reward"] = mean(column(lambda b: b["reward"]))
    if parts.reference is not None:
        numbers["eval/kl"] = mean(column(lambda b: seq(b["old_logp"] - b["ref_logp"], b.mask)))
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


def _prove(parts: Parts) -> dict[str, float]:
    if isinstance(parts.policy, RewardModel):
        return {}  # it has neither a reference nor a sampler
    told = parts.train.prompts(torch.arange(min(4, len(parts.train)))).to(_device(parts))
    return self_test(
        parts.loop,
        parts.policy,
        parts.reference,
        told,
        ends=parts.policy.eos,
        samples=samples(parts.run) or bool(parts.run.eval_prompts),
    )


def _export(parts: Parts, record: Record, folder: Path, watch: Watch) -> None:
    """The model directory: the best checkpoint's weights where one was asked for, else the last."""
    if watch.best_path is not None:
        checkpoint.load_weights(checkpoint.weights(watch.best_path), parts.loop.trainable)
    target = folder / "model"
    draft = folder / "model.draft"
    shutil.rmtree(draft, ignore_errors=True)
    parts.policy.save(draft, parts.template.tokenizer)
    final = {name: value for name, value in watch.last.items() if name.startswith("eval/")}
    counts = getattr(parts.reward, "counts", None)
    if counts:
        record.card(reward_counts=dict(counts))
    record.card(final=final, steps=parts.loop.step, model_directory=str(target.name))
    (draft / "README.md").write_text(model_card(parts, final))
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


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
