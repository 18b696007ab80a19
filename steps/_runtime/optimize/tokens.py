"""Tokens to distill on: Megatron's indexed data through megatron-core's own dataset, or random ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _runtime.payload import PayloadError

KEY = "args.data_paths"
FIX = "Give the blend.json of data_prep/pretrain_prep, or [weight, prefix, ...] with prefixes without .bin and .idx."
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Blend:
    """Weight and shard prefix in turn, per split; without ``valid`` a hundredth of the training shards is held out."""

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()

    def prefixes(self) -> list[str]:
        """Every shard's prefix."""
        return [*self.train[1::2], *self.valid[1::2]]


def blend(value: Any) -> Blend:
    """Read the setting: a list, one prefix, a blend.json, or a directory that holds one.

    Raises:
        PayloadError: no data, not that form, or a shard that is not there.
    """
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        file = path / "blend.json" if path.is_dir() else path
        made = _read(file) if file.suffix == ".json" else Blend(("1.0", str(file)))
    elif isinstance(value, (list, tuple)) and value:
        made = Blend(_weighted(value, KEY))
    else:
        raise PayloadError("data_missing", f"{KEY}={value!r}: no data, and args.use_mock_data is false", FIX)
    for prefix in made.prefixes():
        for ending in (".idx", ".bin"):
            if not Path(prefix + ending).is_file():
                raise PayloadError("data_missing", f"{KEY}: {prefix}{ending}: no such file", FIX)
    return made


def _read(file: Path) -> Blend:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PayloadError("data_missing", f"{KEY}={file}: {e}", FIX) from None
    if not isinstance(data, dict) or not data.get("train"):
        raise PayloadError("data_missing", f"{KEY}={file}: lists no shard under `train`", FIX)
    return Blend(*(_weighted(data.get(split) or [], f"{file}: {split}", file.parent) for split in SPLITS))


def _weighted(entries: Any, where: str, folder: Path = Path()) -> tuple[str, ...]:
    """Check pairs of weight and prefix; a relative prefix counts from ``folder``."""
    if not isinstance(entries, (list, tuple)) or len(entries) % 2:
        raise PayloadError("data_invalid", f"{where}: not pairs of weight and prefix", FIX)
    out: list[str] = []
    for weight, prefix in zip(entries[::2], entries[1::2], strict=True):
        try:
            good = float(weight) > 0
        except (TypeError, ValueError):
            good = False
        if not good:
            raise PayloadError("data_invalid", f"{where}: {weight!r} is no weight above zero", FIX)
        out += [str(weight), str(folder / str(prefix).strip())]
    return tuple(out)


def random(vocabulary: int, length: int, seed: int) -> Callable[[int], Any]:
    """Number of a sample -> its random tokens (length,); the same for the same seed."""
    import torch

    def sample(number: int) -> Any:
        return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed * 1_000_003 + number))

    return sample


def indexed(
    source: Blend, tokenizer: Any, vocabulary: int, length: int, counts: tuple[int, int], seed: int, cache: Path
) -> tuple[Callable[[int], Any], Callable[[int], Any] | None]:
    """Number of a sample -> its tokens (length,), for training and, where there are any, for validation.

    Documents are joined and cut as megatron-core does it, in an order that depends on ``seed`` and ``counts``.

    Raises:
        PayloadError: a token that the models have no embedding for, or too few tokens for one sample.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import get_blend_from_list

    for prefix in source.prefixes():
        shard = IndexedDataset(prefix)
        largest = max((int(shard[n].max()) for n in range(len(shard)) if len(shard[n])), default=-1)
        if largest >= vocabulary:
            raise PayloadError(
                "teacher_student_or_tokenizer_mismatch",
                f"{KEY}: {prefix}.bin has token {largest}; teacher and student have {vocabulary}",
                "Tokenize the data with the tokenizer of the teacher and the student.",
            )
        if largest < 0:
            raise PayloadError("data_invalid", f"{KEY}: {prefix}.bin has no tokens", FIX)
    per_split = [get_blend_from_list(list(part)) if part else None for part in (source.train, source.valid, ())]
    which = {"blend_per_split": per_split} if source.valid else {"blend": per_split[0], "split": "99,1,0"}
    end = tokenizer.eos_token_id
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=length,
        path_to_cache=str(cache),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        num_dataset_builder_threads=1,
        tokenizer=SimpleNamespace(
            eod=0 if end is None else end, pad=0, vocab_size=vocabulary, unique_identifiers={"size": vocabulary}
        ),
        **which,
    )
    try:
        train, valid, _ = BlendedMegatronDatasetBuilder(GPTDataset, [*counts, 0], lambda: True, config).build()
    except (AssertionError, IndexError, ValueError) as e:
        raise PayloadError("data_invalid", f"{KEY}: {' '.join(str(e).split())[:300]}", FIX) from None
    if train is None or not len(train):
        raise PayloadError("data_invalid", f"{KEY}: fewer tokens than one sample of {length}", "Lower args.seq_length.")
    held_out = valid if valid is not None and len(valid) else None
    return _taker(train), _taker(held_out) if held_out is not None else None


def _taker(dataset: Any) -> Callable[[int], Any]:
    return lambda number: dataset[number % len(dataset)]["tokens"].long()


def describe(args: Mapping[str, Any]) -> str:
    """Where the tokens come from, for the record."""
    return "random tokens" if args.get("use_mock_data") else "indexed data"
