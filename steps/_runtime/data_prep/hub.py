"""Datasets and tokenizers of the Hugging Face Hub: which files they have, at which commit, and their cached copies.

``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_TOKEN`` mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime.data_prep.blend import Dataset
from _runtime.payload import PayloadError


@dataclass(frozen=True)
class HubFile:
    """``url`` is ``hf://org/name@commit/path``; ``stamp`` the object id of its content."""

    url: str
    name: str
    size: int
    stamp: str
    revision: str


def list_files(dataset: Dataset, suffixes: tuple[str, ...]) -> list[HubFile]:
    """The data files of ``hf://org/name``, narrowed to its subset and split, by their names.

    Offline, the cached snapshot is listed.

    Raises:
        PayloadError: neither the Hub nor the cache has the dataset, or no file matches.
    """
    repo, _, given = dataset.path.removeprefix("hf://").removeprefix("datasets/").strip("/").partition("@")
    if repo.count("/") != 1:
        raise _bad(f"dataset {dataset.name!r}: {dataset.path} is not hf://org/name", "Write hf://org/name.")
    every = _listed(repo, dataset.revision or given or None, dataset)
    data = [f for f in every if f.name.endswith(suffixes) and not f.name.rsplit("/", 1)[-1].startswith("dataset_info")]
    found = [f for f in data if _in_subset(f.name, dataset.subset) and in_split(f.name, dataset.split)]
    if not found:
        narrowed = ", ".join(f"{k} {v!r}" for k in ("subset", "split") if (v := getattr(dataset, k)))
        some = ", ".join(f.name for f in data[:4]) or "no data file"
        message = f"dataset {dataset.name!r}: {repo} has no file of {narrowed or 'a known format'}; it has: {some}"
        raise _bad(message, "Mend subset and split, or leave them out.")
    return found


def _listed(repo: str, revision: str | None, dataset: Dataset) -> list[HubFile]:
    from huggingface_hub import HfApi, constants, snapshot_download

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
        except Exception as e:  # the client raises errors of several libraries
            raise _unavailable(dataset.path, e) from None
        sha = info.sha or "main"
        return sorted(
            (
                HubFile(f"hf://{repo}@{sha}/{s.rfilename}", s.rfilename, s.size or 0, _stamp(s), sha)
                for s in info.siblings or ()
            ),
            key=lambda f: f.name,
        )
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception as e:
        # files that were fetched by commit leave no branch in the cache: a single commit is the one that is meant
        cached = Path(constants.HF_HUB_CACHE, f"datasets--{repo.replace('/', '--')}", "snapshots")
        commits = list(cached.iterdir()) if revision is None and cached.is_dir() else []
        if len(commits) != 1:
            raise _unavailable(dataset.path, e) from None
        (folder,) = commits
    sha = folder.name
    return sorted(
        (
            HubFile(f"hf://{repo}@{sha}/{name}", name, p.stat().st_size, p.resolve().name, sha)
            for p in folder.rglob("*")
            if p.is_file() and (name := p.relative_to(folder).as_posix())
        ),
        key=lambda f: f.name,
    )


def _stamp(sibling: Any) -> str:
    """What the cache names the content by, so that a plan made offline is the same one."""
    lfs = sibling.lfs
    return str((lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else sibling.blob_id or "")


def local_copy(url: str) -> str:
    """The path of the cached copy of a Hub file, downloaded if it is not there.

    Raises:
        PayloadError: it is not cached and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    matched = re.fullmatch(r"hf://([^/]+/[^/@]+)@([^/]+)/(.+)", url)
    assert matched, url
    repo, revision, name = matched.groups()
    try:
        return hf_hub_download(repo, name, repo_type="dataset", revision=revision)
    except Exception as e:
        raise _unavailable(url, e) from None


def model_folder(model: str, revision: str | None, patterns: list[str]) -> Path:
    """The cached snapshot of a model with the files that match ``patterns``.

    Raises:
        PayloadError: neither the Hub nor the cache has it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as e:
        raise PayloadError(
            "tokenizer_unavailable",
            f"tokenizer.model: {model} is neither a path here nor to be had from the Hub ({_first_line(e)})",
            "Set tokenizer.model to a directory with tokenizer.json, or fill the Hugging Face cache (HF_HOME) where "
            "there is a network.",
        ) from None


def _in_subset(name: str, subset: str | None) -> bool:
    """A subset is a folder of the path, or begins a file's name: data/{subset}/x, {subset}-00000.x, {subset}.x."""
    return not subset or bool(re.search(rf"(^|/){re.escape(subset)}([-_/.]|$)", name))


def in_split(name: str, split: str | None) -> bool:
    """A split is a folder of the path, or a part of the file's name: {split}-00000, x_{split}.jsonl."""
    return not split or bool(re.search(rf"(^|[/_-]){re.escape(split)}([-_/.]|$)", name))


def _unavailable(what: str, e: Exception) -> PayloadError:
    offline = " HF_HUB_OFFLINE is set, so only the cache is looked at." if os.environ.get("HF_HUB_OFFLINE") else ""
    return PayloadError(
        "dataset_unavailable",
        f"{what} cannot be had from the Hub: {_first_line(e)}.{offline}",
        "Download it where there is a network and set HF_HOME, or name local files in the blend.",
    )


def _first_line(e: Exception) -> str:
    text = str(e).strip().splitlines()
    return (text[0] if text else type(e).__name__)[:200]


def _bad(message: str, recovery: str) -> PayloadError:
    return PayloadError("missing_or_invalid_blend", message, recovery)
