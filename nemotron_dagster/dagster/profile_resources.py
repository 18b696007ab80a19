"""A Dagster resource per profile of env.toml: seen on the deployment page, and a target for assets of one's own.

What is shown is the profile as it is written, merged with what it extends: references stay references, so that no
value of the environment is in the definitions. Secrets, and commands that may hold one, are not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import dagster as dg
import pydantic

from nemotron_dagster.config.profiles import Environment, load_environment
from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.errors import NemotronError
from nemotron_dagster.jobs.target import Target, make_target, target_files
from nemotron_dagster.project import Project, find_project

_COMMANDS = {"startup_commands", "setup_lines", "run_command"}  # may hold what no name tells to be a secret
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_FIELD = re.compile(r"[A-Za-z]\w*")


class ProfileResource(dg.ConfigurableResource[None]):
    """One profile. ``required_resource_keys={"profile_<name>"}`` gives an asset of one's own its target."""

    _project: ClassVar[Project | None] = None
    profile: str = pydantic.Field(description="Name of the profile in env.toml.")

    def settings(self) -> dict[str, Any]:
        """The profile's settings now: merged and resolved, secrets as references; a run's own values win.

        Raises:
            ProfileError: the profile is wrong, or a value cannot be resolved.
        """
        found = load_environment(self._where.root).profile(self.profile)
        own = {n: f for n, f in type(self).model_fields.items() if n not in ("profile", "error", "env_vars")}
        changed = {n: getattr(self, n) for n, f in own.items() if getattr(self, n) != f.default}
        return {**found, **changed}

    def target(self) -> Target:
        """Where jobs of this profile run; see ``nemotron_dagster.jobs.target.Target``.

        Raises:
            ProfileError: as ``settings``, or the target does not take them.
        """
        return make_target(self._where, self.profile, self.settings())

    @property
    def _where(self) -> Project:
        return type(self)._project or find_project()


def profile_resources(project: Project, environment: Environment) -> dict[str, ProfileResource]:
    """Resource key (``profile_<name>``) -> resource, for every profile; a broken one has its ``error`` as a field."""
    found: dict[str, ProfileResource] = {}
    for name in environment.profiles:
        stem = key = f"profile_{re.sub(r'[^A-Za-z0-9_]', '_', name)}"
        number = 1
        while key in found:
            number += 1
            key = f"{stem}_{number}"
        found[key] = _resource(project, environment, name)
    return found


def _resource(project: Project, environment: Environment, name: str) -> ProfileResource:
    where = environment.where(name)
    try:
        written = environment.written(name)
        problem = _problem(project, written)
    except NemotronError as e:
        written, problem = {}, str(e)
    values = {k: v for k, v in _shown(written).items() if _FIELD.fullmatch(k) and not _taken(k)}
    if problem:
        values["error"] = problem
    fields: Any = {k: (type(v), pydantic.Field(default=v)) for k, v in values.items()}
    kind = pydantic.create_model("ProfileResource", __base__=ProfileResource, **fields)
    kind.__doc__ = f"Profile {name!r} of {where}." + (f" BROKEN: {problem}" if problem else "")
    kind._project = project
    return kind(profile=name, **values)


def _taken(key: str) -> bool:
    return hasattr(ProfileResource, key) or key in ProfileResource.model_fields


def _problem(project: Project, written: Mapping[str, Any]) -> str:
    """What is wrong with a profile as it is written; what its values are worth, `nemotron env check` tells."""
    executor, known = written.get("executor"), target_files(project)
    if executor is None:
        return f"names no executor. Set executor = one of {', '.join(known)}."
    if "${" not in str(executor) and str(executor) not in known:
        return f"executor: no target named {executor!r} in resources/. Available: {', '.join(known)}."
    return ""


def _shown(written: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Setting -> what is shown of it: text, numbers and switches as they are, the rest as JSON."""
    out: dict[str, str | int | float | bool] = {}
    for key, value in written.items():
        if value in (None, ""):
            continue
        if key == "env_vars" and isinstance(value, Mapping):
            out[key] = ", ".join(map(str, value))
        elif key in _COMMANDS:
            count = len(value) if isinstance(value, list) else 1
            out[key] = f"({count} command{'s' if count > 1 else ''}, not shown)"
        elif is_secret(key):
            out[key] = HIDDEN
        elif isinstance(value, bool | int | float):
            out[key] = value
        else:
            plain = redact(value)
            out[key] = _LOGIN.sub(HIDDEN, plain if isinstance(plain, str) else json.dumps(plain, default=str))
    return out
