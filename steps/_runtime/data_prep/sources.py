"""The files of a dataset: local files, directories, globs, ``hf://``, ``s3://``, ``gs://`` and other fsspec URLs."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from _runtime.data_prep import hub
from _runtime.data_prep.blend import Dataset
from _runtime.payload import PayloadError

FORMATS = {
    ".jsonl": "jsonl", ".jsonl.gz": "jsonl.gz", ".jsonl.zst": "jsonl.zst", ".ndjson": "jsonl",
    ".json.gz": "jsonl.gz", ".json.zst": "jsonl.zst", ".json": "json", ".parquet": "parquet",
}  # fmt: skip
_OTHERS = ("artifact.json", "curation.json", "dataset_info.json", "manifest.json", "dataset_infos.json")
_ARROW = ("s3://", "gs://", "gcs://")


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset.

    Attributes:
        path: local path or URL.
        name: path below the dataset's own directory: what tells the file from its neighbours wherever it lies.
        format: ``jsonl``, ``jsonl.gz``, ``jsonl.zst``, ``json`` (an array, or rows one a line) or ``parquet``.
        size: bytes, as stored.
        stamp: changes when the content does: modification time in ns, an ETag, or a Hub file's object id.
        revision: the Hub commit, of a Hub file.
    """

    path: str
    name: str
    format: str
    size: int
    stamp: str
    revision: str | None = None

    @property
    def identity(self) -> list[str | int]:
        """What a plan's digest sees of the file."""
        return [self.name, self.format, self.size, self.stamp]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SourceFile:
        return cls(**data)


def find_files(dataset: Dataset) -> list[SourceFile]:
    """The data files of a dataset, in the order of their names.

    Raises:
        PayloadError: nothing there, no file of a known format, or a store or the Hub that does not answer.
    """
    path = dataset.path
    if path.startswith("hf://"):
        return [
            SourceFile(f.url, f.name, _format(f.name, dataset), f.size, f.stamp, f.revision)
            for f in hub.list_files(dataset, tuple(FORMATS))
        ]
    for key in ("split", "subset"):
        if getattr(dataset, key):
            message = f"dataset {dataset.name!r}: {key} is set, and {path} is no Hub dataset"
            raise _missing(message, f"Remove {key}, or name the files of that {key} in path.")
    found = _remote(dataset) if "://" in path and not path.startswith("file://") else _local(dataset)
    if not any(f.size for f in found):
        raise _missing(f"dataset {dataset.name!r}: {path}: every file is empty", "Give files with rows.")
    return sorted(found, key=lambda f: f.name)


def _local(dataset: Dataset) -> list[SourceFile]:
    path = Path(dataset.path.removeprefix("file://")).expanduser()
    if path.is_dir():
        root, files = path, [p for p in _walk(path) if _known(p.name)]
        if not files:
            raise _missing(f"dataset {dataset.name!r}: {path} holds no {', '.join(FORMATS)} file")
    elif path.is_file():
        root, files = path.parent, [path]
    elif glob.has_magic(str(path)):
        files = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        root = Path(_fixed_part(str(path)))
        if not files:
            raise _missing(f"dataset {dataset.name!r}: {path} matches no file")
    else:
        raise _missing(f"dataset {dataset.name!r}: {path}: no such file or directory")
    made = []
    for file in files:
        about = file.stat()
        name = file.relative_to(root).as_posix()
        made.append(
            SourceFile(str(file.absolute()), name, _format(name, dataset), about.st_size, str(about.st_mtime_ns))
        )
    return made


def _walk(root: Path) -> list[Path]:
    """Files below ``root``, through links; neither hidden ones nor what lies in hidden folders."""
    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        found += [p for name in names if not name.startswith(".") and (p := Path(folder, name)).is_file()]
    return found


def _remote(dataset: Dataset) -> list[SourceFile]:
    fs, path = filesystem(dataset.path)
    scheme = dataset.path.split("://", 1)[0]
    try:
        if glob.has_magic(path):
            listed, root = list(fs.glob(path, detail=True).values()), _fixed_part(path)
        elif fs.isdir(path):
            listed, root = list(fs.find(path, detail=True).values()), path
        else:
            listed, root = [fs.info(path)], path.rsplit("/", 1)[0]
    except FileNotFoundError:
        raise _missing(f"dataset {dataset.name!r}: {dataset.path}: no such object") from None
    except Exception as e:  # each store has errors of its own
        reason = f"{type(e).__name__}: {e}"[:300]
        message = f"dataset {dataset.name!r}: {dataset.path} cannot be listed ({reason})"
        raise _missing(message, "Check the URL, the credentials in the environment and the network.") from None
    made = []
    single = len(listed) == 1
    for info in listed:
        if info["type"] != "file" or not (single or _known(info["name"])):
            continue
        name = os.path.relpath(info["name"], root)
        size = int(info.get("size") or 0)
        stamp = next((str(info[k]) for k in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(k)), "")
        made.append(SourceFile(f"{scheme}://{info['name']}", name, _format(name, dataset), size, stamp))
    if not made:
        raise _missing(f"dataset {dataset.name!r}: {dataset.path} holds no {', '.join(FORMATS)} file")
    return made


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path in it; S3 and Google Cloud Storage go through Arrow's own clients.

    Raises:
        PayloadError: the scheme is unknown, or its package is not installed.
    """
    import fsspec

    scheme, path = url.split("://", 1)
    try:
        if url.startswith(_ARROW):
            from fsspec.implementations.arrow import ArrowFSWrapper
            from pyarrow import fs as arrow

            if scheme == "s3":
                endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
                region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
                return ArrowFSWrapper(arrow.S3FileSystem(endpoint_override=endpoint, region=region)), path
            return ArrowFSWrapper(arrow.GcsFileSystem()), path
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise _missing(f"{url}: {e}", "Copy the files to a disk, or to s3:// or gs://.") from None
    return fs, path


def is_local(file: SourceFile) -> bool:
    """Whether the file is read in place, so that a part of it can be read cheaply."""
    return "://" not in file.path


def open_raw(file: SourceFile) -> BinaryIO:
    """The file's bytes as they are stored.

    Raises:
        PayloadError: it cannot be opened, or is another file by now.
    """
    try:
        if file.path.startswith("hf://"):
            return open(hub.local_copy(file.path), "rb")
        if not is_local(file):
            fs, path = filesystem(file.path)
            return cast(BinaryIO, fs.open(path, "rb"))
        stream = open(file.path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as e:
        raise unreadable(file, e.strerror or str(e)) from None
    about = os.fstat(stream.fileno())
    if (about.st_size, str(about.st_mtime_ns)) != (file.size, file.stamp):
        stream.close()
        raise PayloadError(
            "input_changed", f"{file.path}: was changed while it was being read", "Run the step again on a still copy."
        )
    return stream


def open_rows(file: SourceFile) -> BinaryIO:
    """The file's bytes, decompressed where it is compressed.

    Raises:
        PayloadError: as ``open_raw``.
    """
    raw = open_raw(file)
    if not file.format.endswith((".gz", ".zst")):
        return raw
    import pyarrow as pa

    codec = "gzip" if file.format.endswith(".gz") else "zstd"
    # Arrow's reader goes on to further members and frames, and refuses one that was cut off
    stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 20))


def unreadable(file: SourceFile, why: str) -> PayloadError:
    """The error for a file that exists and cannot be read."""
    return PayloadError("input_unreadable", f"{file.path}: {why}", "Write the file anew, or take it out of the blend.")


def _known(name: str) -> bool:
    return name.endswith(tuple(FORMATS)) and name.rsplit("/", 1)[-1] not in _OTHERS


def _format(name: str, dataset: Dataset) -> str:
    for suffix in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(suffix):
            return FORMATS[suffix]
    raise _missing(f"dataset {dataset.name!r}: {name} is none of {', '.join(FORMATS)}", "Convert it to one of these.")


def _fixed_part(pattern: str) -> str:
    """The directory above the first part with a wildcard."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")


def _missing(message: str, recovery: str = "Set path to files that exist where the step runs.") -> PayloadError:
    return PayloadError("input_missing", message, recovery)
