"""Rewards that a rule can say: how long, what it matches, which words, whether it parses, what a function returns.

Each is a frozen dataclass, called with one Reply. `scale` multiplies what it says (negative: a penalty). A response
that was cut off is scored as it stands, unless `unfinished` says what it gets instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, NoReturn

from modeseek.rewards.text import Reply


@dataclass(frozen=True)
class Length:
    """How long the response is, or how near a target it comes: -|length - target|."""

    unit: Literal["tokens", "characters", "words"] = "tokens"  # of the policy's tokenizer, the end token counted
    prefer: Literal["longer", "shorter", "target"] = "longer"
    target: int | None = None  # the length wanted, with prefer: target
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: scored as it stands

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)
        if self.prefer == "target" and self.target is None:
            raise ValueError("reward.target: not set, expected a length, because prefer is target")
        if self.prefer != "target" and self.target is not None:
            raise ValueError(f"reward.target: found {self.target} with prefer: {self.prefer}; write prefer: target")
        if self.target is not None and self.target < 0:
            raise ValueError(f"reward.target: found {self.target}, expected at least 0")

    def __call__(self, reply: Reply) -> float:
        length = {
            "tokens": reply.tokens,
            "characters": len(reply.response),
            "words": len(reply.response.split()),
        }[self.unit]
        if self.target is not None:
            return -self.scale * abs(length - self.target)
        return self.scale * (length if self.prefer == "longer" else -length)


@dataclass(frozen=True)
class Regex:
    """Whether a regular expression (Python's `re`) matches anywhere in the response, or how often."""

    pattern: str
    mode: Literal["match", "count"] = "match"  # 1 where it matches, or the number of matches
    most: int | None = None  # matches beyond this many do not count, with mode: count
    ignore_case: bool = False
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: scored as it stands

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)
        if self.most is not None and self.mode == "match":
            raise ValueError(
                f"reward.most: found {self.most} with mode: match, where it means nothing; write mode: count"
            )
        _at_least_one("most", self.most)
        try:
            _pattern(self.pattern, self.ignore_case)
        except re.error as error:
            raise ValueError(f"reward.pattern: {self.pattern!r} is not a regular expression: {error}") from error

    def __call__(self, reply: Reply) -> float:
        pattern = _pattern(self.pattern, self.ignore_case)
        if self.mode == "match":
            return self.scale * (pattern.search(reply.response) is not None)
        return self.scale * _count(pattern, reply.response, self.most)


@dataclass(frozen=True)
class Keyword:
    """How often any of these words stands in the response, up to a cap."""

    words: tuple[str, ...]
    most: int | None = 1  # occurrences beyond this many do not count; unset (null): no cap
    whole_words: bool = True  # "art" is not found in "party"
    ignore_case: bool = True
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: scored as it stands

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)
        _at_least_one("most", self.most)
        if not self.words or not all(self.words):
            raise ValueError(f"reward.words: found {list(self.words)}, expected one word or more, none of them empty")

    def __call__(self, reply: Reply) -> float:
        # The longest first, so that "not good" is found before "not".
        either = "|".join(re.escape(word) for word in sorted(self.words, key=len, reverse=True))
        whole = rf"(?<!\w)(?:{either})(?!\w)" if self.whole_words else either
        return self.scale * _count(_pattern(whole, self.ignore_case), reply.response, self.most)


@dataclass(frozen=True)
class JsonValid:
    """1 where the whole response is JSON (RFC 8259: no NaN, nothing before or behind it), else 0."""

    kind: Literal["any", "object", "array"] = "any"  # what must stand at the top
    keys: tuple[str, ...] = ()  # that the object must have, with kind: object
    fenced: bool = False  # a Markdown code fence around it is allowed
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: scored as it stands

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)
        if self.keys and self.kind != "object":
            raise ValueError(f"reward.keys: found {list(self.keys)} with kind: {self.kind}; write kind: object")

    def __call__(self, reply: Reply) -> float:
        text = reply.response.strip(" \t\r\n")
        fence = (
            re.fullmatch(r"```(?:json)?[ \t]*\n(.*?)\n?```", text, re.DOTALL | re.IGNORECASE) if self.fenced else None
        )
        try:
            value = _strict_json(fence[1] if fence else text)
        except (ValueError, RecursionError):  # a model may write ten thousand brackets
            return 0.0
        if self.kind == "array":
            return self.scale * isinstance(value, list)
        if self.kind == "object":
            return self.scale * (isinstance(value, dict) and set(self.keys) <= value.keys())
        return self.scale


@dataclass(frozen=True)
class Python:
    """A function of yours, called with (prompt, response, finished): two texts and a bool. It returns a number."""

    function: str  # package.module:function, or path/to/file.py:function
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: the function decides

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)

    def load(self) -> Callable[[str, str, bool], float]:
        """The function itself; a ValueError says what is wrong with the name or with what stands there."""
        return _load(self.function)

    def __call__(self, reply: Reply) -> float:
        function = self.load()
        try:
            said = function(reply.prompt, reply.response, reply.finished)
        except Exception as error:
            raise ValueError(
                f"reward.function: {self.function} raised {type(error).__name__}: {error}; the prompt was"
                f" {_brief(reply.prompt)}, the response {_brief(reply.response)}, finished {reply.finished}"
            ) from error
        try:
            if isinstance(said, str | bytes):  # float("3") would be a guess
                raise TypeError
            number = float(said)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"reward.function: {self.function} returned {_brief(said)}, expected a number") from None
        if not math.isfinite(number):
            raise ValueError(
                f"reward.function: {self.function} returned {number}, expected a finite number; the prompt was"
                f" {_brief(reply.prompt)}, the response {_brief(reply.response)}"
            )
        return self.scale * number


Rule = Length | Regex | Keyword | JsonValid | Python


@cache
def _load(name: str) -> Callable[[str, str, bool], float]:
    where, colon, function = name.rpartition(":")
    if not colon or not where or not function.isidentifier():
        raise ValueError(f"reward.function: found {name!r}, expected package.module:function or file.py:function")
    module = _from_file(where, name) if where.endswith(".py") else _from_path(where, name)
    if not hasattr(module, function):
        there = [n for n, x in vars(module).items() if inspect.isfunction(x) and not n.startswith("_")]
        raise ValueError(
            f"reward.function: {where} has no {function!r}; its functions are {', '.join(there) or 'none'}"
        )
    found: Callable[[str, str, bool], float] = getattr(module, function)
    if not callable(found):
        raise ValueError(f"reward.function: {name} is a {type(found).__name__}, expected a function")
    if inspect.iscoroutinefunction(found):
        raise ValueError(f"reward.function: {name} is async, expected a plain function")
    try:
        inspect.signature(found).bind("prompt", "response", True)
    except TypeError as error:
        raise ValueError(
            f"reward.function: {name} is called with (prompt, response, finished), which it does not take: {error}"
        ) from None
    except ValueError:  # some built-in callables tell no signature
        pass
    return found


def _from_file(where: str, name: str) -> ModuleType:
    path = Path(where).expanduser()
    if not path.is_file():
        raise ValueError(f"reward.function: there is no file {where} (looked for in {path.absolute().parent})")
    known = f"modeseek_reward_{path.stem}_{zlib.crc32(str(path.absolute()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[known]
        _failed(name, error)
    return module


def _from_path(where: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except Exception as error:
        _failed(name, error)


def _failed(name: str, error: Exception) -> NoReturn:
    raise ValueError(f"reward.function: importing {name} failed: {type(error).__name__}: {error}") from error


@cache
def _pattern(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if ignore_case else 0)


def _count(pattern: re.Pattern[str], text: str, most: int | None) -> int:
    found = 0
    for found, _ in enumerate(pattern.finditer(text), start=1):
        if found == most:
            break
    return found


def _strict_json(text: str) -> object:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse, parse_int=str, parse_float=str)  # 10 ** 5000 is JSON too


def check_scale(scale: float, unfinished: float | None) -> None:
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"reward.scale: found {scale}, expected a number other than 0")
    if unfinished is not None and not math.isfinite(unfinished):
        raise ValueError(f"reward.unfinished: found {unfinished}, expected a finite number")


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"reward.{name}: found {value}, expected at least 1")


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:60] + "..." + shown[-15:]
