"""Reads a `results.json` back, so that a run can be looked at again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .bars import Verdict
from .report import Report
from .results import CaseResult, ContenderResult, Errors, Timing

T = TypeVar("T")


def load(path: Path) -> Report:
    """The report that `report.write_json` wrote. What an older run did not know stays at its default.

    Raises ValueError, naming the file, where it holds anything else.
    """
    try:
        content = json.loads(path.read_text())
        return _report(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a results.json of this benchmark: {error!r}") from error


def _report(content: Mapping[str, Any]) -> Report:
    known = _fields(Report, content)
    known["cases"] = [_case(case) for case in content["cases"]]
    known["verdicts"] = [_made(Verdict, verdict) for verdict in content.get("verdicts", ())]
    return Report(**known)


def _case(content: Mapping[str, Any]) -> CaseResult:
    known = _fields(CaseResult, content)
    known["shape"] = tuple(content["shape"])
    known["contenders"] = {n: _contender(c) for n, c in content["contenders"].items()}
    return CaseResult(**known)


def _contender(content: Mapping[str, Any]) -> ContenderResult:
    known = _fields(ContenderResult, content)
    if content.get("errors") is not None:
        known["errors"] = _made(Errors, content["errors"])
    for name in ("train", "forward", "train_default_malloc"):
        if content.get(name) is not None:
            taken = content[name]
            known[name] = Timing(tuple(taken["samples_ms"]), taken["calls_per_sample"])
    return ContenderResult(**known)


def _made(kind: type[T], content: Mapping[str, Any]) -> T:
    return kind(**_fields(kind, content))


def _fields(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in content.items() if name in names}
