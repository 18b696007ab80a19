"""Finds the files of training and validation rows: by a manifest.json of data_prep/rl_prep, or by paths.

The keys are NeMo-RL's, and what our steps add to them:

    data.manifest_path                 a manifest.json; it wins over the paths
    data.{train,validation}.data_path  a file, a glob, a directory; one with a manifest.json is read by it
    data.allow_train_as_validation     training rows stand in for validation rows
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime import chat_data
from _runtime.payload import PayloadError
from _runtime.rl.settings import at

TRAIN, VALIDATION = "data.train.data_path", "data.validation.data_path"
GIVE = "Give a .jsonl file or the output directory of data_prep/rl_prep, or connect that step."


@dataclass(frozen=True)
class Source:
    """Where rows are; ``reader`` are the keys by which NeMo-RL reads them, where a manifest names them."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    manifest: Path | None = None
    reader: Mapping[str, str] = field(default_factory=dict)


def find(cfg: Mapping[str, Any]) -> Source | None:
    """The files that the config names, or None where it names none of its own.

    Raises:
        PayloadError: a file or split is not there, or validation rows are training rows and nobody asked for that.
    """
    lenient = bool(at(cfg, "data.allow_train_as_validation", False))
    named = at(cfg, "data.manifest_path")
    if chat_data.given(named):
        return _by_manifest(Path(str(named)).expanduser(), "data.manifest_path", lenient)
    train, validation = at(cfg, TRAIN), at(cfg, VALIDATION)
    if not chat_data.given(train):
        return None
    if chat_data.is_hub_id(str(train)):
        return None  # NeMo-RL downloads it
    manifest = Path(str(train)).expanduser() / "manifest.json"
    if manifest.is_file():
        source = _by_manifest(manifest, TRAIN, lenient, needs_validation=validation is not None)
        if not chat_data.given(validation) or str(validation) == str(train):
            return source
        return Source(source.train, _files(validation, VALIDATION), manifest, source.reader)
    files = _files(train, TRAIN)
    held_out = _files(validation, VALIDATION) if chat_data.given(validation) else ()
    if held_out == files and not lenient:
        raise _same_rows(f"{VALIDATION}={validation}: holds the rows of {TRAIN}")
    return Source(files, held_out)


def own(cfg: Mapping[str, Any]) -> Source:
    """The files that the config names, which backend=trl cannot do without.

    Raises:
        PayloadError: it names none, or one is not there.
    """
    source = find(cfg)
    if source is None:
        name = at(cfg, "data.default.dataset_name")
        raise PayloadError("dataset_missing", f"{TRAIN} is not set; backend=trl downloads no {name}", GIVE)
    return source


def _files(value: Any, key: str) -> tuple[Path, ...]:
    path = Path(str(value)).expanduser()
    if (path / "manifest.json").is_file():
        source = _by_manifest(path / "manifest.json", key, lenient=True)
        return source.validation if key == VALIDATION else source.train
    found = chat_data.find(value, key)
    if isinstance(found, str):
        raise PayloadError("dataset_missing", f"{key}={value}: no such file or directory", GIVE)
    for file in found:
        if file.suffix not in (*chat_data.LINES, ".json"):
            raise PayloadError("dataset_invalid", f"{key}: {file}: RL reads JSON Lines", "Run data_prep/rl_prep on it.")
    return tuple(found)


def _by_manifest(file: Path, key: str, lenient: bool, needs_validation: bool = True) -> Source:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PayloadError("dataset_missing", f"{key}: {file}: {e}", GIVE) from None
    if not isinstance(said, dict):
        raise PayloadError("dataset_invalid", f"{key}: {file}: is not a mapping", GIVE)
    train = _split(file, key, said.get("train"), "train")
    validation = said.get("val") or said.get("validation")
    if not validation and not lenient and needs_validation:
        raise PayloadError(
            "dataset_empty",
            f"{key}: {file}: has no validation rows (key `val`)",
            "Prepare some with data_prep/rl_prep (valid_ratio), or set data.allow_train_as_validation=true.",
        )
    held_out = _split(file, key, validation, "val") if validation else train if needs_validation else ()
    if held_out == train and not lenient:
        raise _same_rows(f"{key}: {file}: `val` names the rows of `train`")
    reader = said.get("reader")
    return Source(train, held_out, file, reader if isinstance(reader, dict) else {})


def _split(manifest: Path, key: str, value: Any, split: str) -> tuple[Path, ...]:
    if not value:
        raise PayloadError("dataset_empty", f"{key}: {manifest}: has no rows to train on (key `{split}`)", GIVE)
    return _files(manifest.parent / str(value), f"{key}: {manifest}: {split}")


def _same_rows(what: str) -> PayloadError:
    return PayloadError(
        "train_used_as_validation_unintentionally",
        what,
        "Prepare a validation split with data_prep/rl_prep, set data.validation.data_path=null, or, for a trial, "
        "data.allow_train_as_validation=true.",
    )
