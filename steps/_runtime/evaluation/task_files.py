"""lm-evaluation-harness task files of the user's own folder: found, checked and given absolute data paths.

lm-eval looks a relative ``data_files`` up in the current directory. Here it always means "beside the task's file".
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from _runtime.payload import PayloadError

# Loaders of `datasets` that read files; any other dataset_path is a name on the hub.
FILE_LOADERS = ("json", "csv", "parquet", "arrow", "text", "xml")


@dataclass(frozen=True)
class TaskFile:
    """One named task, group or tag member of the folder."""

    name: str
    path: Path
    config: dict[str, Any]

    @property
    def local(self) -> bool:
        """Whether its data lie on this machine."""
        known = self.config.get("dataset_path") in FILE_LOADERS
        return "group" in self.config or "custom_dataset" in self.config or (known and self._all_local())

    def _all_local(self) -> bool:
        return not any("://" in name for name in _flat(self._kwargs.get("data_files")))

    @property
    def _kwargs(self) -> dict[str, Any]:
        kwargs = self.config.get("dataset_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    def absolute_data(self) -> dict[str, Any] | None:
        """``dataset_kwargs`` with paths made absolute; None where nothing is relative."""
        if self.config.get("dataset_path") not in FILE_LOADERS or not self._kwargs:
            return None
        made = dict(self._kwargs)
        if "data_files" in made:
            made["data_files"] = self._absolute(made["data_files"])
        if isinstance(made.get("data_dir"), str):
            made["data_dir"] = str(self.path.parent / made["data_dir"])
        return made if made != self._kwargs else None

    def _absolute(self, files: Any) -> Any:
        if isinstance(files, dict):
            return {split: self._absolute(inner) for split, inner in files.items()}
        if isinstance(files, list):
            return [self._absolute(inner) for inner in files]
        if not isinstance(files, str) or "://" in files:
            return files
        found = self.path.parent / files
        if not any(c in files for c in "*?[") and not found.is_file():
            raise PayloadError(
                "bad_task_data",
                f"{self.path}: dataset_kwargs.data_files names {files}, which is not beside it.",
                "Put the file there or give an absolute path.",
            )
        return str(found)


def scan(folder: Path | None) -> dict[str, TaskFile]:
    """The tasks and groups that a folder's YAML files define, by name; an unreadable file is an error."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise PayloadError(
            "unknown_task", f"tasks_dir: {folder}: no such directory.", "Fix tasks_dir or set it to null."
        )
    found: dict[str, TaskFile] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _load(path, ())
        name = config.get("group") or config.get("task")
        if isinstance(name, str):
            found[name] = TaskFile(name, path, config)
    return found


def tags(files: dict[str, TaskFile]) -> set[str]:
    """Names under which lm-eval knows several of the folder's tasks."""
    return {t for f in files.values() for t in _flat(f.config.get("tag"))}


def write_overlay(files: dict[str, TaskFile], folder: Path) -> bool:
    """Write task files that include the originals and hold absolute data paths; True if there was need for any."""
    for index, file in enumerate(files.values()):
        if (kwargs := file.absolute_data()) is not None:
            overlay = {"include": str(file.path), "task": file.name, "dataset_kwargs": kwargs}
            folder.mkdir(exist_ok=True)
            (folder / f"{index}.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return folder.is_dir()


def unknown(name: str, known: list[str], where: str) -> PayloadError:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known: {', '.join(sorted(known)[:20]) or 'none'}."
    return PayloadError("unknown_task", f"tasks: there is no task {name} in {where}.", hint)


class _Loader(yaml.SafeLoader):
    """Reads task files without importing the Python functions that they name."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {getattr(node, 'value', '')}")


def _load(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise PayloadError("bad_task_data", f"{path}: includes itself.", "Break the circle of includes.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise PayloadError("bad_task_data", f"{path}: {e}", "Mend the task file or take it out of tasks_dir.") from e
    if not isinstance(config, dict):
        return {}
    merged: dict[str, Any] = {}
    for include in _flat(config.pop("include", None)):
        merged |= _load((path.parent / include).resolve(), (*seen, path))
    return merged | config


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [name for inner in value.values() for name in _flat(inner)]
    if isinstance(value, list):
        return [name for inner in value for name in _flat(inner)]
    return [value] if isinstance(value, str) else []
