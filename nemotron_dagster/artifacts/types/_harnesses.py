"""What the harnesses themselves write: lm-evaluation-harness, and NeMo Evaluator with its Launcher."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types._documents import read_json, read_yaml, text_of
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._results import Results, Score, score
from nemotron_dagster.files import printable

_AGAIN = "Run the evaluation again."
_TASK = re.compile(r".+\.\d+")
_STAMP = re.compile(r"(?:results_|samples_.*_)(\d{4}-\d\d-\d\dT.*?)\.jsonl?")
_MOST_FOLDERS = 50_000
_DEEPEST = 8


@dataclass
class Raw:
    """What was found below a directory: files of results, and how each task of the Launcher ended."""

    lm_eval: list[Path] = field(default_factory=list)
    samples: list[Path] = field(default_factory=list)
    nemo: list[Path] = field(default_factory=list)
    #: task folder -> newest invocation's directory of it
    tasks: dict[str, Path] = field(default_factory=dict)
    dry_run: bool = False


def find(path: Path) -> Raw:
    """Every raw result below ``path``, newest last; of a task that the Launcher ran twice, the last run."""
    raw = Raw()
    for n, (folder, subfolders, files) in enumerate(os.walk(path)):
        subfolders.sort()
        here = Path(folder)
        for name in sorted(files):
            if re.fullmatch(r"results_.*\.json", name):
                raw.lm_eval.append(here / name)
            elif re.fullmatch(r"samples_.*\.jsonl", name):
                raw.samples.append(here / name)
            elif name == "results.yml":
                raw.nemo.append(here / name)
            elif name == "run.sh" and _TASK.fullmatch(here.name):
                raw.tasks[here.name] = here
        if (here / "logs").is_dir() and _TASK.fullmatch(here.name):
            raw.tasks[here.name] = here
        raw.dry_run = raw.dry_run or any(re.fullmatch(r"run_all\..*\.sh", name) for name in files)
        if n > _MOST_FOLDERS:
            subfolders.clear()
    raw.lm_eval.sort(key=lambda p: p.name)
    kept = set(raw.tasks.values())
    raw.nemo = [p for p in raw.nemo if not _TASK.fullmatch(p.parent.parent.name) or p.parent.parent in kept]
    return raw


def check_tasks(raw: Raw, problems: Problems) -> None:
    """A task that the Launcher started must have ended, well, and with results."""
    for name, folder in sorted(raw.tasks.items()):
        logs = folder / "logs"
        log = next((logs / n for n in ("client_stdout.log", "stdout.log") if (logs / n).is_file()), logs)
        if os.path.lexists(logs / "stage.exit"):
            text = text_of(logs / "stage.exit", problems, _AGAIN, 10_000)
            code = (text or "").split()[-1:]
            if text is not None and code != ["0"]:
                said = printable(code[0], 40) if code else "nothing"
                problems.add(f"{folder}: {name} ended with {said}. Read {log}, mend the cause and run again.")
            elif text is not None and not (folder / "artifacts/results.yml").is_file():
                problems.add(f"{folder}: {name} ended well, but left no artifacts/results.yml. Read {log}.")
        elif (logs / "stage.running").exists() or (logs / "stage.pre-start").exists():
            problems.add(f"{folder}: {name} has not ended, or was killed. Wait for it, or run it again; log: {log}.")


def nemo_scores(file: Path, problems: Problems, nested: bool = True) -> list[Score]:
    """The scores of one results.yml; ``nested``: those of groups in groups too."""
    data = read_yaml(file, problems, _AGAIN)
    results = (data or {}).get("results")
    if data is not None and not isinstance(results, dict):
        problems.add(f"{file}: has no results. {_AGAIN}")
    found: list[Score] = []
    for kind in ("tasks", "groups"):
        part = results.get(kind) if isinstance(results, dict) else None
        for task, entry in part.items() if isinstance(part, dict) else ():
            found += _metrics(file, str(task), entry, kind == "groups", problems, 0 if nested else _DEEPEST)
    return found


def _metrics(file: Path, task: str, entry: Any, group: bool, problems: Problems, depth: int) -> list[Score]:
    metrics = entry.get("metrics") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(metrics, dict | None):
        problems.add(f"{file}: {printable(task, 100)} has no metrics. {_AGAIN}")
        return []
    found: list[Score] = []
    for metric, about in (metrics or {}).items():
        scores = about.get("scores") if isinstance(about, dict) else None
        if not isinstance(scores, dict):
            problems.add(f"{file}: {printable(task, 100)}/{printable(metric, 100)} has no scores. {_AGAIN}")
            continue
        for name, value in scores.items():
            stats = value.get("stats") if isinstance(value, dict) else None
            stats = stats if isinstance(stats, dict) else {}
            made = {
                "task": task,
                "metric": str(metric) if name == metric else f"{metric}.{name}",
                "value": value.get("value") if isinstance(value, dict) else value,
                "stderr": stats.get("stderr"),
                "n": stats.get("count"),
                "group": group,
            }
            one = score(made, str(file), False, problems)
            found += [one] if one else []
    inner = entry.get("groups")
    if isinstance(inner, dict) and depth < _DEEPEST:
        for name, below in inner.items():
            found += _metrics(file, f"{task}.{name}", below, True, problems, depth + 1)
    return found


def nemo_model(file: Path) -> str:
    """The id of the model that a results.yml was made with, where it says."""
    data = read_yaml(file, Problems(), "") or {}
    target = data.get("target")
    endpoint = target.get("api_endpoint") if isinstance(target, dict) else None
    return printable(endpoint.get("model_id") or "", 300) if isinstance(endpoint, dict) else ""


def write_nemo(results: Results, file: Path) -> None:
    """Write the scores as a results.yml."""
    import yaml

    made: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for s in results.scores:
        stats = {k: v for k, v in (("count", s.n), ("stderr", s.stderr)) if v is not None}
        task = made["groups" if s.group else "tasks"].setdefault(s.task, {"metrics": {}})
        task["metrics"][s.nemo_metric] = {"scores": {s.nemo_metric: {"value": s.value, "stats": stats}}}
    model = results.model if isinstance(results.model, str) else results.model.get("name")
    content = {
        "config": {"type": ",".join([*made["groups"], *made["tasks"]])},
        "target": {"api_endpoint": {"model_id": str(model or "")}},
        "results": made,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def lm_eval_scores(file: Path, problems: Problems) -> tuple[list[Score], dict[str, Any]]:
    """The scores of one results_*.json, and the file's content."""
    data = read_json(file, problems, _AGAIN)
    results = (data or {}).get("results")
    if data is None or not isinstance(results, dict):
        if data is not None:
            problems.add(f"{file}: has no results. {_AGAIN}")
        return [], {}
    found: list[Score] = []
    for task, row in results.items():
        for key, value in row.items() if isinstance(row, dict) else ():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = row.get(f"{metric}_stderr,{filtered}")  # may be "N/A" or NaN
            made = {
                "task": task,
                "metric": metric,
                "filter": filtered,
                "value": value,
                "stderr": stderr if isinstance(stderr, int | float) and isfinite(stderr) else None,
                "n": _samples(data, task),
                "higher_is_better": _at(data, "higher_is_better", task, metric),
                "group": isinstance(data.get("groups"), dict) and task in data["groups"],
            }
            one = score(made, str(file), False, problems)
            found += [one] if one else []
    return found, data


def _samples(data: Mapping[str, Any], task: str, depth: int = 0) -> int | None:
    """How many samples a task had; of a group, the sum over its tasks."""
    n = _at(data, "n-samples", task, "effective")
    if n is not None or depth > _DEEPEST:
        return n if isinstance(n, int) else None
    below = _at(data, "group_subtasks", task)
    counts = [_samples(data, t, depth + 1) for t in below] if isinstance(below, list) and len(below) < 10_000 else []
    return sum(c for c in counts if c) or None


def _at(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) and isinstance(key, str) else None
    return data


def check_samples(raw: Raw, results: Path, scores: list[Score], problems: Problems) -> int:
    """Every sample must be in the sample files of the same run, where there are any; how many rows those have."""
    stamp = _STAMP.fullmatch(results.name)
    wanted = {s.task: s.n for s in scores if s.n and not s.group}
    rows = 0
    for file in raw.samples:
        if stamp is None or file.parent != results.parent or not file.name.endswith(f"_{stamp[1]}.jsonl"):
            continue
        task = file.name.removeprefix("samples_").removesuffix(f"_{stamp[1]}.jsonl")
        lines, whole = _lines(file, problems)
        n = wanted.get(task)
        if not whole:
            problems.add(f"{file}: its last row was cut off. {_AGAIN}")
        elif n and (lines == 0 or lines % n):  # one row per sample and filter
            problems.add(f"{file}: has {lines:,} rows, and {results.name} counts {n:,} samples. {_AGAIN}")
        rows += lines
    return rows


def _lines(file: Path, problems: Problems) -> tuple[int, bool]:
    lines, last = 0, b"\n"
    try:
        if not file.is_file():
            return 0, False
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                lines += block.count(b"\n")
                last = block[-1:]
    except OSError as e:
        problems.add(f"{file}: cannot be read ({e.strerror}). Check its permissions.")
    return lines, last == b"\n"
