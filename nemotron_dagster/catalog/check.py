"""Look at step folders and the type graph without running anything: what `nemotron steps check` finds in them."""

from __future__ import annotations

import ast
import graphlib
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Catalog, Step
from nemotron_dagster.catalog.fields import Table
from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.catalog.manifest import read_tables, runspec_table
from nemotron_dagster.catalog.own_types import declared
from nemotron_dagster.catalog.shape import Problem, line_of, manifest_problems, runspec_problems, toml_line
from nemotron_dagster.catalog.types import TypeGraph, load_types
from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.files import read_text, read_toml

FORBIDDEN = ("dagster", "nemotron_dagster", "nemo_run")
_IMAGE = re.compile(
    r"(?:[a-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?", re.A
)
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``level`` is ``error`` or ``warning``; ``step`` is "" for what belongs to no step."""

    file: str
    line: int
    level: str
    message: str
    step: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.level}: {' '.join(self.message.split())}"

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def of_error(error: ConfigError, file: Path, step: str = "") -> Finding:
    """An error's finding: its own file and line where its text begins with them, else ``file``."""
    text = str(error)
    told = re.match(r"(?P<file>/[^\n:]+?)(?: \(a base of (?P<by>/[^\n:]+)\))?:(?:(?P<line>\d+):)?(?:\d+:)? ", text)
    if told and told["by"]:
        return Finding(told["by"], 1, "error", f"defaults: {told['file']}: {text[told.end() :]}", step)
    if told:
        return Finding(told["file"], int(told["line"] or 1), "error", text[told.end() :], step)
    return Finding(str(file), 1, "error", text, step)


def check_types(files: list[Path], own: Path | None, catalog: Catalog) -> Iterator[Finding]:
    """The type graph of ``load_problem``: no circle, converters that exist and convert what they are named for."""
    modules = declared(own) if own else {}
    for name, module in modules.items():
        for target, step_id in module.convert_to.items():
            for problem in _converter(catalog, name, target, step_id):
                yield Finding(str(module.file), 1, "error", f"type {name}: {problem}")
    for file in files:
        text = read_text(file)
        for name, table in ((n, t) for n, t in read_toml(file).items() if n not in modules):
            for target, step_id in table.get("convert_to", {}).items():
                for problem in _converter(catalog, name, target, step_id):
                    yield _type(file, text, name, "convert_to", problem)
    try:
        graphlib.TopologicalSorter(catalog.types.parents).prepare()
    except graphlib.CycleError as e:
        name, problem = e.args[1][0], f"types are each other: {' -> '.join(e.args[1])}. Cut one is_a."
        if name in modules:
            yield Finding(str(modules[name].file), 1, "error", f"type {name}: {problem}")
        else:
            file = next(f for f in files if name in read_toml(f))
            yield _type(file, read_text(file), name, "is_a", problem)


def _type(file: Path, text: str, name: str, key: str, problem: str) -> Finding:
    return Finding(str(file), toml_line(text, name, key=key), "error", f"type {name}: {problem}")


def _no_type(types: TypeGraph, name: str) -> str:
    known = f" Types: {', '.join(sorted(types.parents))}."
    return f"no type {name!r}.{did_you_mean(name, types.parents) or known}"


def _converter(catalog: Catalog, name: str, target: str, step_id: str) -> Iterator[str]:
    if target not in catalog.types.parents:
        yield f"convert_to: {_no_type(catalog.types, target)}"
    elif step_id in catalog.broken:
        return  # reported where it is broken
    elif step_id not in catalog.steps:
        yield f"convert_to {target}: no step {step_id!r}.{did_you_mean(step_id, catalog.steps)} Name a step."
    else:
        step = catalog.steps[step_id]
        if not any(catalog.types.accepts(p.type, name) for p in step.consumes):
            yield f"convert_to {target}: {step_id} does not consume {name}. Name a step that does."
        if not any(catalog.types.accepts(target, p.type) for p in step.produces):
            yield f"convert_to {target}: {step_id} does not produce {target}. Name a step that does."


def stray_folders(roots: list[Path]) -> Iterator[Finding]:
    """Folders with a step.py and no step.toml: they are in no catalog, and nobody says so."""
    for root in roots:
        for script in sorted(root.glob("**/step.py")):
            inside = script.parent.relative_to(root)
            hidden = any(part.startswith(("_", ".")) for part in inside.parts)
            if not hidden and inside.parts and not (script.parent / "step.toml").exists():
                message = (
                    "has no step.toml beside it, so it is no step. Write one, see docs/steps.md, or remove the folder."
                )
                yield Finding(str(script), 1, "error", message, inside.as_posix())


def broken_step(folder: Path, step_id: str, error: ConfigError) -> list[Finding]:
    """Everything that is wrong with the shape of a step that did not load; at least the error itself."""
    found = [of_error(error, folder / "step.toml", step_id)]
    lines = {(f.file, f.line) for f in found}
    for problem in _shape(folder, step_id):
        if (problem.file, problem.line) not in lines:
            found.append(problem)
    return found


def _shape(folder: Path, step_id: str) -> Iterator[Finding]:
    """What does not have the shape of a manifest or a runspec; nothing of a file that is not TOML at all."""
    file, script = folder / "step.toml", folder / "step.py"
    with suppress(ConfigError):
        doc = read_tables(file)
        yield from (_problem(file, doc, p, step_id) for p in manifest_problems(doc.values))
    with suppress(ConfigError):
        spec = runspec_table(script)
        yield from (_problem(script, spec, p, step_id) for p in runspec_problems(spec.values))


def _problem(file: Path, table: Table, problem: Problem, step_id: str) -> Finding:
    return Finding(str(file), line_of(table.text, problem, table.first_line), "error", problem.message, step_id)


def check_folder(step: Step, catalog: Catalog, families: set[str]) -> Iterator[Finding]:
    """What can be told of a loaded step from its manifest, runspec, payload and README.

    ``families`` are the payload environments that there are.
    """
    file = step.directory / "step.toml"
    text = read_text(file)
    yield from _shape(step.directory, step.id)

    def at(table: str, index: int, key: str, message: str, level: str = "error") -> Finding:
        return Finding(str(file), toml_line(text, table, index, key), level, message, step.id)

    if not step.description.strip():
        yield at("step", 0, "description", "has no description. `nemotron steps list` shows its first line.", "warning")
    if step.env not in families:
        known = ", ".join(sorted(families))
        yield at(
            "step", 0, "env", f"no payload environment {step.env!r}.{did_you_mean(step.env, families)} Known: {known}."
        )
    for kind, ports in (("consumes", step.consumes), ("produces", step.produces)):
        for i, port in enumerate(ports):
            if port.bind is None:
                yield at(kind, i, "", f"{kind} {port.name}: has no bind. Name the config key that carries the path.")
            if kind == "consumes" and port.source:
                yield from (at(kind, i, "from", m) for m in _source(catalog, port.source, port.type))
    for i, parameter in enumerate(step.parameters):
        if sum(p.name == parameter.name for p in step.parameters[:i]):
            yield at("parameters", i, "name", f"parameter {parameter.name} is described twice. Drop one.")
        choices = [_word(c) for c in parameter.choices]
        if choices and parameter.default is not None and _word(parameter.default) not in choices:
            told = f"parameter {parameter.name}: default {parameter.default!r} is none of its choices"
            yield at("parameters", i, "default", f"{told} ({', '.join(choices)}). Add it or mend it.")
    for i, error in enumerate(step.errors):
        for name in error.get("check", ()):
            kind, colon, port = name.partition(":")
            if colon and port not in {p.name for p in step.consumes}:
                hint = did_you_mean(port, [p.name for p in step.consumes])
                yield at("errors", i, "check", f"{kind}: the step consumes no {port!r}.{hint}")
            elif name in LOCKS and not any(name in p.locks for p in step.consumes):
                yield at("errors", i, "check", f"no port has the lock {name!r}. Add it to the port's locks.")
    for name in ("errors", "models"):
        rows = [row.get("name") for row in getattr(step, name)]
        for i, row in enumerate(rows):
            if row is not None and row in rows[:i]:
                yield at(name, i, "name", f"[[{name}]] {row!r} is there twice. Drop one.")
    if not (step.directory / "README.md").is_file():
        yield Finding(
            str(step.directory), 1, "warning", "has no README.md. Say what it does and how to run it.", step.id
        )
    yield from _check_script(step)
    yield from _check_runspec(step)


def _source(catalog: Catalog, source: str, wanted: str) -> Iterator[str]:
    if source in catalog.broken:
        yield f"from: {source} is there, but broken. Mend it."
    elif source not in catalog.steps:
        yield f"from: no step {source!r}.{did_you_mean(source, catalog.steps)} `nemotron steps list` prints the ids."
    else:
        offered = catalog.steps[source].produces[0].type
        if not catalog.types.accepts(wanted, offered):
            yield f"from: {source} makes {offered}, which is no {wanted}. Name a producer of {wanted}."


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_script(step: Step) -> Iterator[Finding]:
    """The payload compiles, imports nothing of the engine, and is as whole as the manifest says."""
    if step.runspec is None:
        yield Finding(
            str(step.directory), 1, "error", "has no step.py, so it cannot run. Add one, see docs/steps.md.", step.id
        )
        return
    for file in sorted(p for p in step.directory.rglob("*.py") if "__pycache__" not in p.parts):
        try:
            source = read_text(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source, str(file))
                compile(source, str(file), "exec", dont_inherit=True)
        except SyntaxError as e:
            yield Finding(str(file), e.lineno or 1, "error", f"is not valid Python: {e.msg}. Mend that line.", step.id)
            continue
        except ConfigError as e:
            yield of_error(e, file, step.id)
            continue
        except ValueError as e:  # NUL bytes
            yield Finding(str(file), 1, "error", f"cannot be read as Python ({e}). Mend it.", step.id)
            continue
        for name, line in _imports(tree):
            if name.partition(".")[0] in FORBIDDEN:
                message = f"imports {name}; a payload is shipped without the engine. Use _runtime.payload instead."
                yield Finding(str(file), line, "error", message, step.id)
        if file == step.script:
            yield from _ending(step, tree)


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno


def _ending(step: Step, tree: ast.Module) -> Iterator[Finding]:
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    refusals = [c for c in calls if _called(c) == "not_built"]
    file = str(step.script)
    if step.ready:
        for call in refusals:
            message = 'ends in payload.not_built, but the manifest says payload = "ready". Say "planned" there.'
            yield Finding(file, call.lineno, "error", message, step.id)
        return
    last = tree.body[-1] if tree.body else None
    if not refusals or last is None or not any(n is refusals[-1] for n in ast.walk(last)):
        line = getattr(last, "lineno", 1)
        message = f"the step is planned, so its step.py must end in payload.not_built({step.id!r}). Write that."
        yield Finding(file, line, "error", message, step.id)
    for call in refusals:
        named = [a.value for a in call.args if isinstance(a, ast.Constant)]
        if named != [step.id]:
            yield Finding(file, call.lineno, "error", f"payload.not_built names {named}. Write {step.id!r}.", step.id)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _check_runspec(step: Step) -> Iterator[Finding]:
    spec = step.runspec
    if spec is None:
        return
    written = runspec_table(step.script)

    def at(table: str, key: str, message: str, level: str = "error") -> Finding:
        line = toml_line(written.text, f"tool.runspec{table}", 0, key, written.first_line)
        return Finding(str(step.script), line, level, message, step.id)

    if spec.name and spec.name != f"steps/{step.id}":
        yield at("", "name", f"runspec name {spec.name!r} is not 'steps/{step.id}'. Set it to that.", "warning")
    if spec.image is not None and not _IMAGE.fullmatch(spec.image):
        yield at("", "image", f"{spec.image!r} is no container image. Write registry/name:tag.")
    for name in _PLACEHOLDER.findall(spec.cmd or ""):
        if name not in ("script", "config"):
            yield at(".run", "cmd", f"cmd has {{{name}}}; only {{script}} and {{config}} are filled in. Mend it.")
    if not spec.config_dir.is_dir():
        yield at(
            ".config", "dir", f"no config folder {spec.config_dir}. Make it, with {spec.default_config}.yaml in it."
        )
    elif spec.default_config not in step.configs:
        hint = did_you_mean(spec.default_config, step.configs)
        yield at(
            ".config",
            "default",
            f"no config {spec.default_config!r} in {spec.config_dir}.{hint} Add it or name another.",
        )


def load_problem(files: list[Path], own: Path | None) -> Finding | None:
    """Why the type graph of the ``types.toml`` files and the modules in the folder ``own`` does not load at all."""
    try:
        load_types(files, own)
    except ConfigError as e:
        return of_error(e, files[0])
    return None
