"""One run of lm-evaluation-harness: from checked settings to its own result files and our summary."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from _runtime import payload
from _runtime.evaluation import nemo_results, summary, task_files
from _runtime.evaluation.endpoint import probe, probe_logprobs
from _runtime.evaluation.load_tasks import load_tasks
from _runtime.evaluation.redact import Redactor, quiet_logging
from _runtime.evaluation.settings import Settings
from _runtime.payload import PayloadError

GENERATION = "generate_until"
NEEDS_SKLEARN = {"f1_score", "matthews_corrcoef"}  # lm-eval's aggregations that import it


def run(settings: Settings) -> None:
    """Score the model and write lm-eval's files, ``results.yml`` and, last of all, ``summary.json``."""
    files = task_files.scan(settings.tasks_dir)
    baseline = summary.read_baseline(settings.baseline) if settings.baseline else None
    redactor = Redactor(settings.endpoint.key if settings.endpoint else None)
    with tempfile.TemporaryDirectory(prefix="nemotron-eval-") as scratch:
        work = Path(scratch)
        _environment(work, offline=_all_local(settings, files))
        quiet_logging(redactor)
        if settings.endpoint:
            probe(settings.endpoint, redactor)
        try:
            results, samples, tracker = _evaluate(settings, files, work, redactor)
        except PayloadError as e:
            raise PayloadError(e.name, redactor.text(e.message), redactor.text(e.recovery)) from None
        except ModuleNotFoundError as e:
            raise PayloadError(
                "missing_package",
                f"A selected task needs the package {e.name}, which this environment does not have.",
                "Run in an environment that has it, or leave the task out.",
            ) from e
        except Exception as e:
            if settings.endpoint and _of_the_network(e):
                raise PayloadError(
                    "endpoint_refused",
                    f"target.api_endpoint.url={settings.endpoint.url}: {redactor.text(str(e))}",
                    "The endpoint answered at first and failed later; raise target.api_endpoint.max_retries or lower "
                    "target.api_endpoint.parallelism.",
                ) from None
            if redactor.text(str(e)) != str(e):
                raise RuntimeError(redactor.text(str(e))) from None
            raise
        made = summary.build(settings, results, samples, baseline)
        _write(results, samples, tracker, made, work / "out", redactor)
        _publish(work / "out", settings.output_dir)
    payload.result(**summary.facts(made))


def _environment(work: Path, offline: bool) -> None:
    """Set before any library is imported: they read these once."""
    os.environ |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _all_local(settings: Settings, files: dict[str, task_files.TaskFile]) -> bool:
    tasks = all(name in files for name in settings.tasks) and all(f.local for f in files.values())
    tokenizer = settings.endpoint.tokenizer if settings.endpoint else None
    return tasks and (tokenizer is None or Path(tokenizer).is_dir())


def _evaluate(
    settings: Settings, files: dict[str, task_files.TaskFile], work: Path, redactor: Redactor
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]], Any]:
    manager, top, tasks = load_tasks(settings, files, work)
    _check_tasks(settings, tasks, redactor)
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    from _runtime.evaluation.models import build
    from _runtime.evaluation.progress import SampleProgress

    model, name, arguments = build(settings, work)
    SampleProgress(model, sum(_count(task, settings.limit) for task in tasks))
    if hasattr(evaluator, "get_git_commit_hash"):
        # it would record the commit of whatever repository the current directory is in
        evaluator.get_git_commit_hash = lambda: None
    tracker = EvaluationTracker(output_path=str(work / "out" / "results.json"))
    results = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=top,
        task_manager=manager,
        num_fewshot=settings.num_fewshot,
        batch_size=settings.batch_size,
        device=settings.device,
        limit=settings.limit,
        apply_chat_template=_templated(settings),
        evaluation_tracker=tracker,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    results["config"]["model"] = tracker.general_config_tracker.model_source = name
    return results, results.pop("samples"), tracker


def _templated(settings: Settings) -> bool:
    return settings.apply_chat_template or (settings.endpoint is not None and settings.endpoint.type == "chat")


def _check_tasks(settings: Settings, tasks: list[Any], redactor: Redactor) -> None:
    """What can only be known once the tasks are loaded, and must be known before the model runs."""
    for task in tasks:
        if not len(task.eval_docs):
            raise PayloadError(
                "no_samples", f"{task.task_name}: its data hold no samples.", "Fill the task's data file."
            )
        used = {getattr(f, "__name__", "") for f in task.aggregation().values()}
        if used & NEEDS_SKLEARN and importlib.util.find_spec("sklearn") is None:
            raise PayloadError(
                "missing_package",
                f"{task.task_name}: its metric needs scikit-learn, which this environment does not have.",
                "Run in an environment that has it, or leave the task out.",
            )
    endpoint = settings.endpoint
    scored = sorted(task.task_name for task in tasks if task.OUTPUT_TYPE != GENERATION)
    if endpoint is None:
        return
    if endpoint.type == "chat" and scored:
        raise PayloadError(
            "wrong_endpoint_type",
            f"tasks: {', '.join(scored)} need log-probabilities, which a chat endpoint does not give.",
            "Use target.api_endpoint.type=completions with target.api_endpoint.tokenizer, or generation tasks only.",
        )
    if endpoint.type == "completions" and not endpoint.tokenizer and (scored or settings.apply_chat_template):
        why = f"{', '.join(scored)} score given answers" if scored else "apply_chat_template is true"
        raise PayloadError(
            "missing_tokenizer_for_logprobs",
            f"{why}: the tokenizer of {endpoint.model_id} is needed, and target.api_endpoint.tokenizer is not set.",
            "Set target.api_endpoint.tokenizer to a directory or Hugging Face id.",
        )
    if scored:
        probe_logprobs(endpoint, redactor)


def _count(task: Any, limit: float | None) -> int:
    there = len(task.eval_docs)
    if limit is None:
        return there
    return min(there, math.ceil(there * limit) if limit < 1 else int(limit))


def _of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("requests", "aiohttp", "tenacity")


def _write(
    results: dict[str, Any],
    samples: dict[str, list[dict[str, Any]]],
    tracker: Any,
    made: dict[str, Any],
    folder: Path,
    redactor: Redactor,
) -> None:
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    # the tracker only logs when it cannot write
    wanted = [("results_*.json", 1), ("samples_*.jsonl", len(samples))]
    if any(len(list(folder.glob(pattern))) != count for pattern, count in wanted):
        raise RuntimeError(f"lm-eval did not write its result files; found {sorted(p.name for p in folder.glob('*'))}")
    nemo_results.write(made, folder / nemo_results.NAME)
    (folder / summary.NAME).write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    redactor.files(folder)


def _publish(source: Path, target: Path) -> None:
    """Move the files where they belong, the summary last: who finds it finds all."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda p: p.name == summary.NAME):
        part = target / f".{path.name}.part"
        shutil.copyfile(path, part)
        os.replace(part, target / path.name)
