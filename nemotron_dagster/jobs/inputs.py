"""What a job is about to read: checked, and locked to the step, before anything is submitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts.localize import bound_path, localized
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.port_locks import Result, Subject, check_all, subject_at, subject_of
from nemotron_dagster.catalog import Port, Step
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.errors import ArtifactError

_HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w-][\w.-]*")
_DATA_SUFFIX = (".jsonl", ".json", ".gz", ".zst", ".parquet", ".yaml", ".txt")


class InvalidInput(ArtifactError):
    """What a port is given is not valid; ``port`` is its name."""

    def __init__(self, port: str, message: str) -> None:
        super().__init__(message)
        self.port = port


def check_inputs(spec: JobSpec, inputs: Mapping[str, ArtifactRef]) -> dict[str, Subject]:
    """Validate external paths, and upstream artifacts that are asked to be another type; what is known of each input.

    Raises:
        InvalidInput: one is not valid.
    """
    subjects: dict[str, Subject] = {}
    for port in spec.step.consumes:
        external = spec.external.get(port.name)
        if external is not None:
            if not is_elsewhere(external):
                path = Path(external).expanduser()
                try:
                    facts = artifacts.validate(port.type, path)
                except ArtifactError as e:
                    raise InvalidInput(port.name, str(e)) from e
                subjects[port.name] = subject_at(port.type, path, facts)
        elif (ref := inputs.get(port.name)) is not None:
            subjects[port.name] = upstream(spec.step, port, ref)
    return subjects


def upstream(step: Step, port: Port, ref: ArtifactRef) -> Subject:
    """An artifact as the input of a port, on this machine.

    Raises:
        ArtifactError: it cannot be had, or is of another type than the port's and not valid as that.
    """
    facts: dict[str, Any] | None = None
    path = localized(ref)
    if ref.type != port.type:
        try:
            facts = artifacts.validate(port.type, path)
        except ArtifactError as e:
            raise ArtifactError(f"{step.id}: input {port.name} from {'/'.join(ref.manifest.asset)}:\n{e}") from e
    return replace(subject_of(ref, facts), path=str(bound_path(port, ref)))


def check_locks(spec: JobSpec, subjects: Mapping[str, Subject]) -> list[Result]:
    """The results of the step's locks."""
    return list(check_all(spec.step, subjects, spec.train))


def is_elsewhere(external: str) -> bool:
    """Whether only the payload's library can tell what that is: a URL, or a name on the Hugging Face hub."""
    if "://" in external:
        return True
    named = _HUB_ID.fullmatch(external) and not external.endswith(_DATA_SUFFIX)
    return bool(named) and not Path(external).expanduser().exists()
