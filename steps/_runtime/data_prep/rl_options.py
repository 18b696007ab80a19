"""The configuration of ``data_prep/rl_prep``, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime.data_prep import options
from _runtime.data_prep.options import bad
from _runtime.data_prep.placeholders import TARGETS, Target, read_targets
from _runtime.data_prep.rejects import POLICIES
from _runtime.data_prep.rl_preference import LAYOUTS
from _runtime.data_prep.rl_rows import FORMATS

COMPRESSIONS = ("none", "zstd")
SPLITS = ("auto", "ratios")
LAUNCHES = ("auto", "processes", "ray")
#: What the reference's own pipeline reads from these has no counterpart here; old configs may keep them.
IGNORED = ("observability", "config_name", "execution_mode")
KEYS = (
    *("blend_path", "output_dir", "num_shards_per_split", "compression", "resolve_hf_placeholders", "max_rows"),
    *("sample", "force", "row_format", "preference_format", "prompt_field", "answer_field", "default_agent_ref"),
    *("splits", "valid_ratio", "test_ratio", "split_seed", "dedup_across_splits", "placeholder_datasets"),
    *("on_bad_row", "launch", "workers", "ray_address", *IGNORED),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """See ``step.toml`` for what each key means."""

    blend_path: str
    output_dir: Path
    num_shards: int = 1
    compression: str = "none"
    resolve: bool = True
    targets: Mapping[str, Target] = field(default_factory=lambda: TARGETS)
    max_rows: int | None = None
    force: bool = False
    row_format: str = "auto"
    preference_format: str = "auto"
    prompt_field: str | None = None
    answer_field: str | None = None
    default_agent_ref: Mapping[str, str] | None = None
    splits: str = "auto"
    valid_ratio: float = 0.05
    test_ratio: float = 0.0
    split_seed: int = 42
    dedup: bool = False
    on_bad_row: str = "skip"
    workers: Mapping[str, Any] = field(default_factory=dict)


def read_options(cfg: Mapping[str, Any]) -> Options:
    """Turn the loaded YAML into ``Options``.

    Raises:
        PayloadError: an unknown key, a missing one, or a value of the wrong kind, by its name.
    """
    options.check_keys(cfg, KEYS)
    valid, test = options.number(cfg, "valid_ratio", 0.05, 0, 1), options.number(cfg, "test_ratio", 0.0, 0, 1)
    if valid + test >= 1:
        raise bad(
            f"valid_ratio {valid:g} and test_ratio {test:g} leave nothing for training", "Keep their sum below 1."
        )
    rows = options.whole_or_none(cfg, "max_rows")
    return Options(
        blend_path=options.text(cfg, "blend_path"),
        output_dir=Path(options.text(cfg, "output_dir")).expanduser(),
        num_shards=options.whole(cfg, "num_shards_per_split", 1, 1),
        compression=options.choice(cfg, "compression", "none", COMPRESSIONS),
        resolve=options.flag(cfg, "resolve_hf_placeholders", True),
        targets=read_targets(options.section(cfg, "placeholder_datasets")),
        max_rows=options.whole_or_none(cfg, "sample") if rows is None else rows,  # as the reference has it
        force=options.flag(cfg, "force", False),
        row_format=options.choice(cfg, "row_format", "auto", ("auto", *FORMATS)),
        preference_format=options.choice(cfg, "preference_format", "auto", LAYOUTS),
        prompt_field=_field(cfg, "prompt_field"),
        answer_field=_field(cfg, "answer_field"),
        default_agent_ref=_agent(cfg),
        splits=options.choice(cfg, "splits", "auto", SPLITS),
        valid_ratio=valid,
        test_ratio=test,
        split_seed=options.whole(cfg, "split_seed", 42),
        dedup=options.flag(cfg, "dedup_across_splits", False),
        on_bad_row=options.choice(cfg, "on_bad_row", "skip", POLICIES),
        workers={
            "launch": options.choice(cfg, "launch", "auto", LAUNCHES),
            "workers": options.whole_or_none(cfg, "workers"),
            "ray_address": cfg.get("ray_address"),
        },
    )


def _field(cfg: Mapping[str, Any], key: str) -> str | None:
    return None if cfg.get(key) is None else options.text(cfg, key)


def _agent(cfg: Mapping[str, Any]) -> dict[str, str] | None:
    agent = options.section(cfg, "default_agent_ref")
    if not agent:
        return None
    options.check_keys(agent, ("type", "name"), "default_agent_ref.")
    made = {"name": options.text(agent, "name", where="default_agent_ref.")}
    kind = options.text(agent, "type", "responses_api_agents", "default_agent_ref.")
    return {"type": kind, **made}
