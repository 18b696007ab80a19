"""The job as written: a config with its ``run`` section, to which profile, env.toml and command line contribute."""

from __future__ import annotations

from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.keys import merge
from nemotron_dagster.config.overrides import apply
from nemotron_dagster.config.profiles import Environment

#: Keys of run.env that the step's YAML wins over the profile.
YAML_WINS = ("container_image", "nodes", "gpus_per_node", "ntasks_per_node", "nproc_per_node", "workdir")


def build_job(
    step: Step,
    loaded: dict[str, Any],
    pairs: list[tuple[str, Any]],
    cli: dict[str, Any],
    profile: str | None,
    mode: str,
    environment: Environment,
) -> dict[str, Any]:
    """The config's sections and ``run``: ``env`` (config and profile), what the command line was, the recipe.

    The overrides are set twice: below the profile, so that it sees them as the config's own, and over everything.

    Raises:
        ConfigError, ProfileError: an override cannot be set, or the profile or a system section is wrong.
    """
    job: dict[str, Any] = merge(None, loaded)
    apply(job, pairs)
    run = _section(job, "run")
    recipe = {"name": step.runspec.name if step.runspec else "", "script": str(step.script)}
    env = _environment(_section(run, "env"), environment.profile(profile) if profile else None)
    run |= {"mode": mode, "profile": profile, "env": env, "cli": cli, "recipe": recipe}
    if wandb := environment.section("wandb"):
        run["wandb"] = wandb
    if artifacts := environment.section("artifacts"):
        job["artifacts"] = {**artifacts, **_section(job, "artifacts")}
    job["run"] = run
    apply(job, pairs)
    return job


def _section(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return dict(found) if isinstance(found, dict) else {}


def _environment(own: dict[str, Any], profile: dict[str, Any] | None) -> dict[str, Any]:
    """The profile over the config's own ``run.env``, but for what the config alone knows: image and shape."""
    if profile is None:
        return own
    env = {**own, **profile}
    variables = [v for v in (own.get("env_vars"), profile.get("env_vars")) if v]
    if variables and all(isinstance(v, dict) for v in variables):
        env["env_vars"] = {k: v for table in variables for k, v in table.items()}
    mounts = [m for m in (own.get("mounts"), profile.get("mounts")) if m]
    if mounts and all(isinstance(m, list) for m in mounts):
        env["mounts"] = [m for several in mounts for m in several]
    return env | {k: own[k] for k in YAML_WINS if k in own}
