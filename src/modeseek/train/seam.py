"""The one seam between an objective and a model."""

from torch import nn

from modeseek.batch import Batch
from modeseek.objectives import Loss, Objective, call, may_read, reads

LIVE = frozenset({"logp", "value", "score", "entropy", "kl", "features"})  # what a model says, with a gradient


def evaluate(objective: Objective, model: nn.Module, batch: Batch) -> Loss:
    """The objective's loss on a batch.

    A model with an `evaluate` of its own is given the names to fetch and the objective to apply, and may apply it
    to whole prompts at a time.
    """
    wanted = frozenset(reads(objective) | may_read(objective)) & LIVE
    apply = lambda part, live: call(objective, part, live)
    fused = getattr(model, "evaluate", None)
    if fused is not None:
        return fused(batch, wanted, apply)
    for name in sorted(wanted):
        if not hasattr(model, name):
            raise ValueError(f"{type(objective).__name__} reads {name}, which a {type(model).__name__} cannot say")
    return apply(batch, {name: getattr(model, name)(batch) for name in sorted(wanted)})
