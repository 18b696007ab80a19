"""A profile under examination, and what is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.guardrail_facts import Facts
from nemotron_dagster.config.guardrail_rules import Rules
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.secrets import redact

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing wrong or doubtful. ``message`` ends with the fix; ``where`` is ``file:line:column``."""

    level: Level
    profile: str
    key: str
    message: str
    where: str = ""


@dataclass(frozen=True)
class Case:
    """A profile under examination: its settings as far as they are known, and what it is to run."""

    environment: Environment
    profile: str
    settings: dict[str, Any]
    unknown: frozenset[str]
    rules: Rules
    step: Step | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=lambda: Facts(None, None, None, None, None))

    def find(self, level: Level, key: str, message: str) -> Finding:
        where = self.environment.where(self.profile, *(key.split(".") if key else ()))
        return Finding(level, self.profile, key, redact(message), where)

    @property
    def executor(self) -> str:
        return str(self.settings.get("executor", ""))

    @property
    def needs(self) -> dict[str, Any]:
        return self.rules.of_step(self.step.id) if self.step else {}


def value(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def strings(value: Any) -> Iterator[str]:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in inner:
        yield from strings(item)
    if isinstance(value, str):
        yield value
