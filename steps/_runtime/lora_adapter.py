"""LoRA adapters of Hugging Face PEFT: which one a directory means, which base it belongs to, and do they fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint
from _runtime.payload import PayloadError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SAVE = re.compile(r"epoch_(\d+)_step_(\d+)|(?:checkpoint-|global_step_?|step_)(\d+)")
_UNFINISHED = ".incomplete"  # AutoModel's mark inside a checkpoint that is being written
_FRONT = "base_model.model."
_SAMPLED = 2**20


def find(given: str, key: str) -> Path:
    """The adapter that ``given`` is, or the newest whole one below it: what LATEST names, else the last by step.

    Steps are read from the names of saves below ``given`` only; digits elsewhere in a path mean nothing.

    Raises:
        PayloadError: there is none, or names do not tell which is the newest.
    """
    path = Path(given).expanduser()
    if not path.is_dir():
        raise PayloadError("adapter_missing", f"{key}={given}: no such directory", "Name the directory of an adapter.")
    if (path / CONFIG).is_file():
        return path
    latest = path / "LATEST"
    named = _below(latest.resolve()) if latest.is_dir() else []
    if len(named) == 1:
        print(f"{key}={given}: the adapter is the one that LATEST names, {named[0]}", flush=True)
        return named[0]
    numbers = {p: _number(p.relative_to(path)) for p in _below(path)}
    newest = [p for p in numbers if numbers[p] == max(numbers.values())]
    if not newest:
        raise PayloadError(
            "adapter_missing",
            f"{key}={given}: no {CONFIG} with {WEIGHTS} there or below",
            "Name the directory that training saved the adapter to.",
        )
    if len(newest) > 1:
        shown = ", ".join(str(p.relative_to(path)) for p in newest[:5])
        raise PayloadError("adapter_ambiguous", f"{key}={given}: holds several adapters ({shown})", "Name one of them.")
    print(f"{key}={given}: the adapter is {newest[0].relative_to(path)}", flush=True)
    return newest[0]


def _below(path: Path) -> list[Path]:
    """Folders of whole adapters in saves that ended."""

    def ended(folder: Path) -> bool:
        inside = [p for p in (folder, *folder.parents) if p == path or path in p.parents]
        return not any((p / _UNFINISHED).exists() for p in inside)

    folders = {file.parent for file in path.rglob(CONFIG) if (file.parent / WEIGHTS).is_file()}
    return sorted(folder for folder in folders if ended(folder))


def _number(below: Path) -> tuple[int, int]:
    saves = [m for part in below.parts if (m := _SAVE.fullmatch(part))]
    if not saves:
        return (-1, -1)
    last = saves[-1]
    return (int(last[1]), int(last[2])) if last[1] else (0, int(last[3]))


def read(adapter: Path, key: str) -> dict[str, Any]:
    """The adapter's config.

    Raises:
        PayloadError: it or the weights cannot be read, or it is no LoRA.
    """
    from safetensors import SafetensorError, safe_open

    fix = "Save the adapter again, with save_pretrained of PEFT."
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        with safe_open(adapter / WEIGHTS, framework="pt") as weights:
            held = list(weights.keys())
    except (OSError, ValueError, SafetensorError) as e:
        raise PayloadError("adapter_invalid", f"{key}: {adapter}: {e}", fix) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not any(".lora_" in k for k in held):
        raise PayloadError("adapter_invalid", f"{key}: {adapter}: is no LoRA adapter", fix)
    return config


def base(given: str | None, adapter: Path, config: dict[str, Any]) -> str:
    """The base model: the one given, else the one that the adapter records.

    A recorded path that begins with a dot counts from the adapter: a training run that makes its own base publishes
    both together.

    Raises:
        PayloadError: no base, or another than the adapter's.
    """
    recorded = config.get("base_model_name_or_path")
    theirs = recorded if isinstance(recorded, str) and recorded else None
    if theirs and theirs.startswith("."):
        theirs = str((adapter.resolve() / theirs).resolve())
    gone = theirs is None or (hf_checkpoint.is_local(theirs) and not Path(theirs).expanduser().is_dir())
    if given is None:
        if theirs is None or gone:
            told = f"records {theirs}, which is not there" if theirs else "records no base model"
            raise PayloadError(
                "base_model_missing",
                f"base_hf_path is not set, and {adapter / CONFIG} {told}",
                "Give base_hf_path, the model that the adapter was trained on.",
            )
        print(f"base_hf_path: {theirs}, as the adapter records", flush=True)
        return theirs
    if theirs is None or gone:
        print(f"base_hf_path={given}: the adapter records {theirs}, which is not there to compare", flush=True)
    elif not _same(given, theirs):
        raise PayloadError(
            "base_model_mismatch",
            f"base_hf_path={given}: the adapter was trained on {theirs}",
            f"Give base_hf_path={theirs}.",
        )
    return given


def _same(one: str, other: str) -> bool:
    """Could both be one model? A Hub id and a directory could."""
    local = [hf_checkpoint.is_local(name) for name in (one, other)]
    if not any(local):
        return one == other
    if not all(local):
        return True
    first, second = (Path(name).expanduser().resolve() for name in (one, other))
    return first == second or _mark(first) == _mark(second)


def _mark(model: Path) -> dict[str, str]:
    """Of each weights file its size and its first megabyte: other weights differ there."""
    marks = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as data:
            digest = hashlib.sha256(data.read(_SAMPLED)).hexdigest()
        marks[file.name] = f"{file.stat().st_size} {digest}"
    return marks


def check_fit(adapter: Path, model: str) -> None:
    """Refuse an adapter whose matrices, or whose tokenizer, do not fit the base's weights; reads headers only.

    Raises:
        PayloadError: naming the first weight that does not fit.
    """
    if not hf_checkpoint.is_local(model):
        return
    shapes = dict(_shapes(sorted(Path(model).expanduser().glob("*.safetensors"))))
    for name, shape in _shapes([adapter / WEIGHTS]):
        module, _, half = name.removeprefix(_FRONT).partition(".lora_")
        theirs = shapes.get(f"{module}.weight" if half else module)
        if theirs is None or half.startswith("embedding"):
            continue  # a weight that only the loaded model has under that name
        fits = shape[1:] == theirs[1:] if half[:1] == "A" else shape[:1] == theirs[:1] if half else shape == theirs
        if not fits:
            raise PayloadError(
                "base_model_mismatch",
                f"{adapter / WEIGHTS}: {name} is {shape}, and the weight of {model} that it adds to is {theirs}",
                "Give the base that the adapter was trained on.",
            )
    rows = next((s[0] for n, s in shapes.items() if n.endswith("embed_tokens.weight")), None)
    size = _vocabulary(adapter)
    if rows is not None and size is not None and size > rows:
        raise PayloadError(
            "vocabulary_mismatch",
            f"{adapter}: its tokenizer has {size:,} tokens, and {model} has {rows:,} embeddings",
            "Give the base that the adapter was trained on, with its resized embeddings.",
        )


def _shapes(files: list[Path]) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it has no iterator
                yield name, list(weights.get_slice(name).get_shape())


def _vocabulary(adapter: Path) -> int | None:
    """One more than the greatest token id of the tokenizer beside the adapter; None where there is none."""
    file = adapter / "tokenizer.json"
    if not file.is_file():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    words = data.get("model", {}).get("vocab")
    known = list(words.values()) if isinstance(words, dict) else range(len(words or ()))
    added = [token["id"] for token in data.get("added_tokens") or ()]
    return max([*known, *added], default=-1) + 1
