"""JSON lines: ``raw_jsonl`` and its kin (any objects), ``training_jsonl`` (chat rows).

Layout: one file, a directory of ``*.jsonl`` (also ``.gz``, ``.zst``), or a glob of them.
"""

from __future__ import annotations

import glob
import gzip
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import json_block
from nemotron_dagster.errors import ArtifactError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SHOWN = 20


def files(path: Path | str) -> list[Path]:
    """The JSONL files of an artifact path, in name order.

    Raises:
        ArtifactError: nothing there.
    """
    text = str(path)
    if glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise ArtifactError(f"{text}: matches no file. Check the pattern.")
        return found
    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.name.find(".jsonl") > 0)
        if not found:
            raise ArtifactError(f"{path}: is a directory without *.jsonl files. Name the file or the right directory.")
        return found
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or directory. Check the path.")
    return [path]


def _lines(file: Path) -> Iterator[bytes]:
    if file.name.endswith(".gz"):
        with gzip.open(file, "rb") as f:
            yield from f
    elif file.name.endswith(".zst"):
        import zstandard

        with open(file, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield from io.BufferedReader(stream)
    else:
        with open(file, "rb", buffering=1 << 20) as f:
            yield from f


def validate(path: Path | str, chat: bool) -> dict[str, Any]:
    """Read every row.

    Returns:
        Facts: rows, files, roles (chat), samples (up to 5 rows), lengths (histogram of bytes per row,
        first 100,000).

    Raises:
        ArtifactError: naming file and line of each bad row, up to 20, and how many more.
    """
    import orjson

    rows = wrong = 0
    problems: list[str] = []
    roles: Counter[str] = Counter()
    samples: list[Any] = []
    lengths: list[int] = []
    found = files(path)
    for file in found:
        try:
            for number, line in enumerate(_lines(file), 1):
                if not line.strip():
                    continue
                rows += 1
                try:
                    row = orjson.loads(line)
                    problem = _problem(row, chat)
                except orjson.JSONDecodeError as e:
                    row, problem = None, f"is not JSON ({e})"
                if problem:
                    wrong += 1
                    if len(problems) < SHOWN:
                        problems.append(f"{file}:{number}: {problem}")
                    continue
                if len(samples) < 5:
                    samples.append(row)
                if len(lengths) < 100_000:
                    lengths.append(len(line))
                if chat:
                    roles.update(m["role"] for m in row["messages"])
        except (OSError, EOFError) as e:
            raise ArtifactError(f"{file}: cannot be read ({e}). It may be truncated; make it again.") from e
    if problems:
        more = f"\n… and {wrong - len(problems)} more" if wrong > len(problems) else ""
        raise ArtifactError("\n".join(problems) + more + f"\n{wrong} of {rows} rows are wrong. Mend or remove them.")
    if not rows:
        raise ArtifactError(f"{path}: has no rows. Check what wrote it.")
    facts: dict[str, Any] = {"rows": rows, "files": len(found), "samples": samples, "lengths": _histogram(lengths)}
    if chat:
        facts["roles"] = dict(roles.most_common())
    return facts


def _problem(row: Any, chat: bool) -> str | None:
    """What is wrong with a row, with the fix; None if nothing is."""
    if not isinstance(row, dict):
        return f"is a JSON {type(row).__name__}, not an object. Write one {{...}} per line"
    if not chat:
        return None
    messages = row.get("messages")
    if messages is None:
        return f"has no `messages` (it has {', '.join(list(row)[:6]) or 'nothing'}). Write OpenAI chat messages"
    if not isinstance(messages, list) or not messages:
        return "`messages` is not a non-empty list"
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or m.get("role") not in ROLES:
            return f"messages[{i}] has no role of {', '.join(ROLES)}"
        content = m.get("content")
        if not isinstance(content, str | list) and not (content is None and m.get("tool_calls")):
            return f"messages[{i}].content is neither text nor a list of parts"
    return None


def _histogram(values: list[int]) -> dict[str, list[int]]:
    low, width = min(values), max(1, -(-(max(values) + 1 - min(values)) // 50))
    counts = Counter((v - low) // width for v in values)
    last = max(counts)
    return {"edges": [low + i * width for i in range(last + 2)], "counts": [counts[i] for i in range(last + 1)]}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Rows and files."""
    return {k: facts[k] for k in ("rows", "files")}


def samples(facts: Mapping[str, Any]) -> str:
    """A few rows."""
    return json_block(facts.get("samples") or [])


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """The lengths of the rows."""
    from nemotron_dagster.artifacts import pictures

    return [pictures.histogram(facts["lengths"], "characters per row", "rows", folder / "lengths.png")]
