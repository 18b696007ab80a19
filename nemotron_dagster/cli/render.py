"""Steps as text and as JSON, with the standard library only: a command that lists must not load a layout engine.

Ids are never folded or cut. Into a pipe each step is one line, unless COLUMNS says how wide to be.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from nemotron_dagster.catalog import Port, Step
from nemotron_dagster.cli.configs import ConfigFacts

_GAP = "  "
_WIDE = 1 << 16  # where nothing limits the width
_TITLES = {
    "byob": "Bring Your Own Benchmark",
    "convert": "Conversion",
    "curate": "Data Curation",
    "data_prep": "Data Preparation",
    "env": "Environment Profiles",
    "eval": "Evaluation",
    "optimize": "Model Optimization",
    "peft": "Parameter-Efficient Fine-Tuning",
    "pretrain": "Pretraining",
    "rl": "Reinforcement Learning",
    "sft": "Supervised Fine-Tuning",
    "sdg": "Synthetic Data Generation",
    "translate": "Translation",
}


def width() -> int:
    """Columns to fill: COLUMNS, else the terminal's, else no limit."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return max(shutil.get_terminal_size().columns, 20)
    return _WIDE


def table(steps: Sequence[Step], columns: int) -> list[str]:
    """One row per step; where the descriptions do not fit beside them, below; on a narrow screen all of it below."""
    head = ("ID", "Category", "Consumes", "Produces", "Description")
    rows = [
        (s.id, s.category, ", ".join(map(_short, s.consumes)), ", ".join(p.type for p in s.produces), s.summary)
        for s in steps
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(5)]
    out = [_strong("Available Steps"), ""]
    if sum(widths) + 4 * len(_GAP) <= columns:
        out.append(_strong(_row(head, widths)))
        return [*out, *(_row(row, widths) for row in rows)]
    cells = [(row[0], row[1], _per_line(row[2]), _per_line(row[3])) for row in rows]
    for i in (2, 3):
        widths[i] = max(len(head[i]), *(len(line) for row in cells for line in row[i]))
    if sum(widths[:4]) + 3 * len(_GAP) <= columns:
        out.append(_strong(_row(head[:4], widths)))
        for row, (name, category, consumes, produces) in zip(rows, cells, strict=True):
            for line in zip_longest([name], [category], consumes, produces, fillvalue=""):
                out.append(_row(line, widths))
            out += _fold(row[4], columns, "    ")
        return out
    for row in rows:
        types = f"{row[2]} -> {row[3]}" if row[2] else f"makes {row[3]}"
        out += [_strong(row[0]), *_fold(row[4], columns, "    "), *_fold(types, columns, "    ")]
    return out


def tree(steps: Sequence[Step], columns: int) -> list[str]:
    """The steps below their categories."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.category, []).append(step)
    out = ["Available Steps"]
    for n, (category, members) in enumerate(groups.items(), 1):
        last_group = n == len(groups)
        title = f"{category} — {_TITLES.get(category, category.title())}"
        out += _fold(title, columns, "    " if last_group else "│   ", "└── " if last_group else "├── ")
        for m, step in enumerate(members, 1):
            last = m == len(members)
            stem = "    " if last_group else "│   "
            bar = f"{stem}{' ' if last else '│'}       "
            line = f"{stem}{'└' if last else '├'}── {step.id}"
            if len(line) + len(_GAP) + len(step.summary) <= columns:
                out.append(f"{line}{_GAP}{step.summary}")
            else:
                out += [line, *_fold(step.summary, columns, bar)]
    return out


def page(step: Step, facts: Iterable[ConfigFacts], columns: int) -> list[str]:
    """The whole of a step."""
    out = [_strong(f"── {step.id} — {step.name} ──"), str(step.directory)]
    for paragraph in step.description.splitlines():
        out += _fold(paragraph, columns, "")
    if not step.ready:
        text = "Planned: the payload of this step is not built yet; running it exits with code 9."
        out += _fold(text, columns, "")
    parameters = []
    for p in step.parameters:
        default = f" (default={p.default})" if p.default is not None else ""
        choices = f" (choices: {', '.join(map(str, p.choices))})" if p.choices else ""
        parameters.append(f"{p.name}{default}{choices} — {p.description}")
    sections: dict[str, list[str]] = {
        "Consumes": [_port(p) for p in step.consumes],
        "Produces": [_port(p) for p in step.produces],
        "Parameters": parameters,
        "Configs": [_config(f) for f in facts],
        "Strategies": [f"{s.get('when', '')}: {s.get('then', '')}" for s in step.strategies],
        "Errors": [f"{e.get('name', '')}: {e.get('recovery', '')}" for e in step.errors],
    }
    for title, lines in sections.items():
        out += ["", _strong(title)] if lines else []
        for line in lines:
            out += _fold(line, columns, "    ", "  • ")
    if (r := step.runspec) is not None:
        out += ["", _strong("Runspec")]
        out += [f"  launch: {r.launch}", f"  image: {r.image or '-'}"]
        out += [f"  resources: nodes={r.nodes} gpus_per_node={r.gpus_per_node}"]
        out += [f"  config dir: {r.config_dir.resolve()}", f"  default config: {r.default_config}"]
    return out


def pretty(value: Any) -> str:
    """The text of ``json.dumps(value, indent=2)``, three times as fast; not only ASCII where stdout can carry it."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return _json(value, "\n", encode_basestring if encoding == "utf8" else encode_basestring_ascii)


def _json(value: Any, newline: str, text: Any) -> str:
    kind = type(value)
    if kind is str:
        return str(text(value))
    deeper = newline + "  "
    if kind is dict and value:
        rows = [f"{text(str(k))}: {text(v) if type(v) is str else _json(v, deeper, text)}" for k, v in value.items()]
        return f"{{{deeper}{f',{deeper}'.join(rows)}{newline}}}"
    if (kind is list or kind is tuple) and value:
        return f"[{deeper}{f',{deeper}'.join([_json(v, deeper, text) for v in value])}{newline}]"
    if value is None or kind is bool:
        return {None: "null", True: "true", False: "false"}[value]
    return json.dumps(value, default=str) if value or kind is not tuple else "[]"


def _config(f: ConfigFacts) -> str:
    if f.problem:
        return f"{f.name} — cannot be read: {f.problem}"
    need = "no GPU" if f.gpus_per_node == 0 else f"{f.nodes} x {f.gpus_per_node} GPUs"
    if f.gpus_per_node == 0 and f.nodes != 1:
        need = f"{f.nodes} nodes, no GPU"
    others = [e for e in f.executors if e != "local"]
    runs = [f"local ({f.local})" if f.local else "", ", ".join(others)]
    where = f" Targets: {', '.join(filter(None, runs))}."
    profiles = f" Profiles: {', '.join(f.profiles)}." if f.profiles else ""
    return f"{f.name} — {f.purpose or 'No comment says what it is for.'} Needs {need}.{where}{profiles}"


def _short(p: Port) -> str:
    return p.type if p.required else f"{p.type}?"


def _port(p: Port) -> str:
    return f"{p.type}{'' if p.required else ' (optional)'} — {p.description}"


def _per_line(types: str) -> list[str]:
    return types.replace(", ", ",\n").split("\n")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell.ljust(w) for cell, w in zip(cells, widths, strict=False)).rstrip()


def _fold(text: str, columns: int, indent: str, first: str | None = None) -> list[str]:
    first = indent if first is None else first
    if len(first) + len(text) <= columns and "\n" not in text:
        return [first + text] if text else []
    return textwrap.wrap(
        text, columns, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _strong(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
