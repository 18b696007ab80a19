"""``benchmark_source_corpus``: the documents that a benchmark's questions are made from, by subject."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import json_block, table
from nemotron_dagster.artifacts.types import _files, _parallel, _questions
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._tally import SAMPLES, clipped, histogram
from nemotron_dagster.errors import ArtifactError

LAYOUT = (
    "A directory with, for each subject, a folder <subject> of .txt files in UTF-8, or <subject>.parquet with the "
    "columns file_name and text."
)


def validate(path: Path) -> dict[str, Any]:
    """Read every document.

    Returns:
        Facts: rows (documents), subjects (documents and characters of each), characters, lengths, samples.

    Raises:
        ArtifactError: naming the file or row that is no document.
    """
    (facts,) = _parallel.each(_validate, [path], 1, apart=True)
    return facts


def _validate(path: Path) -> dict[str, Any]:
    problems = Problems()
    subjects: dict[str, dict[str, int]] = {}
    lengths: Counter[int] = Counter()
    shown: list[Any] = []
    for subject, name, text in _documents(path, problems):
        one = subjects.setdefault(subject, {"documents": 0, "characters": 0})
        one["documents"] += 1
        one["characters"] += len(text)
        lengths[len(text)] += 1
        if len(shown) < SAMPLES:
            shown.append(clipped({"subject": subject, "file": name, "text": text}))
    problems.check("Mend or remove these.")
    if not subjects:
        raise ArtifactError(f"{path}: has no subject. Make a folder of .txt files, or a Parquet file, for each.")
    return {
        "rows": sum(s["documents"] for s in subjects.values()),
        "characters": sum(s["characters"] for s in subjects.values()),
        "subjects": subjects,
        "lengths": histogram(lengths),
        "samples": shown,
    }


def _documents(path: Path, problems: Problems) -> Iterator[tuple[str, str, str]]:
    """(subject, document, text)."""
    if not path.is_dir():
        raise ArtifactError(f"{path}: is no directory. Name the folder that has a folder or Parquet file per subject.")
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if any(name.endswith(".txt") for name in os.listdir(entry)):
                for file in _files.data_files(entry, (".txt",), problems):
                    text = _text(file, problems)
                    if text:
                        yield entry.name, file.name, text
        elif entry.suffix == ".parquet":
            yield from _parquet(entry, problems)


def _text(file: Path, problems: Problems) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        problems.add(f"{file}: is not UTF-8 text ({e}). Save it as UTF-8.")
        return ""
    if not text.strip():
        problems.add(f"{file}: holds only white space. Fill or delete it.")
        return ""
    return text


def _parquet(file: Path, problems: Problems) -> Iterator[tuple[str, str, str]]:
    for whole in _files.data_files(file, (".parquet",), problems):
        found = _questions.schema(whole)
        missing = [name for name in ("file_name", "text") if found and name not in found]
        if missing:
            problems.add(f"{whole}: has no column {', '.join(missing)} (it has {', '.join(list(found)[:6])}). Add it.")
            continue
        for number, row in enumerate(_questions.rows(whole, problems), 1):
            text = row["text"]
            if not isinstance(text, str) or not text.strip():
                problems.add(f"{whole}: row {number}: text is empty. Fill or remove it.")
            else:
                yield whole.stem, str(row["file_name"]), text


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Documents, subjects and characters."""
    return {"rows": facts["rows"], "subjects": len(facts["subjects"]), "characters": facts["characters"]}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Documents and characters per subject."""
    rows = [(name, s["documents"], s["characters"]) for name, s in facts["subjects"].items()]
    return {"subjects": table(("subject", "documents", "characters"), rows)}


def samples(facts: Mapping[str, Any]) -> str:
    """The beginnings of a few documents."""
    return json_block(facts.get("samples") or [])


def columns(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a document has."""
    return [("subject", "string", "Folder or Parquet file."), ("file_name", "string", ""), ("text", "string", "")]


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Lengths of documents; characters per subject where there are several."""
    from nemotron_dagster.artifacts import pictures

    drawn = [pictures.histogram(facts["lengths"], "characters per document", "documents", folder / "lengths.png")]
    if len(facts["subjects"]) > 1:
        sizes = {name: s["characters"] for name, s in facts["subjects"].items()}
        drawn.append(pictures.bars(sizes, "characters", folder / "subjects.png"))
    return drawn


def read(path: Path) -> Iterator[dict[str, str]]:
    """The documents: subject, file_name, text.

    Raises:
        ArtifactError: a file that is no document.
    """
    problems = Problems()
    for subject, name, text in _documents(path, problems):
        yield {"subject": subject, "file_name": name, "text": text}
    problems.check()


def write(value: Any, folder: Path) -> None:
    """Write ``<subject>.parquet`` files from mappings with subject, file_name and text.

    Raises:
        ArtifactError: a mapping without one of these, nothing to write, or a file that is there already.
    """
    subjects: dict[str, list[dict[str, str]]] = {}
    for number, row in enumerate(value):
        try:
            subject, document = str(row["subject"]), {k: str(row[k]) for k in ("file_name", "text")}
        except (KeyError, TypeError) as e:
            raise ArtifactError(f"document {number} has no {e}. Give subject, file_name and text.") from e
        if not subject or "/" in subject or subject.startswith("."):
            raise ArtifactError(f"document {number}: subject {subject!r} is no file name. Rename it.")
        subjects.setdefault(subject, []).append(document)
    if not subjects:
        raise ArtifactError(f"{folder}: there are no documents to write. Check what makes them.")
    for subject, documents in subjects.items():
        _questions.write_parquet(documents, folder / f"{subject}.parquet")
