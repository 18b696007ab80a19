"""Read a step folder: ``step.toml`` and the ``[tool.runspec]`` block of ``step.py``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Parameter, Port, Runspec, Step
from nemotron_dagster.errors import ConfigError, did_you_mean

_STEP_KEYS = {
    "id", "name", "category", "description", "summary", "tags", "stack", "difficulty",
    "payload", "env", "resumable", "freeform", "literal",
}  # fmt: skip
_PORT_KEYS = {"type", "description", "required", "bind", "from", "name", "path", "suffix", "deliver"}
_TABLES = {"step", "consumes", "produces", "parameters", "models", "strategies", "errors", "reference"}
_BLOCK = re.compile(r"(?ms)^# /// script\s*?$(?P<body>.*?)^# ///\s*?$")


def load_step(directory: Path, root: Path) -> Step:
    """The step in ``directory``, a folder somewhere below the ``steps/`` folder ``root``.

    Raises:
        ConfigError: the manifest or the runspec is not readable, naming the file and the key.
    """
    file = directory / "step.toml"
    doc = read_toml(file)
    _known(file, "top level", doc, _TABLES)
    step = doc.get("step")
    if not isinstance(step, dict):
        raise ConfigError(f"{file}: has no [step] table. Add one with id, name and description.")
    _known(file, "[step]", step, _STEP_KEYS)
    path_id = directory.relative_to(root).as_posix()
    step_id = str(step.get("id", path_id))
    if step_id != path_id:
        raise ConfigError(f"{file}: id {step_id!r} is not the folder's path. Set id = {path_id!r} or move the folder.")
    payload = step.get("payload", "ready")
    if payload not in ("ready", "planned"):
        raise ConfigError(f"{file}: payload = {payload!r}. Write 'ready' or 'planned'.")
    return Step(
        id=step_id,
        name=str(step.get("name", directory.name.replace("_", " ").title())),
        category=str(step.get("category", step_id.split("/", maxsplit=1)[0])),
        description=str(step.get("description", step.get("summary", ""))).strip(),
        directory=directory,
        tags=tuple(step.get("tags", ())),
        consumes=tuple(_port(file, "consumes", t) for t in doc.get("consumes", ())),
        produces=tuple(_port(file, "produces", t) for t in doc.get("produces", ())),
        parameters=tuple(_parameter(file, t) for t in doc.get("parameters", ())),
        models=tuple(doc.get("models", ())),
        strategies=tuple(doc.get("strategies", ())),
        errors=tuple(doc.get("errors", ())),
        reference=doc.get("reference", {}),
        ready=payload == "ready",
        env=str(step.get("env", "engine")),
        resumable=bool(step.get("resumable", False)),
        freeform=tuple(step.get("freeform", ())),
        literal=tuple(step.get("literal", ())),
        runspec=read_runspec(directory / "step.py"),
    )


def read_toml(file: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: missing, unreadable or malformed, with the parser's line and column.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read ({e.strerror}). Check the path and its permissions.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {e.start}). Save it as UTF-8.") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file}: is not valid TOML: {e}. Mend that line.") from e


def read_runspec(script: Path) -> Runspec | None:
    """The ``[tool.runspec]`` of a step.py (PEP 723 block), or None where there is no step.py.

    Raises:
        ConfigError: the block is missing or malformed.
    """
    if not script.is_file():
        return None
    match = _BLOCK.search(script.read_text(encoding="utf-8"))
    if not match:
        raise ConfigError(f"{script}: has no `# /// script` block. Add one with a [tool.runspec] table.")
    body = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in match["body"].splitlines())
    try:
        spec = tomllib.loads(body).get("tool", {}).get("runspec")
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{script}: its `# /// script` block is not valid TOML: {e}. Mend that line.") from e
    if not isinstance(spec, dict):
        raise ConfigError(f"{script}: its `# /// script` block has no [tool.runspec] table. Add one.")
    run, config, resources = spec.get("run", {}), spec.get("config", {}), spec.get("resources", {})
    launch = run.get("launch", "torchrun")
    if launch not in ("python", "torchrun", "ray"):
        raise ConfigError(f"{script}: runspec launch {launch!r} is none of python, torchrun, ray. Use one of them.")
    return Runspec(
        name=str(spec.get("name", "")),
        image=spec.get("image"),
        launch=launch,
        cmd=run.get("cmd"),
        workdir=run.get("workdir"),
        config_dir=(script.parent / config.get("dir", "./config")),
        default_config=str(config.get("default", "default")),
        nodes=int(resources.get("nodes", 1)),
        gpus_per_node=resources.get("gpus_per_node", 8),
    )


def _known(file: Path, where: str, table: dict[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known keys: {', '.join(sorted(known))}."
            raise ConfigError(f"{file}: unknown key {key!r} in {where}.{hint}")


def _port(file: Path, kind: str, table: dict[str, Any]) -> Port:
    _known(file, f"[[{kind}]]", table, _PORT_KEYS)
    if "type" not in table:
        raise ConfigError(f"{file}: a [[{kind}]] entry has no type. Name an artifact type of steps/types.toml.")
    return Port(
        name=str(table.get("name", table["type"])),
        type=str(table["type"]),
        required=bool(table.get("required", True)),
        description=str(table.get("description", "")).strip(),
        bind=table.get("bind"),
        source=table.get("from"),
        path=str(table.get("path", ".")),
        suffix=str(table.get("suffix", "")),
        deliver=bool(table.get("deliver", False)),
    )


def _parameter(file: Path, table: dict[str, Any]) -> Parameter:
    if "name" not in table:
        raise ConfigError(f"{file}: a [[parameters]] entry has no name. Name the config key that it describes.")
    return Parameter(
        name=str(table["name"]),
        default=table.get("default"),
        description=str(table.get("description", "")).strip(),
        choices=tuple(table.get("choices", ())),
    )
