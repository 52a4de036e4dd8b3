"""Batch arithmetic: devices x rows on each x accumulated steps are the prompts of one optimiser step."""

from modeseek.migrate.translation import Given, Said, Translation


def pairs(out: Translation, given: Given, *, micro: str, accumulation: str, devices: int) -> None:
    """`prompts_per_round` and `microbatch` from a batch per device."""
    rows, steps = given.number(micro, 1), given.number(accumulation, 1)
    whole = int(rows.value * steps.value * devices)
    on = f" x {devices} devices" if devices > 1 else ""
    out.set("prompts_per_round", Said(whole, f"{rows.origin} x {steps.origin}{on}"))
    if whole != int(rows.value):
        out.set("microbatch", Said(int(rows.value), rows.origin))


def epochs_or_steps(out: Translation, given: Given, epochs: str, steps: str = "max_steps") -> None:
    """`max_steps` where it is set, else whole epochs."""
    limit, times = given.take(steps), given.take(epochs)
    if limit is not None and float(limit.value) > 0:
        out.set("max_steps", limit, int)
    elif times is not None:
        whole = max(1, round(float(times.value)))
        out.set("num_train_epochs", Said(whole, times.origin))
        if whole != float(times.value):
            out.lose(times.origin, f"epochs are whole numbers here; written as {whole}")


def warmup(out: Translation, given: Given, ratio: str, steps: str) -> None:
    """Warm-up in steps, or as a share of the run."""
    share, count = given.take(ratio), given.take(steps)
    if count is not None and float(count.value) >= 1:
        out.set("warmup_steps", count, int)
        return
    share = count if count is not None and float(count.value) > 0 else share  # a fraction of steps is a share
    if share is not None and float(share.value):
        out.set("warmup_ratio", share, float)


def schedule(out: Translation, said: Said | None) -> None:
    """The learning rate's course."""
    if said is None:
        return
    known = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
    name = str(said.value)
    if name in known:
        out.set("schedule", Said(known[name], said.origin))
    else:
        out.set("schedule", Said("cosine" if "cosine" in name else "linear", said.origin))
        out.lose(said.origin, "no such schedule here; the nearest is written")


REFERENCE_CACHE = "runs/reference_cache"


def precomputed(out: Translation, said: Said | None) -> None:
    """The reference's log-probabilities of the data's responses, computed once: kept on disk here."""
    if said is None or not said.value or str(said.value).lower() == "false":
        return
    tree = out.tree()
    asked = any(stage == "refer" or (isinstance(stage, dict) and "refer" in stage) for stage in tree.get("stages", ()))
    if asked and (tree.get("source") or {}).get("type", "offline") != "on_policy":
        out.set(
            "reference_cache", Said(REFERENCE_CACHE, f"{said.origin}: kept there for every run with this reference")
        )
    else:
        out.unneeded.append(f"{said.origin}: {out.method} asks no reference about the data's responses")


EIGHT_BITS = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")


def optimiser(out: Translation, said: Said | None) -> None:
    """AdamW, its moments in 32 or in 8 bits."""
    if said is None:
        return
    name = str(said.value)
    if name in EIGHT_BITS:
        out.set("optim", Said("adamw_8bit", said.origin))
    elif name.startswith(("adamw", "paged_adamw")) and "8bit" not in name:
        out.set("optim", Said("adamw", said.origin))
    else:
        out.lose(said.origin, "AdamW is the optimiser here")


def often(out: Translation, key: str, said: Said | None) -> None:
    """`eval_steps`, `save_steps`: a number of steps; a share of the run has no equivalent and changes no result."""
    if said is None:
        return
    if float(said.value) >= 1 or not float(said.value):
        out.set(key, Said(int(float(said.value)), said.origin))
    elif float(said.value) > 0:
        out.unneeded.append(f"{said.origin}: a share of the run; write {key} in optimiser steps")


def lora(out: Translation, rank: Said | None, alpha: Said | None, targets: Said | None) -> None:
    """Adapters."""
    out.set("lora.r", rank, int)
    out.set("lora.alpha", alpha, int)
    if targets is None:
        return
    every = ("all", "all-linear", ["all"])
    named = targets.value if isinstance(targets.value, list) else str(targets.value).split(",")
    pattern = f".*({'|'.join(name.strip() for name in named)})"  # peft matches the whole name of a layer
    out.set("lora.target_modules", Said("all-linear" if targets.value in every else pattern, targets.origin))
