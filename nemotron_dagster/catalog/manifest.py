"""Read a step folder: ``step.toml`` and the ``[tool.runspec]`` block of ``step.py``."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from nemotron_dagster.catalog.fields import Table
from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.catalog.model import Parameter, Port, Runspec, Step
from nemotron_dagster.catalog.shape import LISTS, RUNSPEC, RUNSPEC_TABLES, STEP
from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.files import MAX_TOML, parse_toml, printable, read_text

_BLOCK = re.compile(r"(?ms)^# /// script\s*?$(?P<body>.*?)^# ///\s*?$")
_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")
_ID = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
_GROUP = re.compile(r"[A-Za-z0-9_]+")


def load_step(directory: Path, root: Path) -> Step:
    """The step in ``directory``, a folder somewhere below the ``steps/`` folder ``root``.

    Raises:
        ConfigError: the manifest or the runspec is not readable or wrong, naming file, line and key. No other error.
    """
    doc = read_tables(f"{directory}/step.toml")
    doc.known({"step", "reference", *LISTS}, "top level")
    if not isinstance(doc.values.get("step"), dict):
        raise doc.error(None, "has no [step] table. Add one with id, name and description.")
    step = doc.table("step")
    step.known(STEP.keys(), "[step]")
    path_id = str(directory)[len(str(root)) + 1 :]
    if not path_id.isprintable() and printable(path_id) != path_id:
        raise doc.error(None, "the folder's path holds characters that cannot be printed. Rename the folder.")
    if not _ID.fullmatch(path_id):
        raise doc.error(None, f"{path_id!r} is no step id. Name the folders with letters, digits, _ and - only.")
    step_id = step.text_of("id", path_id)
    if step_id != path_id:
        raise step.error("id", f"id {step_id!r} is not the folder's path. Set id = {path_id!r} or move the folder.")
    if not _GROUP.fullmatch(step.text_of("category", "x")):  # Dagster's groups have no other characters
        raise step.wrong("category", "a word of letters, digits and _")
    payload = step.text_of("payload", "ready")
    if payload not in ("ready", "planned"):
        raise step.wrong("payload", "'ready' or 'planned'")
    return Step(
        id=step_id,
        name=step.text_of("name", directory.name.replace("_", " ").title()),
        category=step.text_of("category", step_id.split("/", maxsplit=1)[0]),
        description=step.text_of("description", step.text_of("summary")).strip(),
        directory=directory,
        tags=step.texts("tags"),
        consumes=_ports(doc, "consumes"),
        produces=_ports(doc, "produces"),
        parameters=tuple(_parameter(t) for t in doc.tables("parameters")),
        models=tuple(t.values for t in doc.tables("models")),
        strategies=tuple(t.values for t in doc.tables("strategies")),
        errors=tuple(t.values for t in doc.tables("errors")),
        reference=doc.table("reference").values,
        ready=payload == "ready",
        env=step.text_of("env", "engine"),
        resumable=step.flag("resumable", False),
        plans=step.flag("plans", False),
        freeform=step.texts("freeform"),
        literal=step.texts("literal"),
        runspec=read_runspec(f"{directory}/step.py"),
    )


def read_tables(file: Path | str) -> Table:
    """The whole file as a table.

    Raises:
        ConfigError: missing, unreadable or malformed, with line and column.
    """
    text = read_text(file, ConfigError, MAX_TOML)
    return Table(parse_toml(text, file), (), str(file), text)


def read_runspec(script: Path | str) -> Runspec | None:
    """The ``[tool.runspec]`` of a step.py (PEP 723 block), or None where there is no step.py.

    Raises:
        ConfigError: the file cannot be read, the block is missing or malformed, or a value has the wrong type.
    """
    if not os.path.lexists(script):
        return None
    spec = runspec_table(script)
    spec.known(RUNSPEC.keys(), "[tool.runspec]")
    run, config, resources, env = (spec.table(name) for name in ("run", "config", "resources", "env"))
    run.known(RUNSPEC_TABLES["run"].keys(), "[tool.runspec.run]")
    config.known(RUNSPEC_TABLES["config"].keys(), "[tool.runspec.config]")
    resources.known(RUNSPEC_TABLES["resources"].keys(), "[tool.runspec.resources]")
    launch = run.text_of("launch", "torchrun")
    if launch not in ("python", "torchrun", "ray"):
        raise run.error("launch", f"runspec launch {launch!r} is none of python, torchrun, ray. Use one of them.")
    return Runspec(
        name=spec.text_of("name"),
        image=spec.optional_text("image"),
        launch=launch,
        cmd=run.optional_text("cmd"),
        workdir=run.optional_text("workdir"),
        config_dir=_config_dir(config, str(script).rpartition("/")[0]),
        default_config=_default_config(config),
        nodes=resources.count("nodes", 1, 1),
        gpus_per_node=resources.count("gpus_per_node", 8, 0),
        env={name: env.scalar_text(name) for name in env.values},
    )


def runspec_table(script: Path | str) -> Table:
    """The ``[tool.runspec]`` table of a step.py as it is written.

    Raises:
        ConfigError: the file cannot be read, or the block is missing or malformed.
    """
    source = read_text(script)
    match = _BLOCK.search(source)
    if not match:
        raise ConfigError(f"{script}: has no `# /// script` block. Add one with a [tool.runspec] table.")
    body = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in match["body"].split("\n"))
    first = source.count("\n", 0, match.start("body")) + 1
    values = parse_toml(body, script, ConfigError, first, "its `# /// script` block is")
    tool = Table(values, (), str(script), body, first, 2).table("tool")
    if not isinstance(tool.values.get("runspec"), dict):
        raise ConfigError(f"{script}: its `# /// script` block has no [tool.runspec] table. Add one.")
    return tool.table("runspec")


def _config_dir(config: Table, directory: str) -> Path:
    name = config.text_of("dir", "./config")
    folder = Path(directory, name)
    if (
        name in ("config", "./config")
        and not os.path.islink(folder)
        and os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
    ):
        return folder  # nearly always, and without resolving two paths
    try:
        inside = folder.resolve().is_relative_to(Path(directory).resolve())
        readable = not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
    except (ValueError, OSError, RuntimeError) as e:  # NUL, too long, a circle of links
        raise config.wrong("dir", "a folder below the step's own") from e
    if not inside:
        raise config.error("dir" if "dir" in config.values else None, f"{name!r} leaves the step's folder. Move it in.")
    if not readable:
        raise ConfigError(f"{printable(folder)}: cannot be read (permission denied). Check its permissions.")
    return folder


def _default_config(config: Table) -> str:
    name = config.text_of("default", "default")
    if not name or "/" in name or printable(name) != name:
        raise config.wrong("default", "the name of a config, without folder and suffix")
    return name


def _ports(doc: Table, kind: str) -> tuple[Port, ...]:
    ports: dict[str, Port] = {}
    for table in doc.tables(kind):
        table.known(LISTS[kind].keys(), f"[[{kind}]]")
        if "type" not in table.values:
            raise table.error(None, f"a [[{kind}]] entry has no type. Name an artifact type of steps/types.toml.")
        port_type = table.text_of("type")
        name = table.text_of("name", port_type)
        if name in ports:
            raise table.error(None, f"a second [[{kind}]] entry is named {name!r}. Give it another `name`.")
        keys = _binds(table, kind)
        path = table.text_of("path", ".")
        if path != "." and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\x00" in path):
            raise table.wrong("path", "a path below the output directory")
        ports[name] = Port(
            name=name,
            type=port_type,
            required=table.flag("required", True),
            description=table.text_of("description").strip(),
            bind=keys[0][0] if keys else None,
            source=table.optional_text("from"),
            path=path,
            suffix=keys[0][1] if keys else table.text_of("suffix"),
            also=tuple(keys[1:]),
            locks=_locks(table),
            deliver=table.flag("deliver", False),
            latest_iteration=table.flag("latest_iteration", False),
        )
    return tuple(ports.values())


def _locks(table: Table) -> tuple[str, ...]:
    locks = table.texts("locks")
    for name in locks:
        if name not in LOCKS:
            hint = did_you_mean(name, LOCKS) or f" Locks: {', '.join(LOCKS)}."
            raise table.error("locks", f"unknown lock {name!r}.{hint}")
    return locks


def _binds(table: Table, kind: str) -> list[tuple[str, str]]:
    """``bind`` of a port: one key, or a list of keys and of tables that give a key its own suffix."""
    if "bind" not in table.values:
        return []
    found = table.values["bind"]
    suffix = table.text_of("suffix")
    keys: list[tuple[str, str]] = []
    for entry in found if isinstance(found, list) and found else [found]:
        whole = replace(table, values=entry if isinstance(entry, dict) else {"key": entry}, path=(*table.path, "bind"))
        whole.known({"key", "suffix"}, f"bind of a [[{kind}]] entry")
        key = whole.values.get("key")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise table.wrong("bind", 'a config key, "a.b", or a list of keys and of {key = "a.b", suffix = "/x"}')
        keys.append((key, whole.text_of("suffix", suffix)))
    return keys


def _parameter(table: Table) -> Parameter:
    table.known(LISTS["parameters"].keys(), "[[parameters]]")
    if "name" not in table.values:
        raise table.error(None, "a [[parameters]] entry has no name. Name the config key that it describes.")
    choices = table.values.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(c, (str, int, float)) for c in choices):
        raise table.wrong("choices", "a list of texts or numbers")
    if not _plain(table.values.get("default")):
        raise table.wrong("default", "a text, number, true, false, or a list or table of them (quote a date)")
    return Parameter(
        name=table.text_of("name"),
        default=table.values.get("default"),
        description=table.text_of("description").strip(),
        choices=tuple(choices),
    )


def _plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(_plain(v) for v in value.values())
    if isinstance(value, list):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (str, int, float))
