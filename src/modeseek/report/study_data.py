"""A study's directory as the page reads it: what was asked, what was found, and what is drawn. JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STUDY, VERDICTS, CURVES = "study.json", "verdicts.json", "curves.json"


@dataclass(frozen=True)
class StudyData:
    """The three files."""

    asked: Mapping[str, Any]
    found: Mapping[str, Any]
    drawn: Mapping[str, Any]


def is_study(path: str | Path) -> bool:
    """Whether `modeseek study` wrote this directory."""
    return (Path(path) / VERDICTS).is_file()


def read(path: str | Path) -> StudyData:
    """A study from its directory."""
    if not is_study(path):
        raise ValueError(f"{path} is not a study: it has no {VERDICTS}; name a directory that `modeseek study` wrote")
    return StudyData(*(json.loads((Path(path) / name).read_text()) for name in (STUDY, VERDICTS, CURVES)))
