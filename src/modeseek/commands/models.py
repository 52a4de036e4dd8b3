"""How a command finds the model that a word names."""

from pathlib import Path


def model_folder(name: str) -> str:
    """A run's folder stands for the model in it."""
    inside = Path(name) / "model"
    return str(inside) if inside.is_dir() else name


def context(model: str) -> int | None:
    """The tokens that a model reads at most, from its config alone."""
    from modeseek.policies.load import context_length

    return context_length(model)
