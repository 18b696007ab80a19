"""Read a step folder: ``step.toml`` and the ``[tool.runspec]`` block of ``step.py``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Parameter, Port, Runspec, Step
from nemotron_dagster.catalog.shape import line_of, manifest_problems, runspec_problems
from nemotron_dagster.errors import ConfigError

_BLOCK = re.compile(r"(?ms)^# /// script\s*?$(?P<body>.*?)^# ///\s*?$")
_ID = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")


def load_step(directory: Path, root: Path) -> Step:
    """The step in ``directory``, a folder somewhere below the ``steps/`` folder ``root``.

    Raises:
        ConfigError: the manifest or the runspec is not readable, naming the file and the key.
    """
    file = directory / "step.toml"
    path_id = directory.relative_to(root).as_posix()
    if not _ID.fullmatch(path_id):
        raise ConfigError(f"{file}: {path_id!r} is no step id. Name the folders with letters, digits, _ and - only.")
    doc = read_toml(file)
    for problem in manifest_problems(doc):
        raise ConfigError(f"{file}:{line_of(_text(file), problem)}: {problem.message}")
    step = doc["step"]
    step_id = str(step.get("id", path_id))
    if step_id != path_id:
        raise ConfigError(f"{file}: id {step_id!r} is not the folder's path. Set id = {path_id!r} or move the folder.")
    return Step(
        id=step_id,
        name=str(step.get("name", directory.name.replace("_", " ").title())),
        category=str(step.get("category", step_id.split("/", maxsplit=1)[0])),
        description=str(step.get("description", step.get("summary", ""))).strip(),
        directory=directory,
        tags=tuple(step.get("tags", ())),
        consumes=tuple(_port(t) for t in doc.get("consumes", ())),
        produces=tuple(_port(t) for t in doc.get("produces", ())),
        parameters=tuple(_parameter(t) for t in doc.get("parameters", ())),
        models=tuple(doc.get("models", ())),
        strategies=tuple(doc.get("strategies", ())),
        errors=tuple(doc.get("errors", ())),
        reference=doc.get("reference", {}),
        ready=step.get("payload", "ready") == "ready",
        env=str(step.get("env", "engine")),
        resumable=bool(step.get("resumable", False)),
        freeform=tuple(step.get("freeform", ())),
        runspec=read_runspec(directory / "step.py"),
    )


def read_toml(file: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: missing, unreadable or malformed, with the parser's line and column.
    """
    try:
        return tomllib.loads(_text(file))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file}: is not valid TOML: {e}. Mend that line.") from e


def read_runspec(script: Path) -> Runspec | None:
    """The ``[tool.runspec]`` of a step.py (PEP 723 block), or None where there is no step.py.

    Raises:
        ConfigError: the block is missing or malformed.
    """
    if not script.is_file():
        return None
    text = _text(script)
    spec = runspec_table(script, text)
    for problem in runspec_problems(spec):
        raise ConfigError(f"{script}:{line_of(text, problem)}: {problem.message}")
    run, config, resources = spec.get("run", {}), spec.get("config", {}), spec.get("resources", {})
    return Runspec(
        name=spec.get("name", ""),
        image=spec.get("image"),
        launch=run.get("launch", "torchrun"),
        cmd=run.get("cmd"),
        workdir=run.get("workdir"),
        config_dir=(script.parent / config.get("dir", "./config")),
        default_config=config.get("default", "default"),
        nodes=resources.get("nodes", 1),
        gpus_per_node=resources.get("gpus_per_node", 8),
    )


def runspec_table(script: Path, text: str) -> dict[str, Any]:
    """The ``[tool.runspec]`` table as it is written.

    Raises:
        ConfigError: no such block, or not TOML.
    """
    match = _BLOCK.search(text)
    if not match:
        raise ConfigError(f"{script}: has no `# /// script` block. Add one with a [tool.runspec] table.")
    body = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in match["body"].splitlines())
    try:
        tool = tomllib.loads(body).get("tool")
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{script}: its `# /// script` block is not valid TOML: {e}. Mend that line.") from e
    spec = tool.get("runspec") if isinstance(tool, dict) else None
    if not isinstance(spec, dict):
        raise ConfigError(f"{script}: its `# /// script` block has no [tool.runspec] table. Add one.")
    return spec


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read ({e.strerror}). Check the path and its permissions.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {e.start}). Save it as UTF-8.") from e


def _port(table: dict[str, Any]) -> Port:
    return Port(
        name=table.get("name", table["type"]),
        type=table["type"],
        required=table.get("required", True),
        description=table.get("description", "").strip(),
        bind=table.get("bind"),
        source=table.get("from"),
        path=table.get("path", "."),
        suffix=table.get("suffix", ""),
    )


def _parameter(table: dict[str, Any]) -> Parameter:
    return Parameter(
        name=table["name"],
        default=table.get("default"),
        description=table.get("description", "").strip(),
        choices=tuple(table.get("choices", ())),
    )
