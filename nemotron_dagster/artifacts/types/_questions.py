"""What the benchmark types share: where the Parquet file lies, and what a multiple-choice question must have."""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.markdown import json_block, table
from nemotron_dagster.artifacts.types import _files, _parallel
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._scan import first_line
from nemotron_dagster.artifacts.types._tally import SAMPLES, clipped
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = "benchmark.parquet in a directory or in one folder per experiment below it, or one Parquet file"
FILE = "benchmark.parquet"
MEANINGS = {
    "question_id": "Unique.",
    "question": "What is asked.",
    "options": "The answers to choose from.",
    "answer_index": "The right one, counted from 0.",
    "answer": "The right one's letter.",
    "cot_content": "A worked answer, or -.",
    "src": "Where the question comes from, or -.",
    "category": "Its subject.",
}
_MCQ = {"question_id": "", "question": "string", "options": "list", "answer_index": "int", "answer": "string"}


def find(path: Path) -> list[Path]:
    """The benchmark files of a path.

    Raises:
        ArtifactError: none there, or one that is empty, unreadable or a link that leads nowhere.
    """
    problems = Problems()
    if path.is_dir():
        found = [path / FILE] if (path / FILE).exists() else sorted(path.glob(f"*/{FILE}"))
        if not found:
            found = [p for p in _files.data_files(path, (".parquet",), problems) if "stage_cache" not in p.parts]
            found = [p for p in found if p.name not in ("seed.parquet", "benchmark_raw.parquet")]
        whole = [f for p in found for f in _files.data_files(p, (".parquet",), problems)]
    else:
        whole = _files.data_files(path, (".parquet",), problems)
    problems.check()
    if not whole:
        hint = "" if glob.has_magic(str(path)) else f", nor */{FILE} below it"
        raise ArtifactError(f"{path}: has no {FILE}{hint}. Name the output of the step that builds benchmarks.")
    return whole


def rows(file: Path, problems: Problems) -> Iterator[dict[str, Any]]:
    """The rows of a file; that it cannot be read is a problem."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1000):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as e:
        problems.add(f"{file}: cannot be read as Parquet ({first_line(e)}). It may be truncated; make it again.")


def schema(file: Path) -> dict[str, str]:
    """Column -> type; empty where the file cannot be read, which ``rows`` says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {f.name: str(f.type) for f in pq.read_schema(file)}
    except (pa.ArrowException, OSError, ValueError):
        return {}


def validate(path: Path, choices: bool, metrics: bool = False) -> dict[str, Any]:
    """Check every question.

    Args:
        path: a file, a directory, or a glob.
        choices: the rows must be multiple-choice questions.
        metrics: translation scores, where there are any, must be finite.

    Returns:
        Facts: rows, files, categories, options (how many a question has), answers (per letter), metrics (mean of
        each), columns, samples.

    Raises:
        ArtifactError: naming file and row of each bad question.
    """
    (facts,) = _parallel.each(_validate, [(path, choices, metrics)], 1, apart=True)
    return facts


def _validate(task: tuple[Path, bool, bool]) -> dict[str, Any]:
    path, choices, metrics = task
    problems = Problems()
    files = find(path)
    seen: dict[Any, int] = {}
    count = 0
    categories: Counter[str] = Counter()
    options: Counter[int] = Counter()
    letters: Counter[str] = Counter()
    sums: dict[str, list[float]] = {}
    shown: list[Any] = []
    types: dict[str, str] = {}
    for file in files:
        found = schema(file)
        types = {**found, **types}
        wrong = _wrong_columns(found) if choices and found else ""
        if wrong:
            problems.add(f"{file}: {wrong}")
            continue
        seen.clear()
        for number, row in enumerate(rows(file, problems), 1):
            count += 1
            problem = _question(row, seen, number) if choices else ""
            if not problem and metrics:
                problem = _scores(row, sums)
            if problem:
                problems.add(f"{file}: row {number}: {problem}")
                continue
            categories[str(row.get("category") or row.get("subject") or "–")[:60]] += 1
            if choices:
                options[len(row["options"])] += 1
                letters[row["answer"]] += 1
            if len(shown) < SAMPLES:
                shown.append(clipped(row))
    problems.check("Mend or remove these.")
    if not count:
        raise ArtifactError(f"{path}: has no questions. Check the filters of the step that built it.")
    facts: dict[str, Any] = {"rows": count, "files": len(files), "categories": dict(categories.most_common(100))}
    if choices:
        facts |= {"options": {str(k): n for k, n in sorted(options.items())}, "answers": dict(sorted(letters.items()))}
    if sums:
        facts["metrics"] = {name: round(total / n, 4) for name, (total, n) in sums.items() if n}
    return {**facts, "columns": [[n, t] for n, t in list(types.items())[:200]], "samples": shown}


def _wrong_columns(types: Mapping[str, str]) -> str:
    for name, wanted in _MCQ.items():
        if name not in types:
            return f"has no column {name} (it has {', '.join(list(types)[:8]) or 'none'}). Build the benchmark again"
        if not types[name].removeprefix("large_").removeprefix("u").startswith(wanted):
            return f"column {name} is {types[name]}. Write {wanted}"
    return ""


def _question(row: Mapping[str, Any], seen: dict[Any, int], number: int) -> str:
    """What is wrong with a question, with the fix; empty if nothing is."""
    key, options, answer, index = row["question_id"], row["options"], row["answer"], row["answer_index"]
    if key is None or key in seen:
        first = f" (row {seen[key]} has it too)" if key in seen else ""
        return f"question_id is {key!r}{first}. Number the questions uniquely"
    seen[key] = number
    if not row["question"] or not row["question"].strip():
        return "question is empty. Write it"
    if not options or len(options) < 2:
        return f"has {len(options or ())} options. Write two or more"
    texts = [o.strip() if isinstance(o, str) else "" for o in options]
    if not all(texts):
        return f"options[{texts.index('')}] is empty. Write it or take it out"
    if len(set(texts)) < len(texts):
        twice = next(t for t in texts if texts.count(t) > 1)
        return f"options has {twice[:40]!r} twice. Make them distinct"
    if not isinstance(answer, str) or len(answer) != 1 or not "A" <= answer <= "Z":
        return f"answer is {answer!r}. Write one capital letter"
    if index is None or not 0 <= index < len(options):
        return f"answer_index is {index}; there are {len(options)} options. Count from 0"
    if index != ord(answer) - ord("A"):
        return f"answer is {answer}, answer_index {index} ({chr(ord('A') + index)}). Make them agree"
    if "category" in row and not row["category"]:
        return "category is empty. Name the subject"
    return ""


def _scores(row: Mapping[str, Any], sums: dict[str, list[float]]) -> str:
    """Add a row's translation scores (columns ``score_*`` and the like); what is wrong with them."""
    for name, value in row.items():
        measured = name.startswith(("score_", "faith")) or name.endswith(("_score", "_bleu", "_chrf", "_ter"))
        if not measured or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            return f"{name} is {value}. Score the translation again"
        total = sums.setdefault(name, [0.0, 0])
        total[0] += value
        total[1] += 1
    return ""


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Questions, categories, and the mean of each translation score."""
    return {"rows": facts["rows"], "categories": len(facts["categories"]), **facts.get("metrics", {})}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Questions per category and per letter of the right answer."""
    out = {"categories": table(("category", "questions"), facts["categories"].items())}
    if facts.get("answers"):
        out["answers"] = table(("right answer", "questions"), facts["answers"].items())
    return out


def samples(facts: Mapping[str, Any]) -> str:
    """A few questions."""
    return json_block(facts.get("samples") or [], width=600)


def columns(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The columns."""
    return [(name, type_, MEANINGS.get(name, "")) for name, type_ in facts["columns"]]


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Questions per category; which letter is right how often, as a bias would show there."""
    from nemotron_dagster.artifacts import pictures

    drawn = []
    for key in ("categories", "answers"):
        if len(facts.get(key) or ()) > 1:
            drawn.append(pictures.bars(facts[key], "questions", folder / f"{key}.png"))
    return drawn


def read(path: Path) -> pa.Table:
    """All questions.

    Raises:
        ArtifactError: no benchmark there, or one that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pa.concat_tables([pq.read_table(f) for f in find(path)], promote_options="default")
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ArtifactError(f"{path}: cannot be read ({first_line(e)}). Build the benchmark again.") from e


def write(value: Any, folder: Path) -> None:
    """Write ``benchmark.parquet`` from a pyarrow.Table, record batches, or mappings.

    Raises:
        ArtifactError: nothing to write, or a file that is there already.
    """
    write_parquet(value, folder / FILE)


def write_parquet(value: Any, file: Path) -> None:
    """Write one Parquet file, under its name only when it is whole."""
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.exists():
        raise ArtifactError(f"{file}: exists already. Name another directory.")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.tmp")
    try:
        made = _table(value)
        if not made.num_rows:
            raise ArtifactError(f"{file}: there are no rows to write. Check what makes them.")
        pq.write_table(made, partial, compression="zstd")
        os.replace(partial, file)
    except (pa.ArrowException, OSError, TypeError) as e:
        raise ArtifactError(f"{file}: cannot be written ({first_line(e)}). Check the columns and the disk.") from e
    finally:
        partial.unlink(missing_ok=True)


def _table(value: pa.Table | Iterable[Any]) -> pa.Table:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    items = list(value)
    if items and isinstance(items[0], pa.RecordBatch):
        return pa.Table.from_batches(items)
    return pa.Table.from_pylist([dict(row) for row in items])
