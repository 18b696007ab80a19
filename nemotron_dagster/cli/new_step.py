"""``nemotron steps new``: a step folder that is an asset at once and, where it makes JSONL, runs at once."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemotron_dagster.errors import ArtifactError, PreflightError, UsageError

if TYPE_CHECKING:
    from nemotron_dagster.catalog import Catalog
    from nemotron_dagster.project import Project

_CHAT = "training_jsonl"  # what every JSONL type is one of


@dataclass(frozen=True)
class Plan:
    """What is to be written."""

    id: str
    summary: str
    consumes: tuple[str, ...]
    produces: str
    launch: str
    jsonl_in: str | None  # the consumed type that the payload reads
    jsonl_out: bool


@click.command("new", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("step_id", metavar="CATEGORY/NAME")
@click.option("--consumes", multiple=True, metavar="TYPE", help="An artifact type that it reads; may be repeated.")
@click.option("--produces", metavar="TYPE", help="The artifact type that it makes (default: training_jsonl).")
@click.option("--launch", type=click.Choice(["python", "torchrun", "ray"]), default="python", show_default=True)
@click.option("--description", help="One sentence, shown by `steps list`.")
@click.option("--override", is_flag=True, help="Replace the bundled step of this id in this project.")
def new(
    step_id: str, consumes: tuple[str, ...], produces: str | None, launch: str, description: str | None, override: bool
) -> None:
    """Add a step to this project's steps/: its manifest, payload, configs and README."""
    from nemotron_dagster.catalog import load_catalog
    from nemotron_dagster.cli.names import check_step_id
    from nemotron_dagster.project import find_project

    project = find_project()
    if project.root is None:
        raise UsageError("no project here, so there is no steps/ to add to. Make one: nemotron init my_project")
    check_step_id(step_id)
    catalog = load_catalog(project)
    replaced = catalog.steps.get(step_id)
    _refuse_taken(project, catalog, step_id, override)
    if replaced is not None and not consumes and produces is None:  # its place in pipelines is kept
        consumes = tuple(dict.fromkeys(p.type for p in replaced.consumes))
        produces = replaced.produces[0].type
    plan = _plan(catalog, step_id, consumes, produces or _CHAT, launch, description)
    _refuse_mismatch(catalog, plan)
    folder = project.root / "steps" / step_id
    _write(folder, step_files(plan))
    _tell(plan, folder)


def _refuse_taken(project: Project, catalog: Catalog, step_id: str, override: bool) -> None:
    assert project.root is not None
    own = project.root / "steps"
    if (own / step_id).exists() or (own / step_id).is_symlink():
        raise UsageError(f"{own / step_id}: exists already. Choose another id, or remove that folder first.")
    known = {*catalog.steps, *catalog.broken}
    if step_id in known and not override:
        raise UsageError(f"{step_id} is a bundled step. Choose another id, or replace it in this project: --override")
    if override and step_id not in known:
        raise UsageError(f"--override: there is no bundled step {step_id}. Leave --override out.")
    for other in sorted(known - {step_id}):
        if other.startswith(step_id + "/") or step_id.startswith(other + "/"):
            raise UsageError(f"{step_id}: a step's folder cannot lie in another's, and {other} is a step. Rename it.")
        if other.replace("/", "__").replace("-", "_") == step_id.replace("/", "__"):
            raise UsageError(f"{step_id}: has the same name in Dagster as {other}. Choose another id.")


def _plan(
    catalog: Catalog, step_id: str, consumes: tuple[str, ...], produces: str, launch: str, description: str | None
) -> Plan:
    types = catalog.types
    for option, name in [*(("--consumes", c) for c in consumes), ("--produces", produces)]:
        if name not in types.parents:
            from nemotron_dagster.errors import did_you_mean

            known = f" Types: {', '.join(sorted(types.parents))}."
            raise UsageError(f"{option} {name}: no artifact type.{did_you_mean(name, types.parents) or known}")
    if len(set(consumes)) < len(consumes):
        raise UsageError("--consumes: a type is named twice. Name it once; give further ports names in step.toml.")
    name = step_id.rpartition("/")[2].replace("_", " ")
    summary = " ".join((description or f"{name[0].upper()}{name[1:]}: to be described.").split())
    if not summary.isprintable() or any(c in summary for c in '"\\'):
        raise UsageError('--description: has " or \\ or a control character. Write a plain sentence.')
    jsonl = [c for c in consumes if types.accepts(_CHAT, c)]
    makes_jsonl = types.accepts(_CHAT, produces)
    return Plan(step_id, summary, consumes, produces, launch, jsonl[0] if jsonl and makes_jsonl else None, makes_jsonl)


def _refuse_mismatch(catalog: Catalog, plan: Plan) -> None:
    """A replaced step keeps feeding whoever names it as the default producer."""
    for step in catalog.steps.values():
        for port in step.consumes:
            if port.source == plan.id and not catalog.types.accepts(port.type, plan.produces):
                raise UsageError(
                    f"--produces {plan.produces}: {step.id} takes {port.type} from {plan.id}. Produce {port.type}."
                )


def step_files(plan: Plan) -> dict[str, str]:
    """Path -> text of the files in the step's folder."""
    from nemotron_dagster.cli.templates import fill

    name = plan.id.rpartition("/")[2].replace("_", " ").capitalize()
    runs = plan.jsonl_out
    asks = f"; needs {' and '.join(plan.consumes)}" if plan.jsonl_in or (plan.consumes and not runs) else ""
    state = (
        "" if runs else f"\nIts payload is not written yet: until `main` makes a {plan.produces}, it refuses to run.\n"
    )
    words = {
        "id": plan.id,
        "name": name,
        "summary": plan.summary,
        "launch": plan.launch,
        "gpus": "1" if plan.launch == "torchrun" else "0",
        "produces": plan.produces,
        "input": plan.jsonl_in or "",
        "guard": _guard(plan),
        "asks": asks,
        "state": state,
    }
    body = "unwritten" if not runs else "change_rows" if plan.jsonl_in else "make_rows"
    imports = {
        "unwritten": ["import sys"],
        "make_rows": ["import json", "import sys"],
        "change_rows": ["import json", "import sys", "from collections.abc import Iterator"],
    }[body]
    words["imports"] = "\n".join([*imports, "from pathlib import Path", "from typing import Any"])
    words["body"] = fill(f"step/{body}.tmpl", words)
    files = {
        "step.toml": _manifest(plan, name),
        "step.py": fill("step/step.py.tmpl", words),
        "config/default.yaml": _config(plan, tiny=False),
        "config/tiny.yaml": _config(plan, tiny=True),
        "README.md": fill("step/README.md.tmpl", words),
    }
    if plan.jsonl_in:
        files["data/tiny.jsonl"] = _rows()
    return files


def _guard(plan: Plan) -> str:
    """Refuse an input that the generated payload cannot read, rather than leave it out."""
    return "".join(
        f'    if cfg["{name}"] is not None:\n'
        f'        raise payload.PayloadError("payload_unwritten", "{plan.id}: reading a {name} is not written yet")\n'
        for name in plan.consumes
    )


def _manifest(plan: Plan, name: str) -> str:
    lines = [
        "[step]",
        f'id = "{plan.id}"',
        f'name = "{name}"',
        f'category = "{plan.id.partition("/")[0]}"',
        f'description = """{plan.summary}"""',
        f'tags = ["{plan.id.partition("/")[0]}"]',
        'payload = "ready"',
        'env = "engine"',
    ]
    for consumed in plan.consumes:
        lines += ["", "[[consumes]]", f'type = "{consumed}"', f'description = "What the step reads: a {consumed}."']
        if not _needed(plan, consumed):
            lines.append("required = false  # the generated payload does not read it yet")
        lines.append(f'bind = "{consumed}"')
    described = f'description = "What the step makes: a {plan.produces}."'
    lines += ["", "[[produces]]", f'type = "{plan.produces}"', described, 'bind = "output_dir"']
    if plan.jsonl_out and not plan.jsonl_in:
        lines += ["", "[[parameters]]", 'name = "rows"', 'description = "How many rows it writes."', "default = 100"]
    told = {
        "input_missing": "Give a .jsonl file or a directory of them.",
        "input_invalid": "Mend or drop the row that the message names.",
    }
    if not plan.jsonl_in:
        told = (
            {"payload_unwritten": "Write that part of main in step.py."} if plan.consumes or not plan.jsonl_out else {}
        )
    for error, recovery in told.items():
        lines += ["", "[[errors]]", f'name = "{error}"', f'recovery = "{recovery}"']
    return "\n".join(lines) + "\n"


def _needed(plan: Plan, consumed: str) -> bool:
    return consumed == plan.jsonl_in or not plan.jsonl_out


def _config(plan: Plan, tiny: bool) -> str:
    lines = ["# A second on any machine, offline."] if tiny else [f"# {plan.summary}"]
    if tiny and plan.launch == "torchrun":
        lines += ["run:", "  env:", "    gpus_per_node: 0", "    nproc_per_node: 1", ""]
    for consumed in plan.consumes:
        if consumed == plan.jsonl_in:
            value = "${oc.env:NEMOTRON_STEP_DIR}/data/tiny.jsonl" if tiny else "???"
        else:
            value = "null" if tiny or plan.jsonl_out else "???"
        lines.append(f"{consumed}: {value}")
    lines.append("output_dir: ./output")
    if plan.jsonl_out and not plan.jsonl_in:
        lines.append(f"rows: {3 if tiny else 100}")
    return "\n".join(lines) + "\n"


def _rows() -> str:
    def row(i: int) -> str:
        messages = [("user", f"What comes after {i}?"), ("assistant", f"After {i} comes {i + 1}.")]
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in messages]})

    return "".join(f"{row(i)}\n" for i in range(3))


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write the folder whole: beside its place, then by one rename; after an error nothing is left."""
    from nemotron_dagster.cli.scaffold import remove, write_files

    staged: Path | None = None
    made: list[Path] = []
    try:
        for parent in reversed(folder.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        staged = Path(tempfile.mkdtemp(prefix=".new.", dir=folder.parent))
        write_files(staged, files)
        staged.chmod(folder.parent.stat().st_mode & 0o777)
        os.rename(staged, folder)
    except BaseException as e:
        if staged is not None:
            remove(staged)
        for parent in reversed(made):
            parent.rmdir()
        if isinstance(e, OSError):
            raise PreflightError(f"{folder}: cannot be written ({e.strerror}). Check its permissions.") from e
        raise


def _tell(plan: Plan, folder: Path) -> None:
    from nemotron_dagster.artifacts import artifact_type
    from nemotron_dagster.cli.scaffold import tree

    click.echo(f"{plan.id} is in {folder}")
    click.echo("\n".join(f"    {line}" for line in tree(step_files(plan))))
    try:
        artifact_type(plan.produces)
    except ArtifactError as e:
        click.echo(f"Before it can run: {e}")
    if plan.jsonl_out:
        click.echo("What it is for, you write in step.py; it runs as it is:")
        click.echo(f"    nemotron steps run {plan.id} -c tiny")
    else:
        click.echo(f"Its payload refuses to run until main in step.py makes a {plan.produces}. Then:")
        click.echo(f"    nemotron steps run {plan.id} -c tiny")
    click.echo(f"    nemotron steps check {plan.id}")
