"""Loads lm-evaluation-harness tasks by name, without reading its thousands of task files where they are not asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from _runtime.evaluation import task_files
from _runtime.evaluation.settings import Settings
from _runtime.payload import PayloadError


def load_tasks(
    settings: Settings, files: dict[str, task_files.TaskFile], work: Path
) -> tuple[Any, list[Any], list[Any]]:
    """The task manager, the groups and tasks that were asked for, and all single tasks among them."""
    from lm_eval.tasks import TaskManager

    own = set(files) | task_files.tags(files)
    bundled = not own.issuperset(settings.tasks)  # reading lm-eval's own index takes some ten seconds
    folders = [str(settings.tasks_dir)] if settings.tasks_dir else []
    if task_files.write_overlay(files, work / "tasks"):
        folders.append(str(work / "tasks"))
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)  # it warns that the overlay overrides
    manager = TaskManager(include_path=folders, include_defaults=bundled)
    for name in settings.tasks:
        if name not in manager.task_index:
            where = f"lm-evaluation-harness or {settings.tasks_dir}" if settings.tasks_dir else "lm-evaluation-harness"
            raise task_files.unknown(name, manager.all_tasks, where)
    try:
        loaded = manager.load(settings.tasks)
    except (ModuleNotFoundError, PayloadError):
        raise
    except Exception as e:  # whatever the task's data, templates or functions raise
        raise PayloadError(
            "bad_task_data",
            f"tasks: {', '.join(settings.tasks)} cannot be loaded: {type(e).__name__}: {e}",
            "Check the task's YAML and data; data on the Hugging Face Hub need a network or a filled HF_HOME.",
        ) from e
    children = {child for names in loaded["group_map"].values() for child in names}
    made = {**loaded["groups"], **loaded["tasks"]}
    return manager, [item for name, item in made.items() if name not in children], list(loaded["tasks"].values())
