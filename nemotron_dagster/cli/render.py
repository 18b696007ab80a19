"""``steps show`` as text."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from nemotron_dagster.catalog import Port, Step


def print_step(step: Step) -> None:
    """The whole of a step, for a person."""
    out = Console(highlight=False)
    out.rule(f"{step.id} — {escape(step.name)}")
    out.print(str(step.directory), style="dim", markup=False)
    out.print(step.description, markup=False)
    if not step.ready:
        out.print("The payload of this step is not built yet; running it exits with code 9.", style="yellow")
    _section(out, "Consumes", [_port(p) for p in step.consumes])
    _section(out, "Produces", [_port(p) for p in step.produces])
    parameters = []
    for p in step.parameters:
        default = f" (default={p.default})" if p.default is not None else ""
        choices = f" (choices: {', '.join(map(str, p.choices))})" if p.choices else ""
        parameters.append(f"{p.name}{default}{choices} — {p.description}")
    _section(out, "Parameters", parameters)
    _section(out, "Configs", list(step.configs))
    _section(out, "Strategies", [f"{s.get('when', '')}: {s.get('then', '')}" for s in step.strategies])
    _section(out, "Errors", [f"{e.get('name', '')}: {e.get('recovery', '')}" for e in step.errors])
    if (r := step.runspec) is not None:
        out.print("\n[bold]Runspec")
        rows = {
            "launch": r.launch,
            "image": r.image or "-",
            "resources": f"nodes={r.nodes} gpus_per_node={r.gpus_per_node}",
            "config dir": str(r.config_dir.resolve()),
            "default config": r.default_config,
        }
        for key, value in rows.items():
            out.print(f"  {key}: {value}", markup=False)


def _port(p: Port) -> str:
    return f"{p.type}{'' if p.required else ' (optional)'} — {p.description}"


def _section(out: Console, title: str, lines: list[str]) -> None:
    if lines:
        out.print(f"\n[bold]{title}")
        for line in lines:
            out.print(f"  • {line}", markup=False)
