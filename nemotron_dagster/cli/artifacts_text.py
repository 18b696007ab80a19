"""Artifacts as text, JSON and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from nemotron_dagster.errors import NemotronError

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.collect import Leftover
    from nemotron_dagster.artifacts.inventory import Version

_GAP = "  "
_FILES_SHOWN = 20
_SLOW = 2.0  # seconds before progress is worth a line
_EVERY = 10.0


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def figures(version: Version) -> dict[str, Any]:
    """The headline figures; what the manifest counts, where the type's module is not to be had."""
    from nemotron_dagster.artifacts import describe

    if version.ref is None:
        return {}
    try:
        return describe.summary(version.ref)
    except (NemotronError, KeyError, TypeError, ValueError, AttributeError):
        return dict(version.ref.manifest.counts)


def row(version: Version) -> dict[str, Any]:
    """One line of ``ls --json``."""
    manifest = version.ref.manifest if version.ref else None
    return {
        "asset": "/".join(version.asset),
        "partition": version.partition,
        "version": version.name,
        "current": version.current,
        "type": manifest.type if manifest else None,
        "created": version.created or None,
        "bytes": version.bytes,
        "figures": figures(version),
        "uri": version.uri,
        "problem": version.problem or None,
    }


def listing(versions: Sequence[Version]) -> list[str]:
    """One line per version."""
    head = ("ASSET", "", "VERSION", "TYPE", "CREATED", "SIZE", "FIGURES")
    lines = []
    for v in versions:
        told = "  ".join(f"{k} {value(x)}" for k, x in list(figures(v).items())[:4])
        kind = v.ref.type if v.ref else "?"
        mark = "*" if v.current else ""
        asset = v.label.rpartition("@")[0]
        created = v.created[:19].replace("T", " ")
        lines.append((asset, mark, v.name, kind, created, size(v.bytes), v.problem.split("\n")[0] or told))
    return table(head, lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return [_GAP.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (head, *rows)]


def value(found: Any) -> str:
    if isinstance(found, bool) or found is None:
        return "-" if found is None else str(found).lower()
    if isinstance(found, int):
        return f"{found:,}"
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def details(version: Version) -> dict[str, Any]:
    """All of ``show --json``."""
    from nemotron_dagster.artifacts import describe

    ref = version.ref
    assert ref is not None
    return {
        **row(version),
        "path": str(ref.path),
        "manifest_sha256": ref.digest,
        "tables": describe.tables(ref),
        "samples": describe.samples(ref),
        "columns": [dict(zip(("name", "type", "description"), c, strict=True)) for c in describe.columns(ref)],
        "pictures": [f"{ref.folder}/{p}" for p in ref.manifest.facts.get("pictures", [])],
        "manifest": vars(ref.manifest),
    }


def page(version: Version) -> list[str]:
    """All that is known of a version, for reading."""
    from nemotron_dagster.artifacts import describe

    ref = version.ref
    assert ref is not None
    m = ref.manifest
    about = {
        "version": f"{version.name}{'  (current)' if version.current else ''}",
        "created": f"{m.created} by {m.producer}{f' -c {m.config}' if m.config else ''}",
        "path": str(ref.path),
        "files": f"{len(m.files):,}, {size(m.bytes)}",
        "content": m.content,
        "manifest": ref.digest,
        "code": m.code_digest,
        "config digest": m.config_digest,
        "tokenizer": m.tokenizer,
        "chat template": m.chat_template,
        "sequence length": m.sequence_length,
        "job": "  ".join(str(m.job[k]) for k in ("target", "key", "directory") if m.job.get(k)),
    }
    out = [f"── {version.label.rpartition('@')[0]} — {ref.type} ──"]
    out += _block({k: v for k, v in about.items() if v})
    sections = {"Figures": _block({k: value(v) for k, v in figures(version).items()})}
    sections |= {title.capitalize(): text.splitlines() for title, text in describe.tables(ref).items()}
    sections["Columns"] = [f"{n}  {t}  {d}".rstrip() for n, t, d in describe.columns(ref)]
    sections["Samples"] = describe.samples(ref).splitlines()
    sections["Pictures"] = [f"{ref.folder}/{p}" for p in m.facts.get("pictures", [])]
    sections["Made from"] = [
        f"{e.get('port')}: {'/'.join(e.get('asset') or []) or 'given by the user'}  {e.get('uri')}" for e in m.inputs
    ]
    for title, lines in sections.items():
        if lines:
            out += ["", title, *(f"  {line}" for line in lines)]
    return out


def _block(pairs: dict[str, Any]) -> list[str]:
    width = max(map(len, pairs), default=0)
    return [f"{k.ljust(width)}  {v}" for k, v in pairs.items()]


def differences(old: Version, new: Version, found: dict[str, Any]) -> list[str]:
    """What differs, section by section."""
    out = [f"a  {old.label}  {old.created}", f"b  {new.label}  {new.created}"]
    for section in ("about", "config", "inputs", "figures"):
        if section in found:
            out += ["", section.capitalize()]
            out += [f"  {k}: {_side(a)} -> {_side(b)}{_delta(a, b)}" for k, (a, b) in found[section].items()]
    if "code" in found:
        out += ["", "Code", "  {} -> {}".format(*(d[:12] or "-" for d in found["code"]))]
    for what, names in found.get("files", {}).items():
        if names:
            out += ["", f"Files {what}: {len(names):,}", *(f"  {n}" for n in names[:_FILES_SHOWN])]
            out += [f"  … and {len(names) - _FILES_SHOWN:,} more"] if len(names) > _FILES_SHOWN else []
    return out if found else [*out, "", "No differences."]


def _side(found: Any) -> str:
    return value(found) if not isinstance(found, dict | list) else json.dumps(found, ensure_ascii=False, default=str)


def _delta(a: Any, b: Any) -> str:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if not numbers:
        return ""
    return f"  ({'+' if b >= a else ''}{value(b - a)})"


def removed(item: Version | Leftover) -> dict[str, Any]:
    """One thing that ``gc`` removed."""
    from nemotron_dagster.artifacts.collect import Leftover

    if isinstance(item, Leftover):
        return {"label": item.uri, "bytes": item.bytes, "what": item.what, "uri": item.uri}
    return {"label": item.label, "bytes": item.bytes, "what": "version", "uri": item.uri}


@contextmanager
def meter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress in bytes on stderr: a bar on a terminal, else a line now and then; nothing for short work."""
    began = told = time.monotonic()
    done = 0

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda n: progress.advance(task, n)
        return

    def tell(number: int) -> None:
        nonlocal done, told
        done += number
        now = time.monotonic()
        if now - began > _SLOW and now - told > _EVERY:
            told = now
            click.echo(f"{what}: {size(done)} of {size(total)}", err=True)

    yield tell
