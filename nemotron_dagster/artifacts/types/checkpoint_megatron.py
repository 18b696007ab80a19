"""``checkpoint_megatron``: Megatron's distributed checkpoint, the parent directory or one iteration of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _megatron
from nemotron_dagster.artifacts.types._problems import Problems

LAYOUT = (
    "A directory with latest_checkpointed_iteration.txt and iter_* directories, or one of those: .metadata, "
    "__<rank>_<part>.distcp shards, metadata.json, train_state.pt, run_config.yaml, tokenizer/, and common.pt where "
    "metadata.json calls for it."
)
_ITERATIONS = 20


@dataclass(frozen=True)
class MegatronCheckpoint:
    """A handle: ``kind`` is ``parent`` or ``iteration``, ``latest`` the iteration that loaders of ``path`` take."""

    path: Path
    kind: str
    latest: Path


def validate(path: Path) -> dict[str, Any]:
    """Check that the iteration that loaders take is whole.

    Shards are checked for presence and length against .metadata, which is not unpickled; a flipped bit in a shard is
    found by the digests of the manifest only.

    Returns:
        Facts: kind (parent or iteration), latest, iterations (names, the last 20), iterations_total, incomplete
        (iterations that an interrupted save left), ranks, bytes, base (Hugging Face id that run_config.yaml names),
        sequence_length, vocab_size, parallel (tp, pp, ep, cp), tokenizer_fingerprint, chat_template_fingerprint.

    Raises:
        ArtifactError: naming the missing or damaged file; or the checkpoint holds an adapter only.
    """
    problems = Problems()
    found = _megatron.layout(path, problems)
    made = _megatron.check_iteration(found.latest, problems)
    if made.peft is not None:
        problems.add(
            f"{found.latest / 'run_config.yaml'}: has a peft section, so only an adapter was saved. "
            "Merge it with convert/merge_lora, or use it as checkpoint_lora."
        )
    problems.check()
    return facts(found, made)


def facts(found: _megatron.Layout, made: _megatron.Iteration) -> dict[str, Any]:
    """What ``validate`` returns, of a checked iteration."""
    rest = asdict(made)
    return {
        "kind": found.kind,
        "latest": found.latest.name,
        "iterations": list(found.iterations[-_ITERATIONS:]),
        "iterations_total": len(found.iterations),
        "incomplete": list(found.incomplete[-_ITERATIONS:]),
        **{k: rest[k] for k in ("ranks", "bytes", "base", "sequence_length", "vocab_size", "parallel")},
        "tokenizer_fingerprint": made.tokenizer,
        "chat_template_fingerprint": made.chat_template,
    }


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Which iteration, of what base, written by how many ranks."""
    out = {"kind": facts["kind"], "iteration": facts["latest"], "iterations": facts["iterations_total"]}
    out |= {k: facts.get(k) for k in ("ranks", "base", "sequence_length", "vocab_size")}
    return {k: v for k, v in out.items() if isinstance(v, int | float | str)}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The iterations that are there, and the parallel sizes that wrote the latest."""
    rows = [
        (name, "latest" if name == facts["latest"] else "incomplete" if name in facts["incomplete"] else "")
        for name in facts["iterations"]
    ]
    made = {"iterations": table(("iteration", ""), rows)}
    if facts.get("parallel"):
        made["parallel sizes"] = table(("dimension", "size"), facts["parallel"].items())
    return made


def read(path: Path) -> MegatronCheckpoint:
    """A handle on the checkpoint; nothing but its directory is looked at.

    Raises:
        ArtifactError: no Megatron checkpoint, or one that no loader would find.
    """
    found = _megatron.layout(path, Problems())
    return MegatronCheckpoint(path, found.kind, found.latest)
