"""Profiles of ``env.toml``: named targets and their settings, with inheritance."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.config.keys import leaves
from nemotron_dagster.config.secrets import is_secret, looks_secret
from nemotron_dagster.config.sections import RESERVED, kind, problems
from nemotron_dagster.errors import ProfileError, did_you_mean

if TYPE_CHECKING:
    from nemotron_dagster.config.interpolation import Unresolved

KeyPath = tuple[str | int, ...]
_warned: set[str] = set()


@dataclass(frozen=True)
class Layer:
    """One table of an inheritance chain, as written."""

    name: str
    file: Path | None
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Environment:
    """The profiles of one env.toml and its system sections.

    Attributes:
        defaults: files of default profiles (``env/profiles.toml``), each after those that win over it.
    """

    file: Path | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)
    defaults: tuple[tuple[Path, Mapping[str, Any]], ...] = ()

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names of all profiles: those of the file, then the default ones that it does not replace."""
        sources = [self.tables, *(tables for _, tables in self.defaults)]
        names = [k for t in sources for k, v in t.items() if k not in RESERVED and isinstance(v, Mapping)]
        return tuple(dict.fromkeys(names))

    def chain(self, name: str) -> tuple[Layer, ...]:
        """The profile's own table, then its parent's, and so on.

        Raises:
            ProfileError: no such profile, a parent that does not exist, a cycle, or an ``extends`` that is no text.
        """
        layers = self.chain_so_far(name)
        parent = layers[-1].table.get("extends") if layers else name
        if parent is None:
            return layers
        if not isinstance(parent, str):
            child = layers[-1].name
            raise ProfileError(
                f"{self.where(child, 'extends')}: `extends` of profile {child!r} is {kind(parent)}. "
                'Name one parent: extends = "base"; that one may extend another.'
            )
        names = [layer.name for layer in layers]
        if parent in names:
            raise ProfileError(
                f"{self.where(names[-1], 'extends')}: profiles extend each other in a circle: "
                f"{' -> '.join([*names, parent])}. Remove one `extends`."
            )
        raise ProfileError(self._unknown(parent, layers))

    def written(self, name: str) -> dict[str, Any]:
        """The profile with everything it extends merged in, key by key; lists are replaced. Nothing is resolved."""
        merged: dict[str, Any] = {}
        for layer in reversed(self.chain(name)):
            merged = merge_tables(merged, layer.table)
        merged.pop("extends", None)
        return merged

    def resolved(self, name: str) -> tuple[dict[str, Any], dict[KeyPath, Unresolved]]:
        """The merged profile with its interpolations resolved, and the values that could not be.

        A secret variable stays a reference: ``references.reveal`` resolves it when the job is submitted.

        Raises:
            ProfileError: the inheritance is wrong, or a value is of a type that no setting has.
        """
        merged = self.written(name)
        for path, value in leaves(merged):
            if not isinstance(value, str | int | float | bool | list | Mapping):
                text = ".".join(map(str, path))
                raise ProfileError(
                    f"{self.where(name, *path)}: {text} = {value} is {kind(value)}, which no setting takes. "
                    f'Write it as text: "{value}".'
                )
        from nemotron_dagster.config.references import resolve

        return resolve(merged)

    def profile(self, name: str) -> dict[str, Any]:
        """The profile as a target takes it: merged and resolved, secrets as references.

        Raises:
            ProfileError: no such profile, a parent that does not exist, a cycle, or a value that cannot be resolved.
        """
        values, failed = self.resolved(name)
        for path, unresolved in failed.items():
            key = ".".join(map(str, path))
            reason, fix = unresolved.reason, unresolved.fix.replace("{key}", key)
            if variable := unresolved.variable:
                reason = f"variable {variable} is not set"
                fix = f"Export {variable}, or give it a default: ${{oc.env:{variable},VALUE}}."
            raise ProfileError(f"{self.where(name, *path)}: profile {name!r}: {key}: {reason}. {fix}")
        self._warn(name)
        return values

    def section(self, name: str) -> dict[str, Any]:
        """A system section with its interpolations resolved; empty where the file does not have it.

        Raises:
            ProfileError: a value cannot be resolved.
        """
        from nemotron_dagster.config.references import resolve

        table = self.tables.get(name)
        values, failed = resolve(table if isinstance(table, Mapping) else {})
        for path, unresolved in failed.items():
            key = ".".join(map(str, path))
            raise ProfileError(f"{self.where(name, *path)}: [{name}] {key}: {unresolved.reason}. Mend or remove it.")
        return values

    def origin(self, name: str, path: KeyPath) -> Layer:
        """The table of the chain that gives this key its value."""
        layers = self.chain_so_far(name) or self.chain(name)
        return next((layer for layer in layers if _has(layer.table, path)), layers[0])

    def where(self, name: str, *path: str | int) -> str:
        """``file:line:column`` of a key of a profile, wherever in its chain it stands; the file alone if unknown."""
        from nemotron_dagster.config.source import toml_position

        layers = self.chain_so_far(name)
        layer = next((found for found in layers if _has(found.table, path)), layers[0]) if layers else None
        file = layer.file if layer else self.file
        if file is None:
            return "env.toml"
        table = layer.name if layer else name
        keys = [json.dumps(str(part)) for part in (table, *path)]  # quoted: a name may hold a dot
        while keys:
            found = toml_position(file, ".".join(keys))
            if found is not None:
                return str(found)
            keys.pop()
        return str(file)

    def literal_secrets(self, name: str) -> Iterator[KeyPath]:
        """Keys of the merged profile that hold a secret itself instead of a reference to a variable."""
        for path, value in leaves(self.written(name)):
            named = next((str(p) for p in reversed(path) if isinstance(p, str)), "")
            literal = is_secret(named) and value not in ("", "???", [], {}) and "${" not in str(value)
            if literal or (isinstance(value, str) and looks_secret(value)):
                yield path

    def chain_so_far(self, name: str) -> tuple[Layer, ...]:
        """The chain as far as it can be followed: its last table extends nothing, or what cannot be extended."""
        layers: list[Layer] = []
        current: Any = name
        while isinstance(current, str) and current not in [layer.name for layer in layers]:
            layer = self._layer(current)
            if layer is None:
                break
            layers.append(layer)
            current = layer.table.get("extends")
        return tuple(layers)

    def _layer(self, name: str) -> Layer | None:
        for file, tables in ((self.file, self.tables), *self.defaults):
            if name not in RESERVED and isinstance(tables.get(name), Mapping):
                return Layer(name, file, tables[name])
        return None

    def _unknown(self, name: str, layers: Sequence[Layer]) -> str:
        by = f" (extended by {layers[-1].name!r})" if layers else ""
        where = self.where(layers[-1].name, "extends") if layers else str(self.file or "env.toml (none found)")
        known = ", ".join(self.profiles) or "none"
        if name in RESERVED:
            return (
                f"{where}: unknown profile {name!r}{by}: [{name}] is a system section, not a profile. "
                f"Name one of: {known}."
            )
        return f"{where}: unknown profile {name!r}{by}.{did_you_mean(name, self.profiles)} Available: {known}."

    def _warn(self, name: str) -> None:
        for path in self.literal_secrets(name):
            where = self.where(name, *path)
            if where not in _warned:
                _warned.add(where)
                print(f"Warning: {secret_message(where, name, path)}", file=sys.stderr)


def secret_message(where: str, name: str, path: KeyPath) -> str:
    """What is said of a secret that is written down; never its value."""
    key = str(next((p for p in reversed(path) if isinstance(p, str)), path[-1]))
    variable = key.upper() if is_secret(key) else "NAME"
    return (
        f"{where}: profile {name!r}: {'.'.join(map(str, path))} holds a secret in clear text. "
        f'Export it and write "${{oc.env:{variable}}}".'
    )


def load_environment(root: Path | None = None) -> Environment:
    """Read ``NEMOTRON_ENV_FILE``, else the nearest ``env.toml``, with the default profiles of ``env/profiles.toml``.

    The search goes upward from the working directory, no further than the first directory with a pyproject.toml or
    the project's ``root``; from outside the project only its root is looked at.

    Raises:
        ProfileError: the named file is missing, a file is no valid TOML, or its top level or a system section is wrong.
    """
    file = find_env_file(root)
    environment = read_environment(file, root) if file else Environment(defaults=_defaults(root))
    for problem in problems(environment.tables):
        raise ProfileError(f"{environment.where(*problem.path)}: {problem.message}")
    return environment


def find_env_file(root: Path | None = None) -> Path | None:
    """The env.toml that counts here, or None."""
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        return Path(named).expanduser()
    root = root.resolve() if root else None
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # the working directory is gone
        here = root or Path.home()
    if root and here != root and root not in here.parents:
        here = root
    for directory in (here, *here.parents):
        if os.path.lexists(directory / "env.toml"):
            return directory / "env.toml"
        if directory == root:
            return None
        if (directory / "pyproject.toml").is_file():
            break
    return root / "env.toml" if root and os.path.lexists(root / "env.toml") else None


def read_environment(file: Path, root: Path | None = None) -> Environment:
    """The environment of one file, its system sections unchecked; ``root`` is the project's.

    Raises:
        ProfileError: the file is missing, unreadable, a directory or no valid TOML.
    """
    from nemotron_dagster.config.source import read_toml

    return Environment(file, read_toml(file, ProfileError), _defaults(root))


def _defaults(root: Path | None) -> tuple[tuple[Path, Mapping[str, Any]], ...]:
    from nemotron_dagster.config.source import read_toml
    from nemotron_dagster.project import bundled

    folders = [*([root / "env"] if root else []), bundled("env")]
    files = dict.fromkeys((f / "profiles.toml").resolve() for f in folders)
    return tuple((file, read_toml(file, ProfileError)) for file in files if file.exists())


def merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; of two values that are not both tables, the one of ``over``."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge_tables(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _has(data: Any, path: KeyPath) -> bool:
    for part in path:
        if isinstance(part, int):
            return True
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True
