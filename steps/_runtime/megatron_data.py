"""What Megatron-Bridge trains on: token shards that a blend.json lists, or packed sequences in Parquet."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime import chat_data
from _runtime.payload import PayloadError

SPLITS = ("train", "valid", "test")
MAKE_TOKENS = "Give the blend.json that data_prep/pretrain_prep wrote, or a prefix of .bin and .idx files."
MAKE_PACKS = "Give the splits/train directory of data_prep/sft_packing, one of its shards, or a glob of them."
COLUMNS = {"input_ids", "loss_mask", "seq_start_id"}
_LOOKED_AT = 1 << 24  # tokens of a shard that are compared with the vocabulary

#: Prefixes of shards and their weights, of one split.
Blend = tuple[list[str], list[float] | None]


@dataclass(frozen=True)
class Data:
    """What was found before any library is imported.

    Attributes:
        shards: the files that hold the tokens to train on.
        blends: per split, of token shards.
        packs: how many packs there are to train on.
        made_with: what the plan.json beside the first shard says of the tokenizer, the template and the pack size.
        largest: the largest token that was seen in the first shard.
        longest: the longest pack that was seen there.
    """

    shards: list[Path]
    blends: list[Blend | None] | None = None
    packs: int | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)
    largest: int = 0
    longest: int = 0


def tokens(value: Any, key: str) -> Data:
    """Find the token shards that a blend.json, a prefix, or a list of weights and prefixes names.

    Prefixes in a blend.json count from its directory.

    Raises:
        PayloadError: nothing there, or not all of it.
    """
    if not chat_data.given(value):
        raise PayloadError("missing_blend_json", f"{key} is not set", MAKE_TOKENS)
    if isinstance(value, str) and value.endswith(".json"):
        file = Path(value).expanduser()
        lists, home = _lists(file, key), file.absolute().parent
    else:
        lists, home = {"train": value.split() if isinstance(value, str) else value}, Path.cwd()
    blends = [_blend(lists.get(split) or [], home, f"{key}: {split}") for split in SPLITS]
    train = blends[0]
    if train is None:
        raise PayloadError("missing_blend_json", f"{key}={value}: lists no shard in train", MAKE_TOKENS)
    shards = []
    for prefix in [p for blend in blends if blend for p in blend[0]]:
        for suffix in (".bin", ".idx"):
            if not Path(prefix + suffix).is_file():
                raise PayloadError("missing_blend_json", f"{key}={value}: {prefix}{suffix}: no such file", MAKE_TOKENS)
    shards = [Path(prefix + ".bin") for prefix in train[0]]
    if not any(path.stat().st_size for path in shards):
        raise PayloadError("dataset_empty", f"{key}={value}: the shards of train hold no token", MAKE_TOKENS)
    return Data(shards, blends=blends, made_with=_plan(shards[0]), largest=_largest_of(train[0][0]))


def _lists(file: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PayloadError("missing_blend_json", f"{key}={file}: no such file", MAKE_TOKENS) from None
    except (OSError, ValueError) as e:
        raise PayloadError("missing_blend_json", f"{key}={file}: not readable as JSON ({e})", MAKE_TOKENS) from None
    if isinstance(found, list):
        found = {"train": found}
    if not isinstance(found, dict):
        raise PayloadError("missing_blend_json", f"{key}={file}: neither a mapping nor a list", MAKE_TOKENS)
    return {k: v.split() if isinstance(v, str) else v for k, v in found.items()}


def _blend(entries: Any, home: Path, where: str) -> Blend | None:
    """Weight and prefix in turn, or prefixes alone; as Megatron-core's ``get_blend_from_list`` tells them apart."""
    if not isinstance(entries, list) or not all(isinstance(e, str | int | float) for e in entries):
        raise PayloadError("missing_blend_json", f"{where}: not a list of weights and prefixes", MAKE_TOKENS)
    if not entries:
        return None
    weights = [_number(e) for e in entries[::2]]
    if len(entries) % 2 or all(w is None for w in weights):
        return [str(home / str(e)) for e in entries], None
    for weight, prefix in zip(weights, entries[1::2], strict=True):
        if weight is None or not 0 < weight < float("inf"):
            raise PayloadError(
                "missing_blend_json", f"{where}: the weight of {prefix} is no positive number", MAKE_TOKENS
            )
    return [str(home / str(e)) for e in entries[1::2]], [w for w in weights if w is not None]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _largest_of(prefix: str) -> int:
    """The largest token in the first part of a shard; its index says how wide tokens are."""
    import numpy as np

    with Path(prefix + ".idx").open("rb") as index:
        head = index.read(18)
    widths = {4: np.int32, 5: np.int64, 8: np.uint16}
    if len(head) < 18 or not head.startswith(b"MMIDIDX") or head[17] not in widths:
        raise PayloadError("missing_blend_json", f"{prefix}.idx: is no index of token shards", MAKE_TOKENS)
    start = np.fromfile(prefix + ".bin", dtype=widths[head[17]], count=_LOOKED_AT)
    return int(start.max()) if start.size else 0


def packs(value: Any, key: str) -> Data:
    """Find the packed shards that a directory, a file or a glob names.

    Raises:
        PayloadError: nothing there, or not packed sequences.
    """
    import pyarrow.parquet as pq

    if not chat_data.given(value):
        raise PayloadError("missing_packed_data", f"{key} is not set", MAKE_PACKS)
    path = Path(str(value)).expanduser()
    if path.is_dir():
        shards = sorted(p for p in path.iterdir() if p.suffix in (".parquet", ".pq"))
    else:
        shards = sorted(Path(p) for p in glob.glob(str(path)))
    if not shards:
        raise PayloadError("missing_packed_data", f"{key}={value}: no .parquet file there", MAKE_PACKS)
    rows = 0
    for shard in shards:
        try:
            facts = pq.read_metadata(shard)
            missing = COLUMNS - set(facts.schema.to_arrow_schema().names)
        except (OSError, ValueError) as e:
            raise PayloadError(
                "missing_packed_data", f"{key}: {shard}: not readable as Parquet ({e})", MAKE_PACKS
            ) from None
        if missing:
            what = f"has no column {', '.join(sorted(missing))}; it is no packed sequence"
            raise PayloadError("missing_packed_data", f"{key}: {shard}: {what}", MAKE_PACKS)
        rows += facts.num_rows
    if not rows:
        raise PayloadError("dataset_empty", f"{key}={value}: no packs", MAKE_PACKS)
    ids = pq.ParquetFile(shards[0]).read_row_group(0, ["input_ids"]).column(0).combine_chunks()
    largest = int(ids.flatten().to_numpy().max()) if len(ids.flatten()) else 0
    longest = max((len(row) for row in ids), default=0)
    return Data(shards, packs=rows, made_with=_plan(shards[0]), largest=largest, longest=longest)


def _plan(shard: Path) -> dict[str, Any]:
    """What the step that made a shard wrote beside it; empty where another tool made it."""
    try:
        found = json.loads((shard.resolve().parent / "plan.json").read_text(encoding="utf-8"))
        settings, tokenizer = found.get("settings") or {}, found.get("resolved_tokenizer") or {}
        return {
            "pack_size": settings.get("pack_size"),
            "fingerprint": tokenizer.get("fingerprint"),
            "vocab_size": tokenizer.get("vocab_size"),
            "model": tokenizer.get("model"),
        }
    except (OSError, ValueError, AttributeError):
        return {}


def check_fit(data: Data, lengths: Mapping[str, Any], vocabulary: int | None, tokenizer: str | None) -> None:
    """Refuse data that was not made for the model.

    Args:
        lengths: key -> sequence length, of every key that names one.
        vocabulary: how many tokens the model has, where that is known.
        tokenizer: a directory with the model's tokenizer, or the name of one.

    Raises:
        PayloadError: naming both numbers.
    """
    given = {k: v for k, v in lengths.items() if v is not None}
    if len(set(given.values())) > 1:
        told = ", ".join(f"{k}={v}" for k, v in given.items())
        raise PayloadError("sequence_length_mismatch", f"{told}: must be one number", "Set them all to one length.")
    key, length = next(iter(given.items()), ("model.seq_length", None))
    made = data.made_with.get("pack_size")
    if data.packs is not None and length is not None and (data.longest > length or made not in (None, length)):
        raise PayloadError(
            "sequence_length_mismatch",
            f"{key}={length}, but {data.shards[0]} was packed to {made or data.longest} tokens",
            f"Set the sequence length to {made or data.longest} everywhere, or pack the data again.",
        )
    if vocabulary is not None and data.largest >= vocabulary:
        raise PayloadError(
            "tokenizer_mismatch",
            f"{data.shards[0]}: has token {data.largest}, but the model has a vocabulary of {vocabulary}",
            "Make the data again with the tokenizer of the model that is trained.",
        )
    wanted, found = data.made_with.get("fingerprint"), _fingerprint(tokenizer)
    if wanted and found and wanted != found:
        raise PayloadError(
            "tokenizer_mismatch",
            f"{data.shards[0]}: made with the tokenizer {wanted[:12]} ({data.made_with.get('model')}), "
            f"but {tokenizer} has {found[:12]}",
            "Make the data again with the tokenizer of the model that is trained.",
        )


def _fingerprint(tokenizer: str | None) -> str | None:
    from _runtime.data_prep import tokenizers_

    file = Path(tokenizer or "") / "tokenizer.json"
    try:
        return tokenizers_.fingerprint(json.loads(file.read_text(encoding="utf-8"))) if tokenizer else None
    except (OSError, ValueError, KeyError):
        return None


def packed_dataset(settings: Mapping[str, Any], now: Any, scratch: Path) -> Any:
    """The dataset section of a run that fine-tunes on packs.

    Args:
        settings: the config's ``dataset``; of ``packed_sequence_specs`` every field of the library's class counts.
        now: the recipe's dataset, whose length is the default.
        scratch: a directory that the library may make, but never fills: the packs are made already.

    Raises:
        PayloadError: a key that the library does not know.
    """
    from _runtime import megatron_config

    specs_class, dataset_class, specs_key = _classes()
    specs = specs_class()
    given = dict(settings.get("packed_sequence_specs") or {})
    megatron_config.merge(specs, {k: v for k, v in given.items() if v is not None}, "dataset.packed_sequence_specs")
    try:
        specs.__post_init__()
    except (ValueError, FileNotFoundError) as e:
        raise PayloadError("config_invalid", f"dataset.packed_sequence_specs: {e}", MAKE_PACKS) from None
    validation = bool(given.get("packed_val_data_path"))
    dataset = dataset_class(
        seq_length=settings.get("seq_length") or getattr(now, "seq_length", 4096),
        dataset_root=str(scratch),
        dataloader_type="batch",
        do_validation=validation,
        do_test=False,
        **{specs_key: specs, **({"enable_offline_packing": True} if specs_key != "packed_sequence_specs" else {})},
    )
    own = {"packed_sequence_specs", "nano3_packed_sft_dir", "_target_"}
    megatron_config.merge(dataset, {k: v for k, v in settings.items() if k not in own and v is not None}, "dataset")
    return dataset


def _classes() -> tuple[type, type, str]:
    """The class of the packing settings, of the dataset, and the field that joins them: of 0.6, else of 0.3."""
    try:
        from megatron.bridge.data.builders import GPTSFTDatasetConfig
        from megatron.bridge.data.packing.config import PackedSequenceSpecs
    except ImportError:
        from megatron.bridge.data.datasets import packed_sequence  # type: ignore[attr-defined]
        from megatron.bridge.training.config import FinetuningDatasetConfig

        return packed_sequence.PackedSequenceSpecs, FinetuningDatasetConfig, "packed_sequence_specs"
    return PackedSequenceSpecs, GPTSFTDatasetConfig, "offline_packing_specs"


def token_dataset(settings: Mapping[str, Any], now: Any, data: Data, cache: Path) -> None:
    """Point the recipe's dataset at token shards; the index of samples is built in ``cache``, not beside them."""
    from _runtime import megatron_config

    rest: Iterable[tuple[str, Any]] = ((k, v) for k, v in settings.items() if k not in ("data_paths", "_target_"))
    megatron_config.merge(now, dict(rest), "dataset")
    if data.blends is not None and data.blends[1:] == [None, None]:
        now.blend, now.blend_per_split = data.blends[0], None
    else:
        now.blend, now.blend_per_split, now.split = None, data.blends, None
    now.path_to_cache = now.path_to_cache or str(cache)
