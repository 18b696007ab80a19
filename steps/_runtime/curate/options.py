"""The configuration of ``curate/nemo_curator``, checked before anything is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from _runtime.payload import PayloadError

TOP_KEYS = (
    *("input_glob", "output_dir", "text_field", "dataset", "language_codes", "domains", "quality_filters"),
    *("models", "ray", "heuristics", "dedup", "executor", "rows_per_shard"),
)
SECTIONS: dict[str, tuple[str, ...]] = {
    "quality_filters": ("min_langid_score", "min_words", "max_words"),
    "models": ("fasttext_langid", "hf_cache_dir"),
    "ray": ("num_cpus", "num_gpus", "object_store_memory"),
    "dedup": ("exact", "fuzzy"),
}
FUZZY_KEYS = ("threshold", "num_perm", "ngram", "seed")
EXECUTORS = ("auto", "in_process", "ray")


@dataclass(frozen=True)
class Fuzzy:
    """Near duplicates: rows whose MinHash signatures agree in at least ``threshold`` of ``num_perm`` places."""

    threshold: float = 0.8
    num_perm: int = 128
    ngram: int = 24
    seed: int = 1


@dataclass(frozen=True)
class Options:
    input_glob: list[str]
    output_dir: str
    text_field: str = "text"
    dataset: dict[str, Any] | None = None
    language_codes: list[str] = field(default_factory=list)
    min_langid_score: float = 0.0
    words: tuple[int, int] | None = None
    domains: list[str] = field(default_factory=list)
    heuristics: dict[str, dict[str, Any]] = field(default_factory=dict)
    exact: bool = False
    fuzzy: Fuzzy | None = None
    fasttext_langid: str | None = None
    hf_cache_dir: str | None = None
    executor: str = "auto"
    ray: dict[str, Any] = field(default_factory=dict)
    rows_per_shard: int = 100_000

    @property
    def filters_text(self) -> bool:
        return bool(self.words or self.language_codes or self.domains or self.heuristics)


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."


def bad(message: str, recovery: str = "", name: str = "config_invalid") -> PayloadError:
    return PayloadError(name, message, recovery)


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise bad(f"{where}{key}: unknown key; {nearest(str(key), known)}")


def read_options(cfg: dict[str, Any]) -> Options:
    """Turn the loaded YAML into ``Options``.

    Raises:
        PayloadError: an unknown key, a missing one, or a value of the wrong kind, by its name.
    """
    check_keys(cfg, TOP_KEYS, "")
    sections = {name: _mapping(cfg, name) for name in SECTIONS}
    for name, known in SECTIONS.items():
        check_keys(sections[name], known, f"{name}.")
    executor = cfg.get("executor") or "auto"
    if executor not in EXECUTORS:
        raise bad(f"executor: {executor!r} is not one of {', '.join(EXECUTORS)}")
    quality, models = sections["quality_filters"], sections["models"]
    score = _number(quality.get("min_langid_score", 0.0), "quality_filters.min_langid_score", 0, 1)
    exact = sections["dedup"].get("exact", False)
    if not isinstance(exact, bool | None):
        raise bad(f"dedup.exact: {exact!r} is neither true nor false")
    return Options(
        input_glob=_strings(cfg, "input_glob", required=True),
        output_dir=_strings(cfg, "output_dir", required=True)[0],
        text_field=str(cfg.get("text_field") or "text"),
        dataset=_mapping(cfg, "dataset") or None,
        language_codes=_strings(cfg, "language_codes"),
        min_langid_score=score,
        words=_words(quality),
        domains=_strings(cfg, "domains"),
        heuristics=_heuristics(cfg),
        exact=bool(exact),
        fuzzy=_fuzzy(sections["dedup"].get("fuzzy")),
        fasttext_langid=models.get("fasttext_langid"),
        hf_cache_dir=models.get("hf_cache_dir"),
        executor=executor,
        ray=sections["ray"],
        rows_per_shard=_whole(cfg.get("rows_per_shard") or 100_000, "rows_per_shard", 1),
    )


def _mapping(cfg: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = cfg.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(f"{key}: {value!r} is not a mapping", f"Write `{key}: {{...}}`.")
    return value


def _strings(cfg: Mapping[str, Any], key: str, required: bool = False) -> list[str]:
    value = cfg.get(key)
    values = [value] if isinstance(value, str) else list(value or []) if isinstance(value, list | None) else [value]
    if any(not isinstance(v, str) or not v for v in values):
        raise bad(f"{key}: {value!r} is not a string or a list of strings")
    if required and not values:
        raise bad(f"{key} is not set", f"Set {key}.", "config_missing")
    return values


def _number(value: Any, key: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(f"{key}: {value!r} is not a number from {low} to {high}")
    return float(value)


def _whole(value: Any, key: str, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise bad(f"{key}: {value!r} is not a whole number from {low} up")
    return value


def _words(quality: Mapping[str, Any]) -> tuple[int, int] | None:
    given = {k: quality[k] for k in ("min_words", "max_words") if quality.get(k) is not None}
    if not given:
        return None
    if len(given) == 1:
        (have,) = given
        lacks = "max_words" if have == "min_words" else "min_words"
        raise bad(
            f"quality_filters.{have} is set and quality_filters.{lacks} is not",
            "Set both to filter by word count, or neither.",
            "incomplete_word_filter",
        )
    low, high = (_whole(given[k], f"quality_filters.{k}", 0) for k in ("min_words", "max_words"))
    if low > high:
        raise bad(f"quality_filters.min_words {low} is above max_words {high}: no row can pass")
    return low, high


def _heuristics(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    section = _mapping(cfg, "heuristics")
    for name, kwargs in section.items():
        if not isinstance(kwargs, dict | None):
            raise bad(f"heuristics.{name}: {kwargs!r} is not a mapping of settings", "Write {} for the defaults.")
    return {str(name): dict(kwargs or {}) for name, kwargs in section.items()}


def _fuzzy(value: Any) -> Fuzzy | None:
    if value is None or value is False:
        return None
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise bad(f"dedup.fuzzy: {value!r} is not a mapping", "Write `fuzzy: {threshold: 0.8}`.")
    check_keys(value, FUZZY_KEYS, "dedup.fuzzy.")
    default = Fuzzy()
    return Fuzzy(
        threshold=_number(value.get("threshold", default.threshold), "dedup.fuzzy.threshold", 0.05, 1),
        num_perm=_whole(value.get("num_perm", default.num_perm), "dedup.fuzzy.num_perm", 8),
        ngram=_whole(value.get("ngram", default.ngram), "dedup.fuzzy.ngram", 1),
        seed=_whole(value.get("seed", default.seed), "dedup.fuzzy.seed", 0),
    )
