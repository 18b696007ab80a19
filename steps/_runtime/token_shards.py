"""Megatron token shards for AutoModel: blend.json becomes what its MegatronPretraining data set reads, checked first.

A shard is a pair of files PREFIX.bin (token ids) and PREFIX.idx (a header, see data_prep/binidx.py, then lengths).
``paths`` names one of

    a blend.json, or the directory it lies in    {"train": ["0.7", "PREFIX", "0.3", "PREFIX"], "valid": [...], ...}
    the same as a mapping, or one flat list      which ``split`` then divides
    a prefix, or a glob of .bin files
"""

from __future__ import annotations

import glob
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from _runtime.chat_data import given
from _runtime.payload import PayloadError

SPLITS = {"train": "train", "valid": "validation", "val": "validation", "dev": "validation", "validation": "validation"}
SPLITS |= {"test": "test"}
MADE_BY = "Run data_prep/pretrain_prep and give the blend.json that it wrote."
# Read from step_scheduler by AutoModel 0.7; earlier releases want them here.
SCHEDULE = ("trainer_max_steps", "trainer_val_check_interval", "micro_batch_size", "global_batch_size")
HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
LOOKED_AT = 4_000_000  # tokens, of all shards together: another tokenizer shows long before


@dataclass(frozen=True)
class Shard:
    """``prefix`` is absolute; ``weight`` None where the list has none."""

    prefix: str
    weight: float | None


def used_by(cfg: dict[str, Any]) -> bool:
    """Does the config train on token shards rather than on rows?"""
    return "megatron_dataset" in str((cfg.get("dataset") or {}).get("_target_"))


def prepare(cfg: dict[str, Any], output: Path) -> dict[str, int]:
    """Give every data set absolute prefixes, and a place below ``output`` for the index that it builds.

    A validation data set whose blend lists no validation shards is dropped, and said so. Returns facts for the result.

    Raises:
        PayloadError: no blend, a blend that is none, or a shard that is missing or damaged.
    """
    facts = {}
    for section in [k for k in cfg if k == "dataset" or k.startswith("validation_dataset")]:
        settings = cfg[section] or {}
        splits = _read(settings.get("paths"), f"{section}.paths")
        wanted = settings.get("splits_to_build") or ("train" if section == "dataset" else "validation")
        wanted = wanted if isinstance(wanted, str) else wanted[0]
        settings["splits_to_build"] = wanted
        if isinstance(splits, dict) and not splits.get(wanted):
            if section == "dataset":
                raise PayloadError("blend_invalid", f"{section}.paths lists no shard for {wanted}", MADE_BY)
            print(f"{section} is dropped: its blend lists no shard for {wanted}", flush=True)
            cfg.pop(section)
            continue
        for shard in splits[wanted] if isinstance(splits, dict) else splits:
            _check_files(shard.prefix, f"{section}.paths")
        if isinstance(splits, dict):
            settings["paths"] = {name: _flat(shards) for name, shards in splits.items() if shards}
            settings.pop("split", None)  # every split has shards of its own
        else:
            settings["paths"] = _flat(splits)
        if not settings.get("index_mapping_dir"):  # AutoModel's own default is beside the input
            settings["index_mapping_dir"] = str(output / "index_mapping" / section)
        if section == "dataset":
            shards = splits[wanted] if isinstance(splits, dict) else splits
            facts = {"shards": len(shards), "tokens": sum(_tokens(s.prefix) for s in shards)}
    if not any(k.startswith("validation_dataset") for k in cfg):
        cfg.pop("validation_dataloader", None)
        cfg["step_scheduler"]["val_every_steps"] = None
    _check_samples(cfg)
    return {**facts, "seq_length": int(cfg["dataset"].get("seq_length") or 2048)}


def fit_model(cfg: dict[str, Any], vocabulary: int | None, context: int | None) -> None:
    """See that tokens and lengths are the model's: ``vocabulary`` rows of its embedding, ``context`` its positions.

    Raises:
        PayloadError: a token id outside the vocabulary, a sample longer than the context, unequal lengths.
    """
    lengths = {k: int(cfg[k].get("seq_length") or 2048) for k in cfg if k.startswith(("dataset", "validation_dataset"))}
    told = ", ".join(f"{k}.seq_length={v}" for k, v in lengths.items())
    if len(set(lengths.values())) > 1:
        raise PayloadError("tokenizer_or_sequence_mismatch", f"{told}: not the same", "Make them equal.")
    if context and max(lengths.values()) > context:
        raise PayloadError(
            "tokenizer_or_sequence_mismatch",
            f"{told}: the model has {context} positions",
            f"Set them to at most {context}.",
        )
    paths = cfg["dataset"]["paths"]
    shards = list(_pairs(paths[cfg["dataset"]["splits_to_build"]] if isinstance(paths, dict) else paths))
    for shard in shards if vocabulary else []:
        largest = _largest(shard.prefix, LOOKED_AT // len(shards))
        if vocabulary and largest >= vocabulary:
            raise PayloadError(
                "tokenizer_or_sequence_mismatch",
                f"dataset.paths: {shard.prefix}.bin has the token id {largest}; the model knows {vocabulary}",
                "Make the shards with the model's own tokenizer: data_prep/pretrain_prep, tokenizer.model.",
            )


def drop_torn_indices(cfg: dict[str, Any]) -> None:
    """Remove index files that a kill left half written: AutoModel takes a file that is there for a whole one."""
    import numpy as np

    for section in [k for k in cfg if k.startswith(("dataset", "validation_dataset"))]:
        for file in Path(cfg[section]["index_mapping_dir"]).glob("*.npy"):
            try:
                np.load(file, mmap_mode="r")
            except (ValueError, EOFError):
                file.unlink()
                print(f"removed {file}: a kill left it half written", flush=True)


def drop_schedule(cfg: dict[str, Any]) -> None:
    """Leave out what the installed AutoModel takes from step_scheduler and refuses in a data set; say so."""
    try:
        from nemo_automodel.components.datasets.llm.megatron_dataset import MegatronPretrainingConfig
    except ImportError:
        return  # a release before 0.7
    known = {f.name for f in fields(MegatronPretrainingConfig)}
    for section in [k for k in cfg if k.startswith(("dataset", "validation_dataset"))]:
        for key in SCHEDULE:
            if key in cfg[section] and key not in known:
                print(f"{section}.{key}={cfg[section].pop(key)} is left out: step_scheduler says it here", flush=True)


def _read(value: Any, key: str) -> dict[str, list[Shard]] | list[Shard]:
    if not given(value):
        raise PayloadError("missing_blend_json", f"{key} is not set", MADE_BY)
    if isinstance(value, dict | list | tuple):
        return _blend(value, Path.cwd(), key)
    path = Path(str(value)).expanduser()
    file = path / "blend.json" if path.is_dir() else path
    if file.suffix.lower() == ".json":
        try:
            return _blend(json.loads(file.read_text(encoding="utf-8")), file.parent.absolute(), f"{key}: {file}")
        except OSError as e:
            raise PayloadError("missing_blend_json", f"{key}: {file}: {e.strerror}", MADE_BY) from None
        except ValueError as e:
            raise PayloadError("blend_invalid", f"{key}: {file}: not JSON ({e})", MADE_BY) from None
    if glob.has_magic(str(value)):
        found = sorted({str(Path(p).absolute().with_suffix("")) for p in glob.glob(str(value)) if p.endswith(".bin")})
        if not found:
            raise PayloadError("missing_blend_json", f"{key}={value}: matches no .bin file", MADE_BY)
        return [Shard(prefix, None) for prefix in found]
    if path.is_dir() or not Path(f"{path}.idx").is_file():
        raise PayloadError(
            "missing_blend_json", f"{key}={value}: no blend.json there, and no shard of that name", MADE_BY
        )
    return [Shard(str(path.absolute()), None)]


def _blend(data: Any, folder: Path, place: str) -> dict[str, list[Shard]] | list[Shard]:
    if isinstance(data, list | tuple):
        return _shards(list(data), folder, place)
    if not isinstance(data, dict) or not data:
        raise PayloadError("blend_invalid", f"{place}: neither a mapping of splits nor a list of shards", MADE_BY)
    unknown = [k for k in data if k not in SPLITS]
    if unknown:
        raise PayloadError("blend_invalid", f"{place}: {unknown[0]!r} is no split (train, valid, test)", MADE_BY)
    return {SPLITS[name]: _shards(entries or [], folder, f"{place}, {name}") for name, entries in data.items()}


def _shards(entries: Any, folder: Path, place: str) -> list[Shard]:
    entries = [entries] if isinstance(entries, str) else entries
    try:
        pairs = list(_pairs(entries))
    except (TypeError, ValueError, AttributeError) as e:
        raise PayloadError("blend_invalid", f"{place}: not weights and prefixes in turn ({e})", MADE_BY) from None
    return [Shard(str(folder / s.prefix) if "://" not in s.prefix else s.prefix, s.weight) for s in pairs]


def _pairs(entries: list[Any]) -> Iterator[Shard]:
    """Weight and prefix in turn, or prefixes alone: an even list that begins with a number has weights."""
    if len(entries) % 2 == 0 and entries and _is_number(entries[0]):
        for weight, prefix in zip(entries[::2], entries[1::2], strict=True):
            yield Shard(prefix.strip(), float(weight))
    else:
        for prefix in entries:
            yield Shard(prefix.strip(), None)


def _flat(shards: list[Shard]) -> list[str]:
    return [part for s in shards for part in ([] if s.weight is None else [str(s.weight)]) + [s.prefix]]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_files(prefix: str, key: str) -> None:
    if "://" in prefix:
        return  # in an object store; AutoModel reads it as object_storage_config says
    for suffix in (".idx", ".bin"):
        file = Path(prefix + suffix)
        if not file.is_file():
            raise PayloadError("blend_invalid", f"{key}: {file}: no such file", MADE_BY)
    with open(f"{prefix}.idx", "rb") as index:
        head = index.read(HEADER.size)
    if len(head) < HEADER.size or head[:9] != MAGIC or head[17] not in DTYPES:
        raise PayloadError("blend_invalid", f"{key}: {prefix}.idx: not the index of a token shard", MADE_BY)
    if not Path(f"{prefix}.bin").stat().st_size:
        raise PayloadError("blend_invalid", f"{key}: {prefix}.bin: holds no tokens", MADE_BY)


def _dtype(prefix: str) -> Any:
    import numpy as np

    with open(f"{prefix}.idx", "rb") as index:
        return np.dtype(DTYPES[HEADER.unpack(index.read(HEADER.size))[2]]).newbyteorder("<")


def _tokens(prefix: str) -> int:
    return 0 if "://" in prefix else int(Path(f"{prefix}.bin").stat().st_size // _dtype(prefix).itemsize)


def _largest(prefix: str, count: int) -> int:
    import numpy as np

    return -1 if "://" in prefix else int(np.fromfile(f"{prefix}.bin", _dtype(prefix), max(count, 1)).max())


def _check_samples(cfg: dict[str, Any]) -> None:
    """AutoModel asserts this without a word."""
    samples, steps = cfg["dataset"].get("num_train_samples"), cfg["step_scheduler"].get("max_steps")
    batch = cfg["step_scheduler"].get("global_batch_size") or 1
    if samples and steps and int(samples) < int(steps) * int(batch):
        raise PayloadError(
            "config_invalid",
            f"dataset.num_train_samples={samples}: less than step_scheduler.max_steps x global_batch_size "
            f"= {int(steps) * int(batch)}",
            "Raise it, or remove it: that product is the default.",
        )
