"""``data_prep/pretrain_prep``: text datasets become .bin/.idx shards and the blend.json that weighs them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from _runtime import payload
from _runtime.data_prep import outcome, runs, shards, splits
from _runtime.data_prep.blend import ALL, Dataset, read_blend
from _runtime.data_prep.estimate import estimate, only_plans
from _runtime.data_prep.pretrain_options import Options
from _runtime.data_prep.progress import Progress
from _runtime.data_prep.tokenizers_ import TokenizerFiles, dtype_for, find_tokenizer
from _runtime.data_prep.tokenizing import tokenize_shard

FORMAT = "binidx/1"  # raised when the same rows and settings would give other bytes
BLEND = "blend.json"


def prepare(options: Options, argv: Sequence[str] | None = None) -> None:
    """Make the shards, then blend.json; with ``--plan`` only say what it would take.

    Raises:
        PayloadError: bad configuration or input, see ``step.toml``.
    """
    blend = read_blend(options.blend_path, ("text_field",))
    tokenizer = find_tokenizer(options.tokenizer, options.tokenizer_revision)
    wanted = splits.Wanted(0, 0)
    if not blend.per_split:
        wanted = splits.from_counts(options.num_shards, options.valid_shards, options.test_shards)
    spec = _spec(options, blend, tokenizer)
    if only_plans(argv):
        payload.result(plan=estimate(runs.plan(spec, keep=False), tokenize_shard))
        return
    datasets = runs.plan(spec)
    datasets, progress = runs.execute(spec, datasets, tokenize_shard)
    hint = "Check text_field first, then min_doc_chars and max_doc_tokens."
    outcome.require_rows(datasets, "empty_or_overlong_documents", hint)
    assigned = outcome.assign(datasets, wanted, options.split_seed)
    leaks = outcome.leaks(assigned)
    _write_blend(options, assigned)
    _report(datasets, assigned, tokenizer, spec, progress, leaks)
    runs.clean(spec, datasets)


def _spec(options: Options, blend: Any, tokenizer: TokenizerFiles) -> runs.Spec:
    dtype = dtype_for(options.dtype, tokenizer.vocab_size)
    ids = {}
    for name in ("bos", "eos"):
        ids[name] = getattr(tokenizer, name) if getattr(options, f"add_{name}") else None
        if getattr(options, f"add_{name}") and ids[name] is None:
            raise payload.PayloadError(
                "tokenizer_mismatch",
                f"tokenizer.add_{name} is true, and {tokenizer.file} has no {name}_token beside it",
                f"Name {name}_token in tokenizer_config.json beside it, or set tokenizer.add_{name}=false.",
            )

    def settings(dataset: Dataset) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "tokenizer": tokenizer.fingerprint,
            **ids,
            "dtype": dtype,
            "text_field": dataset.fields.get("text_field", options.text_field),
            "min_doc_chars": options.min_doc_chars,
            "max_doc_tokens": options.max_doc_tokens,
            "long_documents": options.long_documents,
            "on_bad_row": options.on_bad_row,
        }

    resolved = {
        "type": "huggingface",
        "model": options.tokenizer,
        "add_eos": options.add_eos,
        "add_bos": options.add_bos,
        "trust_remote_code": False,
        "resolved_revision": tokenizer.revision,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }
    return runs.Spec(
        output_dir=options.output_dir,
        blend=blend,
        num_shards=options.num_shards,
        settings=settings,
        context={"tokenizer_file": tokenizer.file},
        about={"resolved_tokenizer": resolved},
        max_rows=options.max_rows,
        sample=options.sample,
        sample_seed=options.sample_seed,
        reuse=options.reuse,
        force=options.force,
        workers=options.workers,
    )


def _write_blend(options: Options, assigned: outcome.Assigned) -> None:
    """Weights and prefixes in turn, per split; prefixes are relative to blend.json, so that the directory can move."""
    lists: dict[str, list[str]] = {}
    for split, pairs in assigned.items():
        lists[split] = []
        for (d, i), weight in zip(pairs, outcome.weights(pairs), strict=True):
            prefix = os.path.relpath(d.folder / f"shard_{i:06d}", options.output_dir)
            lists[split] += [f"{weight:.10g}", prefix]
    shards.write_whole(options.output_dir / BLEND, json.dumps(lists, indent=2) + "\n")


def _report(
    datasets: Sequence[runs.DatasetRun],
    assigned: outcome.Assigned,
    tokenizer: TokenizerFiles,
    spec: runs.Spec,
    progress: Progress,
    leaks: Mapping[str, int],
) -> None:
    total = outcome.totals([r for d in datasets for r in d.receipts.values()])
    left_out = outcome.rejected(datasets)
    per_split = {
        split: {"shards": len(pairs), **outcome.totals([d.receipts[i] for d, i in pairs])}
        for split, pairs in assigned.items()
    }
    per_dataset = {
        d.name: {
            "weight": d.dataset.weight,
            **({"split": d.split} if d.split != ALL else {}),
            "files": len(d.plan.files),
            "shards": len(d.filled),
            **outcome.totals(list(d.receipts.values())),
        }
        for d in datasets
    }
    seconds = progress.seconds
    payload.result(
        tokenizer=tokenizer.model,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_vocab_size=tokenizer.vocab_size,
        dtype=datasets[0].plan.settings["dtype"],
        **total,
        rejected=left_out,
        removed={reason: about["rows"] for reason, about in left_out.items()},
        per_split=per_split,
        datasets=per_dataset,
        duplicates_across_splits=leaks,
        blend={split: [asdict(x) for x in entries] for split, entries in spec.blend.splits.items()},
        seconds=round(seconds, 3),
        made_tokens=progress.tokens,
        rows_per_second=round(progress.rows / seconds) if seconds else 0,
        tokens_per_second=round(progress.tokens / seconds) if seconds else 0,
    )
