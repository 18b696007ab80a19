"""``eval_results``: scores, ours in ``summary.json``, with what the harness itself wrote beside it or alone."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _harnesses
from nemotron_dagster.artifacts.types._documents import read_json
from nemotron_dagster.artifacts.types._files import why
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._results import Results, Score, same, score
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.files import printable

__all__ = ["LAYOUT", "Results", "Score", "draw", "figures", "read", "tables", "validate", "write"]

LAYOUT = (
    "A directory with summary.json (the scores) and what the evaluation harness wrote beside it: results_*.json and "
    "samples_*.jsonl of lm-evaluation-harness with the scores once more in results.yml, as NeMo Evaluator writes them "
    "and its exporters read them; or <time>-<id>/<task>.<n>/artifacts/results.yml of NeMo Evaluator itself. "
    "Either harness's files alone will do."
)
SUMMARY = "summary.json"
_AGAIN = "Run eval/model_eval again."
Key = tuple[str, str, str]
#: How many scores facts and tables hold, and how many bars a picture.
_KEPT, _BARS = 200, 24


def validate(path: Path) -> dict[str, Any]:
    """Check that there are scores, finite ones, over at least one sample, and that they are the harness's own.

    Returns:
        Facts: model, backend, scores (one mapping per task and metric: task, metric, value, stderr, ci95, n, chance
        and, where an earlier run was compared, baseline and difference; of more than 200 the groups first),
        scores_total, tasks, samples, baseline (that run's model), source (the file that scores were read from), raw
        (files that they agree with).

    Raises:
        ArtifactError: no results, a score that is no number, a task that failed, or a summary unlike the raw files.
    """
    results, more = _check(path)
    kept = []
    ordered = results.scores if len(results.scores) <= _KEPT else sorted(results.scores, key=lambda s: not s.group)
    for s in ordered[:_KEPT]:
        interval = s.interval()
        kept.append(asdict(s) | {"ci95": [round(x, 6) for x in interval] if interval else None})
    counts = {s.task: s.n for s in results.scores if s.n and not s.group}
    return {
        "model": _short(results.model),
        "backend": results.backend,
        "scores": kept,
        "scores_total": len(results.scores),
        "tasks": len({s.task for s in results.scores}),
        "samples": sum(counts.values()),
        "baseline": results.baseline,
        **more,
    }


def _check(path: Path) -> tuple[Results, dict[str, Any]]:
    if not path.exists():
        raise ArtifactError(why(path))
    folder = path if path.is_dir() else path.parent
    problems = Problems()
    files: list[Path] = []
    raw = _harnesses.find(folder)
    _harnesses.check_tasks(raw, problems)
    if os.path.lexists(folder / SUMMARY):
        source = folder / SUMMARY
        made = _summary(source, problems)
        if made is not None:
            files = _check_against(source, made, raw, problems)
    else:
        made, source, files = _raw(folder, raw, problems)
    problems.check()
    if made is None:
        raise ArtifactError(f"{path}: holds no results. {_AGAIN}")
    about = {
        "source": source.relative_to(folder).as_posix(),
        "raw": [f.relative_to(folder).as_posix() for f in files[:10]],
    }
    return made, about


def _summary(file: Path, problems: Problems) -> Results | None:
    data = read_json(file, problems, _AGAIN)
    if data is None:
        return None
    found = data.get("scores")
    if not isinstance(found, list) or not found:
        problems.add(f"{file}: holds no scores. Name at least one task.")
        return None
    backend = data.get("backend")
    counted = not (isinstance(backend, str) and backend.startswith("nemo_evaluator"))
    scores = [one for s in found if (one := score(s, str(file), counted, problems))]
    seen: set[tuple[str, str, str]] = set()
    for s in scores:
        if counted and s.key in seen:
            problems.add(f"{file}: has {_name(s)} twice. {_AGAIN}")
        seen.add(s.key)
    model, baseline, settings = data.get("model"), data.get("baseline"), data.get("settings")
    return Results(
        scores=tuple(scores),
        model=model if isinstance(model, dict | str) else "",
        backend=printable(backend, 100) if isinstance(backend, str) else "",
        baseline=printable(baseline, 300) if isinstance(baseline, str) else None,
        settings=settings if isinstance(settings, dict) else {},
    )


def _check_against(source: Path, made: Results, raw: _harnesses.Raw, problems: Problems) -> list[Path]:
    """Compare the summary with the raw files, where there are any; which those are."""
    files: list[Path] = []
    if raw.lm_eval and not made.backend.startswith("nemo_evaluator"):
        files = raw.lm_eval[-1:]
        theirs, _ = _harnesses.lm_eval_scores(files[0], problems)
        _harnesses.check_samples(raw, files[0], theirs, problems)
        _agree(source, made, files[0], [(s.key, s) for s in theirs], [s.key for s in made.scores], problems)
    if raw.nemo:
        theirs = [s for f in raw.nemo for s in _harnesses.nemo_scores(f, problems, nested=False)]
        pairs = [((s.task, s.nemo_metric, ""), s) for s in theirs]
        _agree(source, made, raw.nemo[0], pairs, [(s.task, s.nemo_metric, "") for s in made.scores], problems)
    return files + raw.nemo


def _agree(
    source: Path, made: Results, file: Path, theirs: list[tuple[Key, Score]], ours: list[Key], problems: Problems
) -> None:
    by_key: dict[Key, list[Score]] = defaultdict(list)
    for key, s in theirs:
        by_key[key].append(s)
    for key, s in zip(ours, made.scores, strict=True):
        there = by_key.get(key, [])
        if not there:
            problems.add(f"{source}: {_name(s)} is not in {file.name}. {_AGAIN}")
        elif not any(_equal(s, t) for t in there):
            problems.add(f"{source}: {_name(s)} is {_said(s)}, and {file.name} says {_said(there[0])}. {_AGAIN}")
    for key in by_key.keys() - set(ours):
        problems.add(f"{source}: lacks {_name(by_key[key][0])}, which {file.name} has. {_AGAIN}")


def _equal(ours: Score, theirs: Score) -> bool:
    stderr = theirs.stderr is None or same(ours.stderr, theirs.stderr)
    return same(ours.value, theirs.value) and stderr and theirs.n in (None, ours.n)


def _name(s: Score) -> str:
    return printable("/".join(part for part in (s.task, s.metric, s.filter) if part), 200)


def _said(s: Score) -> str:
    return f"{s.value:g} ± {s.stderr} over {s.n}"


def _raw(folder: Path, raw: _harnesses.Raw, problems: Problems) -> tuple[Results | None, Path, list[Path]]:
    """Results from the harness's files alone."""
    if raw.nemo:
        scores = tuple(s for f in raw.nemo for s in _harnesses.nemo_scores(f, problems))
        made = Results(scores=scores, model=_harnesses.nemo_model(raw.nemo[0]), backend="nemo_evaluator")
        source, files = raw.nemo[0], raw.nemo
    elif raw.lm_eval:
        source, files = raw.lm_eval[-1], raw.lm_eval[-1:]
        found, data = _harnesses.lm_eval_scores(source, problems)
        _harnesses.check_samples(raw, source, found, problems)
        made = Results(
            scores=tuple(found),
            model=printable(data.get("model_name") or "", 300),
            backend=f"lm_eval {printable(data.get('lm_eval_version') or '', 40)}".strip(),
        )
    else:
        problems.check()
        if raw.dry_run or raw.tasks:
            raise ArtifactError(f"{folder}: is of a dry run, which scores nothing. Run without dry_run.")
        raise ArtifactError(f"{folder}: has no {SUMMARY}. Name the output directory of eval/model_eval.")
    if not made.scores:
        problems.check()
        raise ArtifactError(f"{source}: holds no scores. Name at least one task.")
    return made, source, files


def _short(model: Mapping[str, Any] | str) -> dict[str, Any] | str:
    if isinstance(model, str):
        return printable(model, 300)
    plain = {k: v for k, v in list(model.items())[:12] if v is None or isinstance(v, bool | int | float | str)}
    return {printable(k, 60): printable(v, 300) if isinstance(v, str) else v for k, v in plain.items()}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Each score, and what it was before where an earlier run was compared; of many, the first 12."""
    out: dict[str, int | float | str] = {}
    for s in _first(facts, 12):
        name = f"{s['task']} {s['metric']}"
        if s.get("baseline"):
            out[f"{name} before"] = round(float(s["baseline"]["value"]), 4)
        out[name] = round(float(s["value"]), 4)
    if facts.get("scores_total", 0) > 12:
        out["scores"] = facts["scores_total"]
    return out


def _first(facts: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """Up to ``count`` scores: of more, means over groups come first."""
    scores = list(facts.get("scores", []))
    return scores if len(scores) <= count else sorted(scores, key=lambda s: not s.get("group"))[:count]


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Scores with their errors; the change where an earlier run was compared."""
    if not facts.get("scores"):
        return {}
    compared = any(s.get("baseline") for s in facts["scores"])
    head = ["task", "metric", *(["before", "change"] if compared else []), "value", "± stderr", "95 %", "samples"]
    rows = []
    for s in facts["scores"]:
        before, change = s.get("baseline") or {}, s.get("difference") or {}
        row = [s["task"], s["metric"], *([_number(before.get("value")), _signed(change)] if compared else [])]
        row += [_number(s["value"]), _number(s.get("stderr")), _range(s.get("ci95")), s.get("n"), s.get("chance")]
        rows.append(row)
    return {"scores": table([*head, "chance"], rows)}


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """The scores as bars with their standard errors."""
    from nemotron_dagster.artifacts import pictures

    shown = [{**s, "n": s.get("n") or "?"} for s in _first(facts, _BARS)]
    return [pictures.scores({**facts, "scores": shown}, folder / "scores.png")]


def read(path: Path) -> Results:
    """The results, after a check.

    Raises:
        ArtifactError: as ``validate``.
    """
    return _check(path)[0]


def write(value: Any, folder: Path) -> None:
    """Write ``Results`` as summary.json, and for NeMo Evaluator's readers as results.yml.

    Raises:
        ArtifactError: something else, no scores, a score that is no finite number, or a summary that is there already.
    """
    if not isinstance(value, Results):
        raise ArtifactError(f"eval_results takes Results, not a {type(value).__name__}. Build it from Score objects.")
    file = folder / SUMMARY
    if file.exists():
        raise ArtifactError(f"{file}: exists already. Write to an empty directory.")
    problems = Problems()
    if not value.scores:
        problems.add(f"{file}: would hold no scores. Name at least one task.")
    for s in value.scores:
        score(asdict(s), str(file), not value.backend.startswith("nemo_evaluator"), problems)
    problems.check()
    data = {"version": 1, **asdict(value)}
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise ArtifactError(f"{file}: model or settings are not JSON ({e}). Give plain data.") from e
    folder.mkdir(parents=True, exist_ok=True)
    _harnesses.write_nemo(value, folder / "results.yml")
    part = folder / f".{SUMMARY}.part"
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, file)


def _signed(change: Mapping[str, Any]) -> str:
    """A paired difference with its standard error, ``+0.996 ± 0.004``."""
    if not isinstance(change.get("mean"), int | float):
        return "–"
    error = change.get("stderr")
    return f"{change['mean']:+.3f}" + (f" ± {error:.3f}" if isinstance(error, int | float) else "")


def _range(interval: Any) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
