"""data_prep/sft_packing from its configuration to ``splits/`` and the facts of the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _runtime import payload
from _runtime.data_prep import blend, chat, chat_probes, chat_template, outcome, runs, shards, split_links, splits
from _runtime.data_prep.chat_template import ChatTemplate
from _runtime.data_prep.estimate import estimate, only_plans
from _runtime.data_prep.runs import DatasetRun, Spec
from _runtime.data_prep.sft_options import SftOptions
from _runtime.data_prep.sft_shard import pack_shard
from _runtime.data_prep.tokenizers_ import TokenizerFiles, find_tokenizer

REPORT = "packing.json"
#: Left out of the report, which is the same for the same work.
_OF_THE_RUN = (
    "seconds",
    "made_tokens",
    "rows_per_second",
    "tokens_per_second",
)
FORMAT = "packed_sft_parquet/1"  # raised when the same rows and settings would give other bytes


def prepare(options: SftOptions, argv: Sequence[str] | None = None) -> None:
    """Pack the blend that the configuration names; with ``--plan`` only say what it would take.

    Raises:
        PayloadError: whatever of configuration, data, tokenizer or template a person must mend.
    """
    tokenizer = find_tokenizer(options.tokenizer, options.revision)
    template = chat_template.load(
        options.chat_template,
        Path(tokenizer.file).parent,
        options.chat_template_kwargs,
        options.template_date,
    )
    spec = _spec(options, tokenizer, template)
    wanted = splits.Wanted(0, 0) if spec.blend.per_split else _held_out(options)
    if only_plans(argv):
        payload.result(plan=estimate(runs.plan(spec, keep=False), pack_shard))
        return
    datasets = runs.plan(spec)
    datasets, progress = runs.execute(spec, datasets, pack_shard)
    for dataset in datasets:
        if not dataset.filled:
            raise _nothing_packed(dataset)
    totals = outcome.totals([r for d in datasets for r in d.receipts.values()])
    rejected = outcome.rejected(datasets)
    assigned = outcome.assign(datasets, wanted, options.sample_seed)
    linked = _link(options, assigned)
    runs.clean(spec, datasets)
    facts = {
        "tokenizer": tokenizer.model,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "chat_template": template.name,
        "chat_template_fingerprint": _fingerprint(template, tokenizer),
        "pack_size": options.pack_size,
        "algorithm": options.algorithm,
        **_packing(totals, options),
        "rejected": rejected,
        "removed": {reason: about["rows"] for reason, about in rejected.items()},
        "per_split": linked,
        "datasets": {d.name: outcome.totals(list(d.receipts.values())) for d in datasets},
        "duplicates_across_splits": outcome.leaks(assigned),
        "seconds": round(progress.seconds, 2),
        "made_tokens": progress.tokens,
        "rows_per_second": round(progress.rows / max(progress.seconds, 1e-3)),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-3)),
    }
    report = {k: v for k, v in facts.items() if k not in _OF_THE_RUN}
    shards.write_whole(
        options.output_dir / REPORT, json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )
    payload.result(**facts)


def _held_out(options: SftOptions) -> splits.Wanted:
    wanted = splits.from_ratios(options.num_shards, *options.ratios)
    valid = wanted.valid if options.valid_shards is None else options.valid_shards
    test = wanted.test if options.test_shards is None else options.test_shards
    return splits.from_counts(options.num_shards, valid, test)


def _spec(options: SftOptions, tokenizer: TokenizerFiles, template: ChatTemplate) -> Spec:
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "chat_template": template.fingerprint,
        "special_tokens": dict(template.special_tokens),
        "template_kwargs": dict(template.kwargs),
        "template_date": template.today if template.tells_time else None,
        "pack_size": options.pack_size,
        "longest": options.longest,
        "algorithm": options.algorithm,
        "packing_seed": options.seed,
        "stratify": options.stratify,
        "multiple": options.multiple,
        "pad_id": _pad_id(tokenizer) if options.multiple > 1 else 0,
        "long_sequences": options.long_sequences,
        "max_doc_tokens": options.max_doc_tokens,
        "row_group_size": options.row_group_size,
        "on_bad_row": options.on_bad_row,
    }

    def of(dataset: blend.Dataset) -> dict[str, Any]:
        own = {name.removesuffix("_field"): value for name, value in dataset.fields.items() if name != "text_field"}
        return {**settings, "fields": asdict(replace(options.fields, **own))}

    return Spec(
        output_dir=options.output_dir,
        blend=blend.read_blend(options.blend_path),
        num_shards=options.num_shards,
        settings=of,
        context={
            "tokenizer_file": tokenizer.file,
            "template_name": template.name,
            "template_text": template.text,
            "template_date": template.today,
        },
        about={
            "resolved_tokenizer": {
                "type": "huggingface",
                "model": tokenizer.model,
                "resolved_revision": tokenizer.revision,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            }
        },
        max_rows=options.max_rows,
        sample=options.sample,
        sample_seed=options.sample_seed,
        reuse=options.reuse,
        force=options.force,
        workers=options.workers,
    )


def _pad_id(tokenizer: TokenizerFiles) -> int:
    """The end token: Megatron-Bridge takes those at the end of a sequence for padding, and no others."""
    if tokenizer.eos is not None:
        return tokenizer.eos
    data = json.loads(Path(tokenizer.file).read_text(encoding="utf-8"))
    named = tokenizer.config.get("pad_token")
    name = named.get("content") if isinstance(named, Mapping) else named
    ids = {t["content"]: t["id"] for t in data.get("added_tokens") or ()}
    return int(ids.get(name, 0))


def _fingerprint(template: ChatTemplate, tokenizer: TokenizerFiles) -> str:
    """That of the tokenizer's own template where both write the same, as it is the one that a model is compared by."""
    if tokenizer.template and tokenizer.template != template.text:
        own = replace(template, name="tokenizer", text=tokenizer.template)
        try:
            own.check()
        except payload.PayloadError:
            return template.fingerprint
        if chat_probes.same_output(template, own):
            return own.fingerprint
    return template.fingerprint


def _link(options: SftOptions, assigned: outcome.Assigned) -> dict[str, dict[str, Any]]:
    """Write ``splits/``; what each split holds."""
    chosen, told = {}, {}
    for split, entries in assigned.items():
        found = [
            split_links.Shard(
                d.name,
                d.dataset.weight,
                d.folder / d.receipts[index]["files"]["parquet"]["path"],
                d.receipts[index]["stats"]["packs"],
            )
            for d, index in entries
        ]
        kept = split_links.weighted(split_links.shuffled(found, options.sample_seed, split))
        chosen[split] = kept
        packs: Counter[str] = Counter()
        for shard in kept:
            packs[shard.dataset] += shard.packs
        if kept:
            told[split] = {
                "shards": len(kept),
                "shards_left_out_by_weight": len(found) - len(kept),
                "packs": dict(sorted(packs.items())),
            }
    split_links.write(options.output_dir, chosen)
    return told


def _packing(totals: Mapping[str, int], options: SftOptions) -> dict[str, Any]:
    packs, tokens = totals["packs"], totals["tokens"]
    variance = totals["length_variance"]
    return {
        "rows": totals["rows"],
        "sequences": totals["sequences"],
        "packs": packs,
        "tokens": tokens,
        "trained_tokens": totals["trained_tokens"],
        "padding_tokens": totals["padding"],
        "fill": round(tokens / (packs * options.pack_size), 4),
        "packing_factor": round(totals["sequences"] / packs, 2),
        "length_mix": round(totals["length_variance_within"] / variance, 3) if variance else 1.0,
        "over_long": totals["over_long"],
        "long_sequences": options.long_sequences,
        "truncated_to_max_doc_tokens": totals["max_doc_truncated"],
        "untrained_sequences": totals["untrained"],
    }


def _nothing_packed(dataset: DatasetRun) -> payload.PayloadError:
    totals = outcome.totals(list(dataset.receipts.values()))
    rejected = outcome.rejected([dataset])
    name = f"dataset {dataset.dataset.name!r}"
    if not rejected and not totals.get("rows"):
        return payload.PayloadError(
            "empty_input", f"{name}: {dataset.dataset.path} holds no row", "Give files with rows."
        )
    if not rejected:
        lost = totals.get("untrained") or totals.get("over_long", 0)
        message = f"{name}: of {totals['rows']} rows no sequence is left; {lost} were too long to hold an answer"
        return payload.PayloadError("empty_output", message, "Raise pack_size or max_doc_tokens, or give other rows.")
    counts = ", ".join(f"{reason} {about['rows']}" for reason, about in rejected.items())
    reason, most = max(rejected.items(), key=lambda item: int(item[1]["rows"]))
    first = "".join(f"; {e['row']}: {e.get('note', '')}" for e in most["examples"][:1])
    recovery = chat.REASONS.get(reason, "Mend the rows, or name other files.")
    return payload.PayloadError("empty_output", f"{name}: no row could be packed ({counts}){first}", recovery)
