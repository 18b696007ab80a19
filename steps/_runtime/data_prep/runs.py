"""One run of a step: plans for every dataset of its blend, the shards that are missing, and what came of them.

    <output_dir>/runs/<run>/config.json
    <output_dir>/runs/<run>/datasets/<name>/<plan>/{plan.json, receipts/shard_NNNNNN.json, shard_NNNNNN.*}

``<run>`` names the settings and the blend, ``<plan>`` the rows as well. A shard that an earlier run made, here or in
``reuse``, is taken over (as a hard link) wherever its digest says that it would come out the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from _runtime.data_prep import launch, limit, shards, sources, staging
from _runtime.data_prep.blend import Blend, Dataset
from _runtime.data_prep.plan import Plan, digest, make_plan, plan_from_json
from _runtime.data_prep.progress import Progress
from _runtime.data_prep.shards import Receipt, Task, Work
from _runtime.payload import PayloadError

SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class Spec:
    """What a step wants made.

    Attributes:
        settings: everything beside the rows that changes a dataset's output, as JSON; fingerprints, never paths.
        context: what the work needs to know beside that, such as the path of the tokenizer.
        about: goes into config.json and plan.json for readers, such as ``resolved_tokenizer``.
        max_rows: per dataset, its first ones.
        sample: ``"10%"`` or a number: how many shards of each dataset are made.
        reuse: output directory of an earlier run.
        force: make everything again.
        workers: ``launch``, ``workers`` and ``ray_address`` of the config.
        files: folder name (see ``Blend.datasets``) -> its files, where the step told them apart itself.
        grow: whether files that an earlier run lacked may become further shards; else they are dealt anew.
    """

    output_dir: Path
    blend: Blend
    num_shards: int
    settings: Callable[[Dataset], dict[str, Any]]
    context: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int | None = None
    sample: str | int | None = None
    sample_seed: int = 42
    reuse: Path | None = None
    force: bool = False
    workers: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[sources.SourceFile]] | None = None
    grow: bool = True


@dataclass(frozen=True)
class DatasetRun:
    """One dataset of a run.

    Attributes:
        split: "all", or the split that the blend gives the dataset to.
        name: of its folder.
        tasks: the shards that are made: all of the plan's, or a sample.
        receipts: shard index -> receipt, once the run is done.
        before: what ``splits.json`` of earlier plans says, see ``outcome.assign``.
    """

    split: str
    name: str
    dataset: Dataset
    plan: Plan
    folder: Path
    tasks: tuple[Task, ...]
    receipts: Mapping[int, Receipt] = field(default_factory=dict)
    before: tuple[Mapping[str, Any], ...] = ()

    @property
    def filled(self) -> list[int]:
        """Indices of the shards that have files."""
        return sorted(i for i, receipt in self.receipts.items() if receipt["files"])


def plan(spec: Spec, keep: bool = True) -> list[DatasetRun]:
    """Plan every dataset; nothing is read but what tells files apart.

    Args:
        keep: write the plans down and take over the shards of earlier runs; else nothing is written or removed.

    Raises:
        PayloadError: a dataset without files, a file in two datasets, a bad sample.
    """
    entries = spec.blend.datasets()
    settings = {name: spec.settings(dataset) for _, name, dataset in entries}
    blend = [{"split": split, **asdict(dataset), "settings": settings[name]} for split, name, dataset in entries]
    config = {"datasets": blend, "num_shards": spec.num_shards, "max_rows": spec.max_rows, **spec.about}
    config |= {"sample": spec.sample, "sample_seed": spec.sample_seed} if spec.sample is not None else {}
    folder = spec.output_dir / "runs" / digest(config)
    if spec.force and keep:
        shutil.rmtree(folder, ignore_errors=True)
    files = spec.files or {name: sources.find_files(dataset) for _, name, dataset in entries}
    _refuse_shared(files)
    if keep:
        text = json.dumps(config, indent=1, ensure_ascii=False, default=str) + "\n"
        shards.write_whole(folder / "config.json", text)
    earlier = [] if spec.force else list(_earlier(spec))
    found = []
    for split, name, dataset in entries:
        made = make_plan(
            name,
            files[name],
            spec.num_shards,
            settings[name],
            ends=limit.ends(files[name], spec.max_rows),
            previous=[p for p, _ in earlier if p.dataset == name] if spec.grow else (),
        )
        if not any(s.slices for s in made.shards):
            message = f"dataset {dataset.name!r}: no file of {dataset.path} holds a row"
            raise PayloadError("empty_input", message, "Give files with rows, or take the dataset out of the blend.")
        place = folder / "datasets" / name / made.digest
        about = {**made.to_json(), **spec.about, "config_hash": folder.name}
        if keep:
            shards.write_whole(place / "plan.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        chosen = _sampled(made, spec)
        context = {**settings[name], **spec.context}
        tasks = tuple(Task(str(place), name, made.digest, s, context) for s in made.shards if s.index in chosen)
        before = tuple(_splits(folder) for plan, folder in earlier if plan.dataset == name)
        found.append(DatasetRun(split, name, dataset, made, place, tasks, before=before))
    if keep:
        _take_over([t for d in found for t in d.tasks], [where for _, where in earlier])
    return found


def execute(spec: Spec, datasets: Sequence[DatasetRun], work: Work) -> tuple[list[DatasetRun], Progress]:
    """Make what is missing.

    Returns:
        The datasets with their receipts, and the progress with rows, tokens and seconds of this run.

    Raises:
        PayloadError: as ``shards.run``.
    """
    tasks = [t for d in datasets for t in d.tasks]
    found = shards.pending(tasks)
    waiting = [t for t, receipt in found.items() if receipt is None]
    progress = Progress(sum(t.shard.bytes for t in tasks), len(tasks))
    staged = dict(zip(waiting, staging.stage([t.shard for t in waiting], spec.output_dir), strict=True))
    ready = {t: replace(t, shard=shard) for t, shard in staged.items()}
    receipts = shards.run(
        {ready.get(t, t): receipt for t, receipt in found.items()},
        work,
        launch.choose(spec.workers, list(ready.values())),
        progress.tell,
        lambda task, receipt, kept: progress.shard(task.shard.bytes, kept),
    )
    done = [
        replace(d, receipts={i: r for (folder, i), r in receipts.items() if folder == str(d.folder)}) for d in datasets
    ]
    return done, progress


def clean(spec: Spec, datasets: Sequence[DatasetRun]) -> None:
    """Remove staged copies, what killed runs left half written, and plans of this run whose rows are not the present
    ones. Call it when all is written.
    """
    staging.remove(spec.output_dir)
    for left in list(spec.output_dir.rglob("*.tmp-*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    for dataset in datasets:
        for other in dataset.folder.parent.iterdir():
            if other != dataset.folder and (other / "plan.json").is_file():
                shutil.rmtree(other, ignore_errors=True)


def _splits(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / SPLITS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_shared(files: Mapping[str, Sequence[sources.SourceFile]]) -> None:
    """A file in two datasets would give the same row to two splits."""
    owner: dict[str, str] = {}
    for name, found in files.items():
        for file in found:
            key = file.path if "://" in file.path else os.path.realpath(file.path)
            if owner.setdefault(key, name) != name:
                raise PayloadError(
                    "split_leakage_or_empty_validation",
                    f"{file.path} belongs to both {owner[key]!r} and {name!r}: splits would share its rows",
                    "Name it in one dataset only, and raise that one's weight.",
                )


def _sampled(made: Plan, spec: Spec) -> set[int]:
    """The shards that are made: the reference's rule, per dataset."""
    indices = [s.index for s in made.shards if s.slices]
    if spec.sample is None:
        return set(indices)
    text = str(spec.sample).strip()
    try:
        count = len(indices) * float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        count = 0
    if count <= 0:
        message = f"sample: {spec.sample!r} is neither a percentage such as '10%' nor a number of shards"
        raise PayloadError("config_invalid", message, "Set sample=null to make all.")
    seed = random.Random(f"{spec.sample_seed}:{made.dataset}")
    return set(seed.sample(indices, min(len(indices), max(1, int(count)))))


def _earlier(spec: Spec) -> Iterable[tuple[Plan, Path]]:
    """Plans that earlier runs left here or in ``reuse``, with their folders."""
    if spec.reuse is not None and not (spec.reuse / "runs").is_dir():
        raise PayloadError("config_invalid", f"reuse: {spec.reuse} has no runs/", "Name an earlier output_dir.")
    for root in filter(None, (spec.output_dir, spec.reuse)):
        for file in sorted(root.glob("runs/*/datasets/*/*/plan.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield plan_from_json(json.loads(file.read_text(encoding="utf-8"))), file.parent


def _take_over(tasks: Sequence[Task], folders: Sequence[Path]) -> None:
    """Link shards that lie in another plan's folder and would come out the same."""
    made: dict[str, Task] = {}
    for folder in folders:
        for file in folder.glob("receipts/shard_*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                receipt = json.loads(file.read_text(encoding="utf-8"))
                made.setdefault(receipt["digest"], _task_of(receipt, folder))
    for task in tasks:
        other = made.get(task.shard.digest)
        if other is None or other.receipt == task.receipt or shards.completed(task, hashing=False) is not None:
            continue
        receipt_ = shards.completed(other, hashing=False)  # ``execute`` reads what was linked, once
        if receipt_ is not None:
            _link(other, task, receipt_)


def _task_of(receipt: Receipt, folder: Path) -> Task:
    from _runtime.data_prep.plan import Shard

    shard = Shard(receipt["shard_index"], (), 0, receipt["digest"])
    return Task(str(folder), receipt["dataset_name"], receipt["plan_hash"], shard, {})


def _link(source: Task, target: Task, receipt: Receipt) -> None:
    files = {}
    for kind, about in receipt["files"].items():
        name = about["path"].replace(source.name, target.name)
        there, here = Path(source.folder, about["path"]), Path(target.folder, name)
        here.parent.mkdir(parents=True, exist_ok=True)
        here.unlink(missing_ok=True)
        try:
            os.link(there, here)
        except OSError:  # another disk
            shutil.copyfile(there, here)
        files[kind] = {**about, "path": name}
    about = {"plan_hash": target.plan, "dataset_name": target.dataset, "shard_index": target.shard.index}
    shards.write_receipt(target, {**receipt, **about, "files": files})
