"""The keys of a profile that every target knows, and the types that profiles are written in.

A target's own module in ``resources/`` adds its keys. Keys that nothing reads are there because existing profiles and
configs carry them; their description says so.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

#: Keys for which an empty text is a value of its own, not "unset".
_EMPTY_MEANS = frozenset({"lustre_mount"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AUTO_MOUNT = re.compile(r"(?:\$\{)?(?:__)?auto_mount(?:__)?:")
_REF = re.compile(r"(?!-)[^\s\x00-\x1f\x7f:?*\[\\]+")
_MARKED = "Accepted so that profiles and configs can be shared; "


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value.strip() if isinstance(value, str) else value


def _commands(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list of commands. Write [{_toml(value)}]")
    return value


def _toml(value: str) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _patterns(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list. Write [{_toml(value)}]")
    for pattern in value if isinstance(value, list | tuple) else ():
        if isinstance(pattern, str) and (not pattern.strip() or "\0" in pattern):
            raise ValueError(f"{pattern!r}: must name a file or folder")
        if isinstance(pattern, str) and (pattern.startswith(("/", "~")) or ".." in pattern.split("/")):
            raise ValueError(f"{pattern!r}: must be relative to the project, and stay in it")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Commands = Annotated[tuple[str, ...], BeforeValidator(_commands)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
Scalar = str | bool | int | float


def is_auto_mount(mount: object) -> bool:
    """Whether a mount is a git repository that the target clones: ``${auto_mount:git+URL@REF,/target}``."""
    return isinstance(mount, str) and bool(_AUTO_MOUNT.match(mount))


class CommonSettings(BaseModel):
    """Keys of a profile that every target accepts. ``null`` and empty text mean: not set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: str = Field("local", description="The target: a module of resources/.")
    startup_commands: Commands = Field((), description="Commands run with bash, in order, before the step.")
    env_vars: dict[str, Scalar] = Field({}, description="Variables set for the job; a child's merge with its parent's.")
    container_image: str | None = Field(None, description="Image that the job runs in; wins over `container`.")
    container: str | None = Field(None, description="The same, as older profiles spell it.")
    nodes: Positive | None = Field(None, description="Nodes; default: what the step's runspec asks for.")
    gpus_per_node: Count | None = Field(None, description="GPUs per node; default: what the step's runspec asks for.")
    gpu_memory_gb: float | None = Field(
        None, gt=0, description="Memory of one GPU; default: what a shape, gres or constraint names."
    )
    nproc_per_node: Positive | None = Field(None, description="Processes per node that torchrun starts.")
    nprocs_per_node: Positive | None = Field(None, description="The same, as cloud profiles spell it.")
    ntasks_per_node: Positive | None = Field(None, description="The same, as Slurm profiles spell it.")
    mounts: tuple[str | dict[str, Any], ...] = Field((), description="Storage the job sees; its form is the target's.")
    run_command: str | None = Field(
        None, description="Command instead of the default one, with {script} and {config}; the runspec's cmd wins."
    )
    workdir: str | None = Field(
        None, description="Directory that the payload starts in; default: the runspec's. `.` is the job's own."
    )
    remote_job_dir: str | None = Field(None, description="Directory below which jobs are kept on the target.")
    python: str | None = Field(None, description="Interpreter of the payload.")
    workspace: str | None = Field(None, description="Root of the shared storage, for other keys to refer to.")
    code_src_dir: str | None = Field(None, description=_MARKED + "not read: code is shipped with the job.")
    repo_root: str | None = Field(None, description=_MARKED + "not read: code is shipped with the job.")
    persistent_cache: str | None = Field(None, description="Cache directory that the RL configs refer to.")
    packager: Literal["payload", "git", "pattern", "hybrid"] = Field(
        "payload",
        description="Code that travels with a job, where the target moves it: the step and what steps share, or around "
        "them the project's committed files (git), files by pattern, or both (hybrid).",
    )
    packager_ref: str | None = Field(
        None, description="Commit, branch or tag that git and hybrid take; default: HEAD, what is checked out."
    )
    packager_patterns: Patterns = Field(
        (),
        description="Files and folders that pattern and hybrid take, below the project: names or globs, ** across "
        "folders.",
    )
    packager_uncommitted: Literal["refuse", "ship"] = Field(
        "refuse",
        description="What git and hybrid do where files are not committed: refuse the job, or send them along.",
    )
    packager_max_mb: Positive = Field(
        200, description="Most MB of code that may travel with a job, before compression."
    )
    host: str | None = Field(None, description=_MARKED + "read by slurm.")
    user: str | None = Field(None, description=_MARKED + "read by slurm.")
    account: str | None = Field(None, description=_MARKED + "read by slurm.")
    partition: str | None = Field(None, description=_MARKED + "read by slurm.")
    time: str | int | None = Field(None, description=_MARKED + "read by slurm.")

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None and (v != "" or k in _EMPTY_MEANS)}

    @field_validator("env_vars", mode="before")
    @classmethod
    def _variables(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("must be a table of names and values")
        for name in values:
            if not _VARIABLE.fullmatch(str(name)):
                raise ValueError(f"{str(name)!r} is no name of a variable. Use letters, digits and underscores")
        return {str(k): v for k, v in values.items() if v is not None}

    @field_validator("packager_ref")
    @classmethod
    def _ref(cls, value: str | None) -> str | None:
        if value is not None and not _REF.fullmatch(value):
            raise ValueError("must be a commit, a branch or a tag")
        return value

    @model_validator(mode="after")
    def _packaging(self) -> CommonSettings:
        if self.packager in ("pattern", "hybrid") and not self.packager_patterns:
            raise ValueError(
                f'packager = "{self.packager}" needs packager_patterns. Name what travels: packager_patterns = ["src"]'
            )
        if self.packager in ("payload", "git") and self.packager_patterns:
            other = "hybrid" if self.packager == "git" else "pattern"
            raise ValueError(
                f'packager_patterns is not read by packager = "{self.packager}". '
                f'Set packager = "{other}", or packager_patterns = []'
            )
        if self.packager in ("payload", "pattern") and self.packager_ref:
            other = "hybrid" if self.packager == "pattern" else "git"
            raise ValueError(
                f'packager_ref is not read by packager = "{self.packager}". Set packager = "{other}", or remove it'
            )
        if self.packager_uncommitted == "ship" and self.packager_ref not in (None, "HEAD"):
            raise ValueError(
                'packager_uncommitted = "ship" adds to what is checked out, not to packager_ref. Remove one of them'
            )
        return self

    @property
    def job_image(self) -> str | None:
        """The image that the profile or the config names; the runspec's comes after it."""
        return self.container_image or self.container

    @property
    def variables(self) -> dict[str, str]:
        """``env_vars`` as text; true and false in lower case, as shells and YAML write them."""
        return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in self.env_vars.items()}


def wrong(error: dict[str, Any]) -> str:
    """What is wrong with a value, from one of pydantic's errors: ``must be a whole number``."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "greater_than_equal":
        return f"must be {context['ge']} or more"
    if kind == "less_than_equal":
        return f"must be {context['le']} or less"
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "missing":
        return "must be set"
    return _WANTED.get(kind, str(error["msg"]))


_WANTED = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}
