"""The resolvers that configs may use besides OmegaConf's own: variables, mounts, manifests, artifacts.

Nothing here is registered anywhere: each compile gets a table of its own, and none of them opens a connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.config.grammar import Call, GrammarError, Text, parse, unescape
from nemotron_dagster.config.interpolation import Path as KeyPath
from nemotron_dagster.config.interpolation import Reference, Resolution, Resolver, Unresolved, keep
from nemotron_dagster.config.places import Places
from nemotron_dagster.config.secrets import is_secret
from nemotron_dagster.errors import ConfigError, did_you_mean

STEP_DIR = "NEMOTRON_STEP_DIR"

_URL = re.compile(r"(?:https?|ssh|git|file)://[^\s'\"`$;&|<>\\]+|[\w.-]+@[\w.-]+:[\w./~+-]+")
_REF = re.compile(r"[A-Za-z0-9_][\w./+-]*")
_AUTO_MOUNT = "${auto_mount:git+URL@REF,/absolute/target}"
_TARGET = re.compile(r"(?:/[\w.+@-]+)+/?")


@dataclass(frozen=True)
class Variables:
    """Where ``${oc.env:X}`` looks, in this order.

    Attributes:
        job: what the job will see because the profile or the config says so.
        derived: what the target sets for the job.
        environ: the submitter's own environment.
        revealed: secrets have their values too.
    """

    environ: Mapping[str, str]
    places: Places = field(default_factory=Places)
    step_directory: Path | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    revealed: bool = False

    def resolver(self) -> Resolver:
        """``oc.env`` over these variables; one that is secret by its name or by the key it fills stays."""

        def env(resolution: Resolution, path: KeyPath, args: tuple[Any, ...]) -> Any:
            if not 1 <= len(args) <= 2:
                raise Unresolved("oc.env takes a name and a default", "Write ${oc.env:NAME,default}.")
            name = resolution.evaluate(args[0], path, argument=True)
            if not isinstance(name, str) or isinstance(name, Reference):
                raise Unresolved(f"{name!r} stands where a variable's name is needed", "Write ${oc.env:NAME}.")
            fills = next((k for k in reversed(path) if isinstance(k, str)), "")
            secret = is_secret(name) or is_secret(fills) or isinstance(self.job.get(name), Reference)
            if (secret and not self.revealed) or (name == STEP_DIR and self.places.moved):
                return keep("oc.env", (name, *(resolution.evaluate(a, path, argument=True) for a in args[1:])))
            found = self.lookup(name)
            if found is not None:
                return found
            if len(args) == 1:
                raise Unresolved(
                    f"environment variable {name} is not set",
                    f"Export {name}, set run.env.env_vars.{name}=VALUE, or give {{key}}=VALUE.",
                    name,
                )
            value = resolution.evaluate(args[1], path, argument=True)
            return value if value is None or isinstance(value, Reference) else str(value)

        return env

    def lookup(self, name: str) -> str | None:
        """The variable's value as the job will see it, or None."""
        if name == STEP_DIR and self.step_directory is not None:
            return str(self.step_directory)
        if name == "PWD":
            return self.places.working_directory
        if self.job.get(name) is not None:
            return unescape(str(self.job[name]))
        if name in self.derived:
            return self.derived[name]
        if name == "NEMO_RUN_DIR" and self.places.moved:
            return None  # the submitter's own means nothing there
        found = self.environ.get(name)
        return self.places.there(found) if found is not None else None


@dataclass(frozen=True)
class AutoMount:
    """A git repository that a target clones and mounts."""

    url: str
    ref: str
    target: str


def parse_auto_mount(text: str) -> AutoMount:
    """What ``${auto_mount:git+URL@REF,/target}`` asks for.

    Raises:
        ConfigError: it is malformed, naming the part.
    """
    try:
        parts = parse(text).parts
        call = parts[0] if len(parts) == 1 else None
        if not isinstance(call, Call) or call.name != ("auto_mount",):
            raise Unresolved("it is not an auto_mount")
        words = [a.parts[0] for a in call.args if isinstance(a, Text) and len(a.parts) == 1]
        return _auto_mount(tuple(words))
    except (Unresolved, GrammarError) as e:
        raise ConfigError(f"{text}: {e}. Write {_AUTO_MOUNT}.") from e


def _auto_mount(args: tuple[Any, ...]) -> AutoMount:
    fix = f"Write {_AUTO_MOUNT}."
    if len(args) != 2 or not all(isinstance(a, str) for a in args):
        raise Unresolved("auto_mount takes a git URL with a ref, and a target path", fix)
    source, target = args
    url, at, ref = source.removeprefix("git+").rpartition("@")
    if not source.startswith("git+"):
        raise Unresolved(f"auto_mount: {source!r} does not begin with git+", fix)
    if not at or not _URL.fullmatch(url):
        raise Unresolved(f"auto_mount: {url or source!r} is no git URL followed by @REF", fix)
    if re.match(r"\w+://[^/@]*:[^/@]*@", url):
        raise Unresolved("auto_mount: the URL holds a password", "Use ssh, or a credential helper of git.")
    if not _REF.fullmatch(ref) or ".." in ref:
        raise Unresolved(f"auto_mount: {ref!r} is no branch, tag or commit", fix)
    if not _TARGET.fullmatch(target) or ".." in target.split("/"):
        raise Unresolved(f"auto_mount: {target!r} is no absolute path", fix)
    return AutoMount(url, ref, target.rstrip("/"))


def auto_mount(resolution: Resolution, path: KeyPath, args: tuple[Any, ...]) -> Any:
    """A reference among the mounts, for the target to act on; the target's path anywhere else."""
    mount = _auto_mount(args)
    return keep("auto_mount", args) if path[:3] == ("run", "env", "mounts") else mount.target


def manifest(places: Places) -> Resolver:
    """``${manifest:DIR,KEY}``: a value of the ``manifest.json`` in DIR, which a data step wrote.

    A relative path of a split's files counts from DIR.
    """

    def read(resolution: Resolution, path: KeyPath, args: tuple[Any, ...]) -> Any:
        if len(args) != 2 or not all(isinstance(a, str) for a in args):
            raise Unresolved("manifest takes a directory and a key", "Write ${manifest:DIR,KEY}.")
        directory, key = args
        file = Path(places.back(directory)).expanduser() / "manifest.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as e:
            if places.moved:
                return keep("manifest", args)  # it may lie there: steps/_runtime/payload.py reads it
            raise Unresolved(f"{file}: cannot be read ({e.strerror})", "Run the data step, or give {key}=PATH.") from e
        except (OSError, ValueError) as e:
            raise Unresolved(f"{file}: is no JSON ({e})", "Run the data step again.") from e
        if not isinstance(data, dict) or key not in data:
            keys = data if isinstance(data, dict) else []
            near = did_you_mean(key, keys).strip() or f"It has: {', '.join(keys) or 'nothing'}."
            raise Unresolved(f"{file}: has no key {key!r}", near)
        value = str(data[key])
        return places.there(str(file.parent / value) if key in ("train", "val", "test") and value else value)

    return read


def mul(resolution: Resolution, path: KeyPath, args: tuple[Any, ...]) -> Any:
    """NeMo-RL's product stays for the payload, whose library resolves it."""
    return keep("mul", args)
