"""``data_prep/rl_prep``: the rows of a blend become JSONL files per split, checked for the step that trains on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _runtime import payload
from _runtime.data_prep import limit, outcome, placeholder_sources, rows, runs, splits, staging
from _runtime.data_prep.blend import ALL, SPLITS, read_blend
from _runtime.data_prep.estimate import estimate, only_plans
from _runtime.data_prep.placeholder_sources import Found
from _runtime.data_prep.plan import Slice
from _runtime.data_prep.progress import Progress
from _runtime.data_prep.rejects import Rejects
from _runtime.data_prep.rl_manifest import MANIFEST_FILE, Reader, write_manifest
from _runtime.data_prep.rl_options import Options
from _runtime.data_prep.rl_preference import fits_binary
from _runtime.data_prep.rl_rows import commonest, fields_of
from _runtime.data_prep.rl_shard import prompts, write_shard
from _runtime.data_prep.rl_splits import HUB, MANIFEST, Inputs, dealt, least, tell_apart

FORMAT = "rl_jsonl/1"  # raised when the same rows and settings would give other bytes
_SMALL = 8 << 20  # bytes of input in which a share of the prompts may well be none at all
_FILES, _ROWS = 8, 64  # that are looked at to tell the format
_NAMES = {"preference": "invalid_dpo_preference_schema", "verifier": "missing_rlvr_verifier_fields"}


@dataclass(frozen=True)
class Context:
    """What was found out about the input before any shard is made.

    Attributes:
        settings: what all shards depend on beside their rows, as JSON.
        files: what workers read beside them: ``placeholders`` and ``held_out``, paths or None.
    """

    inputs: Inputs
    settings: Mapping[str, Any]
    files: Mapping[str, Any]
    placeholders: Mapping[str, Found] = field(default_factory=dict)


def prepare(options: Options, argv: Sequence[str] | None = None) -> None:
    """Make the shards, then manifest.json; with ``--plan`` only say what it would take.

    Raises:
        PayloadError: bad configuration or input, see ``step.toml``.
    """
    inputs = tell_apart(read_blend(options.blend_path), options.splits == "auto")
    if only_plans(argv):
        with TemporaryDirectory() as folder:  # what workers read beside the rows; nothing lands in output_dir
            spec = _spec(options, _look(options, inputs, Path(folder)))
            payload.result(plan=estimate(runs.plan(spec, keep=False), write_shard))
        return
    context = _look(options, inputs, options.output_dir / staging.FOLDER)
    spec = _spec(options, context)
    datasets = runs.plan(spec)
    datasets, progress = runs.execute(spec, datasets, write_shard)
    kind = context.settings["row_format"]
    hint = f"Mend the rows, or set row_format if they are not meant to be of the format {kind}."
    outcome.require_rows(datasets, _NAMES.get(kind, "empty_input"), hint)
    _require_splits(datasets, context)
    reader = Reader.of(context.settings, _heads(inputs))
    write_manifest(options.output_dir, datasets, reader, inputs.given, kind)
    _report(datasets, context, progress, reader)
    runs.clean(spec, datasets)
    _remove_other_runs(options, datasets)


def _look(options: Options, inputs: Inputs, folder: Path) -> Context:
    """Find out the format of the rows, what placeholders stand for, and which prompts are held out.

    The latter two go into files in ``folder``.
    """
    heads = _heads(inputs)
    kind = options.row_format if options.row_format != "auto" else _format(heads, options.resolve, inputs)
    prompt, answer = fields_of(heads)
    settings: dict[str, Any] = {
        "format": FORMAT,
        "row_format": kind,
        "preference_format": _preference_format(options.preference_format, heads) if kind == "preference" else None,
        "prompt_field": (options.prompt_field or prompt) if kind == "verifier" else None,
        "answer_field": (options.answer_field or answer) if kind == "verifier" else None,
        "default_agent_ref": options.default_agent_ref,
        "compression": options.compression,
        "resolve": options.resolve,
        "split_seed": options.split_seed,
        "on_bad_row": options.on_bad_row,
        "shares": dealt(inputs.given, options.valid_ratio, options.test_ratio),
        "least": {},
        "held_out_files": [],
    }
    parts = {name: _slices(files, options.max_rows) for name, files in inputs.files.items()}
    every = [part for some in parts.values() for part in some]
    ends = {part.file.path: part.end for part in every if part.end is not None}
    found: dict[str, Found] = {}
    files: dict[str, Any] = {"placeholders": None, "held_out": None}
    if options.resolve:
        found = placeholder_sources.collect([p.file for p in every], ends, options.targets)
        settings["placeholder_sources"] = {name: f.identity() for name, f in found.items()}
        files["placeholders"] = placeholder_sources.save(found, folder) if found else None
    own = {name: split for split, name, _ in inputs.blend.datasets()}
    train = [p for name, some in parts.items() if own[name] in (ALL, "train") for p in some]
    if settings["shares"] and sum(p.file.size for p in train) <= _SMALL:
        hashes = [h for part in train for h in prompts(part, {**settings, **files})]
        settings["least"] = least(hashes, settings["shares"])
    held = {split: [p for name, some in parts.items() if own[name] == split for p in some] for split in SPLITS[1:]}
    if options.dedup and any(held.values()):
        settings["held_out_files"] = [[*p.file.identity, p.end] for some in held.values() for p in some]
        files["held_out"] = _save_held(held, {**settings, **files}, folder)
    return Context(inputs, settings, files, found)


def _slices(files: Sequence[Any], max_rows: int | None) -> list[Slice]:
    ends = limit.ends(files, max_rows)
    return [Slice(f, end=ends.get(f.path)) for f in files if f.size and ends.get(f.path, 1)]


def _heads(inputs: Inputs) -> list[dict[str, Any]]:
    """The first rows of some files of each dataset, those of training first."""
    found: list[dict[str, Any]] = []
    for files in inputs.files.values():
        for file in [f for f in files if f.size][:_FILES]:
            batch = next(rows.read(Slice(file), Rejects()), None)
            found += batch.rows[:_ROWS] if batch else []
    return found


def _format(heads: Sequence[Mapping[str, Any]], resolve: bool, inputs: Inputs) -> str:
    found = commonest(heads, resolve)
    if found is None and heads:
        path = next(iter(inputs.files.values()))[0].path
        raise payload.PayloadError(
            "unknown_row_format",
            f"{path}: rows have {', '.join(heads[0])[:200] or 'no field'}: no preference, prompt or conversation",
            "Rename the fields: prompt, chosen and rejected; prompt and expected_answer; or messages.",
        )
    return found or "prompt"  # without any readable row the run says what is wrong with each


def _preference_format(wish: str, heads: Sequence[Mapping[str, Any]]) -> str:
    if wish != "auto":
        return wish
    ranked = any(row.get("completions") is not None for row in heads)
    return "binary" if not ranked and all(map(fits_binary, heads)) else "ranked"


def _save_held(held: Mapping[str, Sequence[Slice]], settings: Mapping[str, Any], folder: Any) -> str:
    import numpy as np

    found = {
        split: np.unique(np.array([h for p in parts for h in prompts(p, settings)], "<u8"))
        for split, parts in held.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "held_out.npz", **found)
    return str(folder / "held_out.npz")


def _spec(options: Options, context: Context) -> runs.Spec:
    def settings(dataset: Any) -> dict[str, Any]:
        split = next(split for split, _, d in context.inputs.blend.datasets() if d is dataset)
        return {**context.settings, "split": split}

    return runs.Spec(
        output_dir=options.output_dir,
        blend=context.inputs.blend,
        num_shards=options.num_shards,
        settings=settings,
        context=context.files,
        about={"source_splits": [HUB[s] for s in context.inputs.given]},
        max_rows=options.max_rows,
        force=options.force,
        workers=options.workers,
        files=context.inputs.files,
        grow=options.num_shards > 1,  # one file per split was asked for
    )


def _require_splits(datasets: Sequence[runs.DatasetRun], context: Context) -> None:
    total = outcome.totals([r for d in datasets for r in d.receipts.values()])
    for split in ("train", *context.settings["shares"]):
        if not total.get(f"{split}_rows"):
            raise payload.PayloadError(
                "split_names_do_not_match_rl_config",
                f"no row is left for {HUB[split]}: {total['rows']} rows, too few different prompts",
                f"Give more rows, or set {split}_ratio=0 and name a file {HUB[split]}.jsonl." if split != "train"
                else "Lower valid_ratio and test_ratio, or give more rows.",
            )  # fmt: skip


def _remove_other_runs(options: Options, datasets: Sequence[runs.DatasetRun]) -> None:
    """Runs with other settings: whoever reads the directory would take their rows for rows of this one."""
    mine = {d.folder.parents[2].name for d in datasets}
    for other in (options.output_dir / "runs").iterdir():
        if other.name not in mine and (other / "config.json").is_file() and (other / "datasets").is_dir():
            shutil.rmtree(other, ignore_errors=True)


def _shared(datasets: Sequence[runs.DatasetRun], kind: str) -> dict[str, int]:
    files = {
        split: [
            d.folder / receipt["files"][f"{split}_{kind}"]["path"]
            for d in datasets
            for _, receipt in sorted(d.receipts.items())
            if split in receipt["files"]
        ]
        for split in SPLITS
    }
    return splits.shared_texts(files)


def _report(datasets: Sequence[runs.DatasetRun], context: Context, progress: Progress, reader: Reader) -> None:
    receipts = [r for d in datasets for r in d.receipts.values()]
    total = outcome.totals(receipts)
    left_out = outcome.rejected(datasets)
    settings = context.settings
    seconds = progress.seconds
    payload.result(
        manifest=MANIFEST_FILE,
        row_format=settings["row_format"],
        **{k: settings[k] for k in ("preference_format", "prompt_field", "answer_field") if settings[k]},
        reader=reader.to_json(),
        rows=total["rows"],
        resolved_placeholders=total["resolved"],
        completions_left_out=total["completions_left_out"],
        rejected=left_out,
        removed={reason: about["rows"] for reason, about in left_out.items()},
        per_split={
            MANIFEST[split]: {
                "shards": sum(split in r["files"] for r in receipts),
                "rows": total[f"{split}_rows"],
                "bytes": total[f"{split}_bytes"],
            }
            for split in SPLITS
            if total.get(f"{split}_rows")
        },
        datasets={
            d.name: {"files": len(d.plan.files), "rows": outcome.totals(list(d.receipts.values()))["rows"]}
            for d in datasets
        },
        source_splits=[HUB[s] for s in context.inputs.given],
        held_out={MANIFEST[s]: share for s, share in settings["shares"].items()},
        duplicates_across_splits=_shared(datasets, "rows"),
        prompts_across_splits=_shared(datasets, "prompts"),
        placeholders={
            name: {
                "dataset": f.target.path if f.target else None,
                "rows": f.wanted,
                "found": len(f.rows),
                **({"why": f.why} if f.why else {}),
            }
            for name, f in context.placeholders.items()
        },
        seconds=round(seconds, 3),
        rows_per_second=round(progress.rows / seconds) if seconds else 0,
    )
