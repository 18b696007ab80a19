"""LoRA adapters in the layout of Hugging Face PEFT: which one a directory means, and is it whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _safetensors, _tokenizer
from nemotron_dagster.artifacts.types._documents import read_json, whole
from nemotron_dagster.artifacts.types._hf_folder import entries
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._safetensors import Tensor
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.files import printable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SAVE = re.compile(r"epoch_(\d{1,9})_step_(\d{1,12})|(?:checkpoint-|global_step_?|step_)(\d{1,12})")
_DEEPEST = 5
_MOST_FOLDERS = 20_000
_HALF = re.compile(r"^(.*\.lora_(?:embedding_)?)([AB])((?:\.[^.]+)*)$")
_AGAIN = "Save the adapter again."


@dataclass(frozen=True)
class Adapter:
    """What a checked adapter holds; ``pairs`` are the matrices A and B of one module."""

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    pairs: int
    tensors: tuple[Tensor, ...]
    bytes: int
    tokenizer: str | None
    chat_template: str | None
    config: Mapping[str, Any] = field(default_factory=dict)


def find(path: Path) -> Path | None:
    """The directory of the adapter that ``path`` or one of its descendants is; None where there is none.

    Of several saves it is the one with the greatest (epoch, step), read from names such as ``epoch_2_step_30`` or
    ``checkpoint-30`` below ``path`` only: digits anywhere else in the path mean nothing.

    Raises:
        ArtifactError: several adapters, and no such numbers to tell them apart.
    """
    if os.path.lexists(path / CONFIG):
        return path
    found = sorted(_search(path))
    if len(found) < 2:
        return found[0] if found else None
    numbered = [(number, p) for p in found if (number := _number(p.relative_to(path))) is not None]
    best = [p for number, p in numbered if number == max(n for n, _ in numbered)]
    if len(best) != 1:
        shown = ", ".join(str(p) for p in (best or found)[:5])
        raise ArtifactError(f"{path}: holds several adapters ({shown}). Name one of them.")
    return best[0]


def _search(path: Path) -> Iterator[Path]:
    depth = len(path.parts)
    for n, (folder, subfolders, files) in enumerate(os.walk(path)):
        here = Path(folder)
        if CONFIG in files:
            yield here
        if len(here.parts) - depth >= _DEEPEST or n > _MOST_FOLDERS:
            subfolders.clear()


def _number(below: Path) -> tuple[int, int] | None:
    """(epoch, step) of the last save that the path goes through."""
    numbers = [m for part in below.parts if (m := _SAVE.fullmatch(part))]
    if not numbers:
        return None
    last = numbers[-1]
    return (int(last[1]), int(last[2])) if last[1] else (0, int(last[3]))


def check(folder: Path, problems: Problems) -> Adapter | None:
    """Check the adapter in ``folder``; None where it is damaged, which is then among ``problems``."""
    before = problems.count
    names = entries(folder, problems)
    config = read_json(folder / CONFIG, problems, _AGAIN)
    if WEIGHTS in names:
        header = _safetensors.read_header(folder / WEIGHTS, problems)
    else:
        header = None
        pickled = "adapter_model.bin" in names
        fix = "Load it with peft and save_pretrained(…, safe_serialization=True)." if pickled else _AGAIN
        problems.add(f"{folder}: has no {WEIGHTS}{' but adapter_model.bin, a pickle' if pickled else ''}. {fix}")
    made = _config(folder / CONFIG, config, problems) if config is not None else None
    if header is None or config is None or made is None:
        return None
    base, rank, alpha, targets = made
    pairs = _pairs(folder / WEIGHTS, header.tensors, rank, config, problems)
    tokenizer = None
    if any((folder / n).is_file() for n in _tokenizer.FILES):
        tokenizer = _tokenizer.read_tokenizer(folder, problems)
    template = _tokenizer.fingerprint(_tokenizer.read_template(folder, problems))
    if problems.count > before:
        return None
    mark = tokenizer.fingerprint if tokenizer else None
    return Adapter(base, rank, alpha, targets, pairs, header.tensors, header.size, mark, template, config)


def _config(
    file: Path, config: Mapping[str, Any], problems: Problems
) -> tuple[str, int, float, tuple[str, ...]] | None:
    before = problems.count
    kind = config.get("peft_type")
    if kind != "LORA":
        problems.add(
            f"{file}: peft_type is {printable(kind, 40)!r}, and only LORA can be merged. Train a LoRA adapter."
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        problems.add(
            f"{file}: names no base model. Set base_model_name_or_path to the id or directory of the model that the "
            "adapter was trained on: the training run's config has it."
        )
    rank, alpha = whole(config, "r"), config.get("lora_alpha")
    if rank is None:
        problems.add(f"{file}: r is {printable(config.get('r'), 40)}, which is no rank. {_AGAIN}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e9:
        problems.add(f"{file}: lora_alpha is {printable(alpha, 40)}, which is no positive number. {_AGAIN}")
    targets = config.get("target_modules")
    listed = [targets] if isinstance(targets, str) else targets or []
    if not isinstance(listed, list) or not all(isinstance(t, str) for t in listed):
        problems.add(f"{file}: target_modules is no list of names. {_AGAIN}")
    elif not listed and not config.get("target_parameters"):
        problems.add(f"{file}: target_modules is empty, so the adapter changes nothing. {_AGAIN}")
    if problems.count > before or rank is None:
        return None
    ends = [printable(t if isinstance(targets, str) else t.rpartition(".")[2], 100) for t in listed]
    return printable(base, 500), rank, float(alpha or 0), tuple(dict.fromkeys(ends))[:50]


def _pairs(file: Path, tensors: tuple[Tensor, ...], rank: int, config: Mapping[str, Any], problems: Problems) -> int:
    halves: dict[str, dict[str, Tensor]] = {}
    for t in tensors:
        if m := _HALF.match(t.name):
            halves.setdefault(f"{m[1]}{m[3]}", {})[m[2]] = t
    if not halves:
        problems.add(f"{file}: holds no lora_A and lora_B matrices. {_AGAIN}")
    own = config.get("rank_pattern")
    ranks = {rank, *(own.values() if isinstance(own, dict) else ())} if _plain(own) else {rank}
    for pair in halves.values():
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None:
            there = next(iter(pair.values()))
            problems.add(f"{file}: {printable(there.name, 200)} has no {'A' if a is None else 'B'} to it. {_AGAIN}")
        elif len(a.shape) == 2 and len(b.shape) == 2 and not config.get("target_parameters"):
            if a.shape[0] != b.shape[1]:
                problems.add(
                    f"{file}: {printable(a.name, 200)} {list(a.shape)} and its B {list(b.shape)} do not multiply. "
                    f"{_AGAIN}"
                )
            elif a.shape[0] not in ranks:
                said = ", ".join(map(str, sorted(ranks)))
                problems.add(
                    f"{file}: {printable(a.name, 200)} has rank {a.shape[0]}, and {CONFIG} says {said}. {_AGAIN}"
                )
    return len(halves)


def _plain(own: Any) -> bool:
    return isinstance(own, dict) and all(type(n) is int for n in own.values())
