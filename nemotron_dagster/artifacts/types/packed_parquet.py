"""``packed_parquet``: shards of packed token sequences, and the splits that link to them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _files, _packs, _parallel
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._tally import histogram
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow.dataset as ds

LAYOUT = (
    "A directory with splits/train, splits/valid and splits/test (or train, valid and test themselves), each holding "
    "*.parquet shards or relative links to them; or one directory of shards, or one shard. Columns: input_ids "
    "list<int32>, loss_mask list<uint8> (already shifted), seq_start_id list<int32>."
)
SPLITS = ("train", "valid", "test")
_ALONE = 64 << 20
_PART = 16 << 20  # bytes that a process takes at a time


def validate(path: Path) -> dict[str, Any]:
    """Check every pack of every split.

    Returns:
        Facts: rows (packs), sequences, tokens, trained_tokens, pack_size (the longest pack), efficiency (share of
        the packs that tokens fill), packing_factor (sequences per pack), splits (rows, tokens and files of each),
        lengths of sequences, fill of packs, files, bytes.

    Raises:
        ArtifactError: naming shard and row of what is wrong.
    """
    problems = Problems()
    found = splits(path, problems)
    _leaks(found, problems)
    files = list(dict.fromkeys(f.resolve() for shards in found.values() for f in shards))
    size = sum(f.stat().st_size for f in files)
    workers = _parallel.processors() if size > _ALONE else 1
    tasks = []
    for f in files:
        n = max(1, f.stat().st_size // _PART)
        tasks += [(f, i, n) for i in range(n)]
    parts = _parallel.each(_packs.check, tasks, workers, apart=True) if tasks else []
    of_file: dict[str, _packs.Counts] = {}
    for part in parts:
        problems.merge(part.shown, part.wrong)
        of_file.setdefault(part.file, _packs.Counts(part.file)).add(part)
    problems.check("Pack the data again.")
    total = _packs.Counts("")
    sizes: dict[str, dict[str, int]] = {}
    for name, shards in found.items():
        one = _packs.Counts("")
        for shard in shards:
            one.add(of_file[str(shard.resolve())])
        sizes[name] = {"files": len(shards), "rows": one.rows, "sequences": one.sequences, "tokens": one.tokens}
        total.add(one)
    if not total.rows:
        raise ArtifactError(f"{path}: has no packs. Check what wrote it.")
    longest = max(total.packs)
    fill = Counter({n * 100 // longest: 0 for n in total.packs})
    for n, count in total.packs.items():
        fill[n * 100 // longest] += count
    return {
        "rows": total.rows,
        "sequences": total.sequences,
        "tokens": total.tokens,
        "trained_tokens": total.trained,
        "pack_size": longest,
        "efficiency": round(total.tokens / (total.rows * longest), 4),
        "packing_factor": round(total.sequences / total.rows, 2),
        "largest_token": total.largest,
        "splits": sizes,
        "files": len(files),
        "bytes": size,
        "lengths": histogram(total.lengths),
        "fill": histogram(fill, 25),
    }


def splits(path: Path, problems: Problems) -> dict[str, list[Path]]:
    """Split -> its shards, links not resolved.

    Raises:
        ArtifactError: no shard there.
    """
    folder = path / "splits" if (path / "splits").is_dir() else path
    named = [name for name in SPLITS if os.path.lexists(folder / name)]
    if not named:
        return {"train": _files.data_files(path, (".parquet",), problems)}
    found: dict[str, list[Path]] = {}
    for name in named:
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            continue  # so few shards that none was left for it
        found[name] = _files.data_files(folder / name, (".parquet",), problems)
        for file in found[name]:
            if file.is_symlink() and os.readlink(file).startswith(str(path.absolute()) + os.sep):
                problems.add(f"{file}: is an absolute link into its own artifact. Link relatively: artifacts move.")
    if "train" not in found:
        problems.add(f"{folder}: has no shard in train. Pack more rows, or allot fewer to the other splits.")
    return found


def _leaks(found: Mapping[str, list[Path]], problems: Problems) -> None:
    owner: dict[Path, str] = {}
    for name, shards in found.items():
        for shard in shards:
            first = owner.setdefault(shard.resolve(), name)
            if first != name:
                problems.add(f"{shard}: is in {first} too, so {name} would measure what was trained on. Unlink one.")


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """How much there is to train on, and how well it is packed."""
    keys = ("rows", "sequences", "tokens", "trained_tokens", "pack_size", "efficiency", "packing_factor")
    return {k: facts[k] for k in keys}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The splits."""
    rows = [(name, *(s[k] for k in ("files", "rows", "sequences", "tokens"))) for name, s in facts["splits"].items()]
    return {"splits": table(("split", "files", "packs", "sequences", "tokens"), rows)}


def columns(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The three columns."""
    return [
        ("input_ids", "list<int32>", "Tokens of the packed sequences, one after the other, not padded."),
        ("loss_mask", "list<uint8>", "1 where the next token counts; 0 at the last position of each sequence."),
        ("seq_start_id", "list<int32>", "Where each sequence begins."),
    ]


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Lengths of sequences, how full packs are, sizes of splits."""
    from nemotron_dagster.artifacts import pictures

    drawn = [
        pictures.histogram(facts["lengths"], "tokens per sequence", "sequences", folder / "lengths.png"),
        pictures.histogram(facts["fill"], "% of the pack size filled", "packs", folder / "fill.png"),
    ]
    if len(facts["splits"]) > 1:
        sizes = {name: s["tokens"] for name, s in facts["splits"].items()}
        drawn.append(pictures.bars(sizes, "tokens", folder / "splits.png"))
    return drawn


def read(path: Path) -> ds.Dataset:
    """The packs as a dataset; of a directory with splits, those of train.

    Raises:
        ArtifactError: no shards there.
    """
    import pyarrow.dataset as ds

    problems = Problems()
    found = splits(path, problems)
    problems.check()
    return ds.dataset([str(f) for f in found["train"]], format="parquet", schema=_packs.schema())


def write(value: Any, folder: Path, row_group_size: int = 1000) -> None:
    """Write one shard from ``(input_ids, loss_mask, seq_start_id)`` triples, or from a pyarrow.Table.

    The shard is ``shard_000000.parquet``, and ``splits/train`` links to it. The lists may be numpy arrays.

    Raises:
        ArtifactError: a value that does not fit the columns, no rows, or a shard that is there already.
    """
    import pyarrow as pa

    schema = _packs.schema()
    if isinstance(value, pa.Table):
        missing = [name for name in schema.names if name not in value.column_names]
        if missing:
            raise ArtifactError(f"the table has no column {', '.join(missing)}. Name its columns {schema.names}.")
        batches: Iterable[Any] = value.select(schema.names).to_batches(row_group_size)
    else:
        batches = _packs.batches(value, row_group_size)
    _packs.write(batches, folder / "shard_000000.parquet", schema)
    link = folder / "splits/train/000000__shard_000000.parquet"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("../../shard_000000.parquet")
