"""Locks: what must fit between a step and its inputs although the types do not say it.

Which locks a port has is declared in its step.toml; what each demands is a rule of ``lock_rules.py``. They are checked
before a job is submitted, again as Dagster asset checks, and by ``nemotron artifacts check``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemotron_dagster.artifacts import fingerprints
from nemotron_dagster.artifacts.localize import local_path
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest
from nemotron_dagster.catalog import Port, Step

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Result:
    """What one lock says of one port.

    Attributes:
        name: the lock.
        passed: False only where something is known to be wrong.
        severity: whether what is wrong (error) refuses the run.
        message: what was compared; where it does not fit, also the fix.
    """

    name: str
    port: str
    passed: bool
    severity: Severity
    message: str

    @property
    def refuses(self) -> bool:
        return not self.passed and self.severity == "error"


@dataclass(frozen=True)
class Subject:
    """What is known of an input.

    Attributes:
        name: what messages call it.
        tokenizers, templates: its fingerprints; the same thing may have been digested in more than one way.
        reported: what the payload that made it said of its work.
        inputs: of its manifest, where it has one.
    """

    name: str
    type: str
    path: str
    facts: Mapping[str, Any]
    reported: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: frozenset[str] = frozenset()
    templates: frozenset[str] = frozenset()
    content: str = ""
    inputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Case:
    """One lock of one port, with all that it may look at."""

    step: Step
    port: Port
    subject: Subject
    config: Mapping[str, Any]
    others: Mapping[str, Subject]


def subject_of(ref: ArtifactRef, facts: Mapping[str, Any] | None = None) -> Subject:
    """A published artifact; ``facts`` where it was validated as another type than its own."""
    m = ref.manifest
    return Subject(
        name="/".join(m.asset) or m.producer,
        type=ref.type,
        path=str(local_path(ref)),
        facts=m.facts if facts is None else facts,
        reported=m.reported,
        tokenizers=_fingerprints(m, "tokenizer"),
        templates=_fingerprints(m, "chat_template"),
        content=m.content,
        inputs=tuple(m.inputs),
    )


def subject_at(type_name: str, path: Path | str, facts: Mapping[str, Any]) -> Subject:
    """Data that no manifest describes, with the facts of its validation."""
    found = fingerprints.of(facts, {})
    return Subject(
        name=str(path),
        type=type_name,
        path=str(path),
        facts=facts,
        tokenizers=_some(found["tokenizer"]),
        templates=_some(found["chat_template"]),
    )


def check(
    step: Step, port: Port, subject: Subject, config: Mapping[str, Any], others: Mapping[str, Subject] | None = None
) -> list[Result]:
    """What the locks of ``port`` say of ``subject``; ``config`` is the compiled one, ``others`` the other inputs."""
    from nemotron_dagster.artifacts.lock_rules import RULES

    case = Case(step, port, subject, config, others or {})
    return [_result(name, port.name, *RULES[name](case)) for name in port.locks]


def check_all(step: Step, subjects: Mapping[str, Subject], config: Mapping[str, Any]) -> Iterator[Result]:
    """The results of every lock that ``step`` declares; of a port without input, that there is none."""
    for port in step.consumes:
        subject = subjects.get(port.name)
        if subject is not None:
            others = {name: s for name, s in subjects.items() if name != port.name}
            yield from check(step, port, subject, config, others)
            continue
        for name in port.locks:
            yield Result(name, port.name, True, "error", "Not looked at: this run has no input here that we can read.")


def _result(name: str, port: str, verdict: bool | None, message: str, severity: Severity = "error") -> Result:
    """``verdict`` None: it cannot be told, which refuses nothing."""
    if verdict is None:
        return Result(name, port, True, "warning", f"Cannot be told: {message}")
    return Result(name, port, verdict, severity, message)


def _fingerprints(manifest: Manifest, kind: str) -> frozenset[str]:
    key = f"{kind}_fingerprint"
    return _some(getattr(manifest, kind), manifest.facts.get(key), manifest.reported.get(key))


def _some(*found: Any) -> frozenset[str]:
    return frozenset(f for f in found if isinstance(f, str) and f)
