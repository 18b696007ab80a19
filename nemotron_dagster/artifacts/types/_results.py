"""Scores of an evaluation, and whether what a file gives as one is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.files import printable

#: Standard errors on each side of a value that hold 95 % of a normal distribution.
Z95 = 1.96
_AGAIN = "Run the evaluation again."


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Attributes:
        n: samples, None where the harness does not say.
        filter: what the answers went through before scoring (lm-evaluation-harness).
        chance: what blind guessing scores.
        group: a mean over tasks.
        baseline: value, stderr and n of an earlier run.
        difference: mean and stderr of the change since that run, over the samples that both scored.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    filter: str = ""
    chance: float | None = None
    higher_is_better: bool | None = None
    group: bool = False
    baseline: Mapping[str, Any] | None = None
    difference: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.metric, self.filter

    @property
    def nemo_metric(self) -> str:
        """The metric as NeMo Evaluator names it, its filter with it."""
        return self.metric if self.filter in ("", "none") else f"{self.metric}__{self.filter}"

    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval, as far as the standard error tells."""
        return None if self.stderr is None else (self.value - Z95 * self.stderr, self.value + Z95 * self.stderr)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one evaluation; ``baseline`` names the earlier run that scores are compared with."""

    scores: tuple[Score, ...]
    model: Mapping[str, Any] | str = ""
    backend: str = ""
    baseline: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = {f.name for f in fields(Score)}


def score(found: Any, where: str, counted: bool, problems: Problems) -> Score | None:
    """The score that a mapping holds; None where it is none, which is then among ``problems``.

    ``counted``: must the number of samples be there?
    """
    if not isinstance(found, Mapping):
        problems.add(f"{where}: a score is {printable(found, 40)}, not an object. {_AGAIN}")
        return None
    task, metric = found.get("task"), found.get("metric")
    if not isinstance(task, str) or not isinstance(metric, str) or not task or not metric:
        problems.add(f"{where}: a score names no task and metric. {_AGAIN}")
        return None
    where = f"{where}: {printable(task, 100)}/{printable(metric, 100)}"
    before = problems.count
    value, n, stderr = found.get("value"), found.get("n"), found.get("stderr")
    if not _finite(value):
        problems.add(f"{where} is {printable(value, 40)}, not a finite number. {_AGAIN}")
    if (n is not None or counted) and (type(n) is not int or n < 1):
        problems.add(f"{where} was scored on {printable(n, 40)} samples. Raise `limit` or check the task's data.")
    if stderr is not None and (not _finite(stderr) or stderr < 0):
        problems.add(f"{where} has the standard error {printable(stderr, 40)}, which is none. {_AGAIN}")
    for name, number in (("baseline", "value"), ("difference", "mean")):
        part = found.get(name)
        if part is not None and not (isinstance(part, Mapping) and _finite(part.get(number))):
            problems.add(f"{where}: its {name} has no finite {number}. Give another baseline and run again.")
    if problems.count > before:
        return None
    rest = {k: v for k, v in found.items() if k in _FIELDS and v is not None}
    for name, kind in (("filter", str), ("group", bool), ("higher_is_better", bool)):
        if not isinstance(rest.get(name), kind):
            rest.pop(name, None)
    if not _finite(rest.get("chance")):
        rest.pop("chance", None)
    for name, number in (("baseline", "value"), ("difference", "mean")):
        if name in rest:
            rest[name] = {k: rest[name][k] for k in (number, "stderr", "n") if _finite(rest[name].get(k))}
    return Score(**rest)


def same(a: float | None, b: float | None) -> bool:
    """Are two spellings of a number the same?"""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
