"""From a stage's name and options to the stage."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from modeseek import stages as stage_module
from modeseek.config import StageSpec
from modeseek.objectives.base import one_of
from modeseek.stages import Stage


def stage_names() -> list[str]:
    """The stages that a config can name."""
    return sorted(
        name
        for name, value in vars(stage_module).items()
        if callable(value)
        and getattr(value, "__module__", "").startswith(stage_module.__name__)
        and name.islower()
        and not name.startswith("_")
    )


def stage_of(spec: StageSpec, parts: Mapping[str, Any]) -> Stage:
    """A stage by name. Its parameters called policy, reference and reward are given to it; the others are options."""
    made = stage_class(spec.name)
    parameters = inspect.signature(made).parameters
    if list(parameters) == ["batch"]:
        if spec.options:
            raise ValueError(f"stages.{spec.name}: takes no options, found {', '.join(spec.options)}")
        return made
    options = {n: p for n, p in parameters.items() if n not in ("policy", "reference", "reward")}
    for key in spec.options:
        if key not in options:
            raise ValueError(f"stages.{spec.name}.{key}: no such option; there are {', '.join(options) or 'none'}")
    for key, parameter in options.items():
        if parameter.default is parameter.empty and key not in spec.options:
            raise ValueError(f"stages.{spec.name}.{key}: needed, as in --stages.{spec.name}.{key} 0.05")
    told = {
        key: _option(f"stages.{spec.name}.{key}", spec.options[key], options[key].annotation) for key in spec.options
    }
    return made(**{n: parts[n] for n in parameters if n in parts}, **told)


def _option(where: str, value: Any, kind: Any) -> Any:
    """A stage's option as its annotation asks for it; YAML reads 1e-3 as a text."""
    if get_origin(kind) is Literal:
        one_of(where, value, dict.fromkeys(get_args(kind)))
    elif kind in (int, float):
        try:
            number = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (kind is int and not number.is_integer()):
            raise ValueError(f"{where}: {value!r}, expected {'a whole' if kind is int else 'a'} number")
        return kind(number)
    return value


def stage_class(name: str) -> Any:
    if name not in stage_names():
        raise ValueError(f"stages: no stage {name!r}; there are {', '.join(stage_names())}")
    return getattr(stage_module, name)
