"""One training run, from its config to a model directory and a record of how it went."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file

from modeseek import checkpoint
from modeseek.build import Parts, build, device_of, sampled_by, samples
from modeseek.config import Run, to_dict
from modeseek.diagnostics.states import refuse_blind, refuse_unknown
from modeseek.distributed import Served, Team
from modeseek.policies.sync import InStep
from modeseek.record import Record, read, vacant
from modeseek.rewards.model import RewardModel
from modeseek.runs.export import export
from modeseek.runs.held_out import device_in
from modeseek.runs.spread import spread
from modeseek.runs.watch import Watch, stopping_softly
from modeseek.selftest import self_test
from modeseek.train import NotFinite
from modeseek.train import run as run_loop


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
    refuse_unknown(config.stop_on)
    found = team.first(lambda: checkpoint.latest(folder / "checkpoints")) if resume else None
    if resume and found is None and (folder / "rows.jsonl").exists() is False:
        raise ValueError(f"resume: {folder} holds no run; leave --resume out to start one")
    if not resume:
        vacant(folder)
    with console.status("loading the model, tokenising the data"):
        parts = build(config, empty=team.sharded and not config.load_in_4bit)
    _refuse_blind(parts)
    if found is not None:
        _same_run(found, parts.run)
    parts = spread(parts, team)
    for line in parts.card["warnings"]:
        console.print(f"[yellow]note[/] {line}", highlight=False)
    if found is None and config.self_test:
        parts.card["self_test"] = _prove(parts)
    run, loop = parts.run, parts.loop
    if found is not None:
        checkpoint.restore(found, loop)
        console.print(f"resumed from step {loop.step} of {run.max_steps}")
    record = _record(parts, folder, resume)
    watch = Watch(parts, record, folder)
    try:
        with watch.bar(console), stopping_softly(watch):
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
    export(parts, record, folder, watch)
    return folder


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


def _refuse_blind(parts: Parts) -> None:
    """Refuse to end the run on what its rows will not show."""
    run, measured = parts.run, parts.held_out is not None and bool(len(parts.held_out)) and parts.run.eval_steps > 0
    refuse_blind(
        run.stop_on,
        pairs=parts.train.prompts(slice(0, 1)).response.shape[1] > 1,
        samples=bool(measured and run.eval_prompts and parts.reference is not None),
        score=run.gold_reward is not None,
        rewarded=samples(run) and any(stage.name == "score" for stage in run.stages),
    )


def _prove(parts: Parts) -> dict[str, float]:
    if isinstance(parts.policy, RewardModel):
        return {}  # it has neither a reference nor a sampler
    told = parts.train.prompts(torch.arange(min(4, len(parts.train)))).to(device_in(parts))
    found = self_test(
        parts.loop,
        parts.policy,
        parts.reference,
        told,
        ends=parts.policy.eos,
        samples=samples(parts.run) or bool(parts.run.eval_prompts),
    )
    drawn = sampled_by(parts.loop)
    return found | (drawn.prove(told.prompt, told.prompt_mask) if isinstance(drawn, InStep | Served) else {})


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
