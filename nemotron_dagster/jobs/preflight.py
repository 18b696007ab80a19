"""What is known to go wrong, before anything is submitted: the checks that a step's [[errors]] name, and its locks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.config.guardrail_rules import load_rules
from nemotron_dagster.errors import ArtifactError, PreflightError
from nemotron_dagster.jobs.inputs import InvalidInput, check_inputs, check_locks
from nemotron_dagster.jobs.preflight_case import Case
from nemotron_dagster.jobs.preflight_paths import given
from nemotron_dagster.jobs.preflight_rules import RULES
from nemotron_dagster.jobs.submission import gpus_per_node, node_count
from nemotron_dagster.project import Project
from nemotron_dagster.sizing.estimate import recipe_of
from nemotron_dagster.sizing.models import load_tables


def examine(project: Project, spec: JobSpec, inputs: Mapping[str, ArtifactRef]) -> list[Result]:
    """Check the config, then the inputs, then what depends on both; the results of the step's locks.

    Raises:
        PreflightError: a check of the manifest's [[errors]], with its recovery.
        ArtifactError: an input is not valid.
    """
    case = case_of(project, spec)
    refuse_known(case)
    try:
        subjects = check_inputs(spec, inputs)
    except InvalidInput as e:
        raise ArtifactError(_with_recovery(spec.step, f"input:{e.port}", str(e))) from e
    refuse_known(replace(case, subjects=subjects))
    return check_locks(spec, subjects)


def case_of(project: Project, spec: JobSpec) -> Case:
    """The job as the rules see it, before its inputs are read.

    Raises:
        ConfigError: a guardrails.toml or models.toml is malformed.
    """
    if not any(error.get("check") for error in spec.step.errors):
        return Case(spec, 0, "none")
    tables, family = load_tables(project), load_rules(project).of_step(spec.step.id).get("memory", "none")
    world = node_count(spec) * gpus_per_node(spec)
    return Case(spec, world, str(family), recipe_of(spec.train, tables), tables)


def refuse_known(case: Case) -> None:
    """Raises PreflightError: a rule that the manifest names finds its error."""
    if told := list(problems(case)):
        raise PreflightError("\n".join([f"{case.spec.step.id}: refused before anything was submitted.", *told]))


def problems(case: Case) -> Iterator[str]:
    """What the rules of the manifest's [[errors]] find, with name and recovery of each."""
    for error in case.spec.step.errors:
        for name in error.get("check", ()):
            kind, _, port = name.partition(":")
            text = given(case, port) if kind == "given" else RULES[name](case) if name in RULES else ""
            if text:
                yield f"  {error['name']}: {text} {error['recovery']}"


def refuse(step: Step, results: list[Result]) -> None:
    """Raises PreflightError: a lock does not hold."""
    if broken := [r for r in results if r.refuses]:
        told = "\n".join(f"  {r.port}, {_with_recovery(step, r.name, f'{r.name}: {r.message}')}" for r in broken)
        raise PreflightError(f"{step.id}: an input does not fit; nothing was submitted.\n{told}")


def _with_recovery(step: Step, check: str, text: str) -> str:
    """A message with name and recovery of the error that it is in the manifest, where it is one."""
    found: dict[str, Any] = next((e for e in step.errors if check in e.get("check", ())), {})
    return f"{text}\n  {found['name']}: {found['recovery']}" if found else text
