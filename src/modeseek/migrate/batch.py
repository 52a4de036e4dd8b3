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
