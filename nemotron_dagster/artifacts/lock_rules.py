"""What each lock demands. A rule returns whether it holds (None: cannot be told) and a sentence; it reads no data.

``catalog/locks.py`` has their names and descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath

from nemotron_dagster.artifacts.port_locks import Case, Severity, Subject
from nemotron_dagster.config.keys import ABSENT, get

#: holds?, sentence[, severity]
Verdict = tuple[bool | None, str] | tuple[bool | None, str, Severity]

_MODELS = ("checkpoint_hf", "checkpoint_megatron", "checkpoint_lora")
_MODEL_KEYS = ("model.pretrained_model_name_or_path", "hf_model_path", "hf_model_id", "policy.model_name")
_SEQUENCE_KEYS = (
    "dataset.packed_sequence_specs.packed_sequence_size",
    "dataset.seq_length",
    "model.seq_length",
    "recipe.seq_length",
)
_TINY = ("_runtime", "tiny_llama")  # where the tokenizer of the model is that tiny configs call tiny_llama
_ITERATION = re.compile(r"iter_\d+|release")


def _rows(allowed: Iterable[str], wanted: str, fix: str) -> Callable[[Case], Verdict]:
    allowed = set(allowed)

    def rule(case: Case) -> Verdict:
        kinds = case.subject.facts.get("kinds")
        if not isinstance(kinds, Mapping) or not kinds:
            return None, f"{case.subject.name} does not tell what kinds of rows it has."
        wrong = {k: n for k, n in kinds.items() if k not in allowed}
        total = sum(kinds.values())
        if not wrong:
            return True, f"All {total:,} rows of {case.subject.name} are {wanted}."
        some = ", ".join(f"{n:,} {k}" for k, n in wrong.items())
        return False, (
            f"{case.step.id} takes {wanted} at {case.port.name}, but {sum(wrong.values()):,} of the {total:,} rows of "
            f"{case.subject.name} are none ({some}). {fix}"
        )

    return rule


def _text_field(case: Case) -> Verdict:
    name = get(case.config, "text_field", ABSENT)
    columns = [c[0] for c in case.subject.facts.get("columns") or []]
    if not isinstance(name, str) or not columns:
        return None, "the config names no text_field, or the rows' fields are not known."
    first = name.partition(".")[0]
    if first in columns:
        return True, f"The rows of {case.subject.name} have the field {first}."
    return False, (
        f"text_field is {name}, but no row of {case.subject.name} that was looked at has the field {first} "
        f"(they have {', '.join(columns[:8])}). Set text_field to one of these."
    )


def _tokenizer(case: Case) -> Verdict:
    return _same_fingerprint(case, "tokenizer", "tokenizers", "Tokenize the data again with this model's tokenizer")


def _chat_template(case: Case) -> Verdict:
    return _same_fingerprint(case, "chat template", "templates", "Pack the data again with this model's chat template")


def _same_fingerprint(case: Case, what: str, attribute: str, fix: str) -> Verdict:
    made: frozenset[str] = getattr(case.subject, attribute)
    model = _model(case)
    if model is None:
        return _same_name(case, what, fix)
    wanted: frozenset[str] = getattr(model, attribute)
    if not made or not wanted:
        return None, f"{(case.subject if not made else model).name} has no fingerprint of its {what}."
    if made & wanted:
        return True, f"{case.subject.name} and {model.name} have the same {what} ({_short(made & wanted)})."
    return False, (
        f"{case.subject.name} was made with the {what} {_short(made)}, but {model.name} has {_short(wanted)}. "
        f"{fix}, or give the model that the data was made for."
    )


def _same_name(case: Case, what: str, fix: str) -> Verdict:
    """Without the model at hand, only names can be compared, and one model has several."""
    named = case.subject.reported.get("tokenizer") or case.subject.facts.get("tokenizer")
    model = next((v for k in _MODEL_KEYS if isinstance(v := get(case.config, k, ABSENT), str) and v), None)
    if what != "tokenizer" or not isinstance(named, str) or model is None:
        return None, f"the model of this run is not an artifact whose {what} is known."
    if named == model or (model == "tiny_llama" and PurePath(named).parts[-2:] == _TINY):
        return True, f"{case.subject.name} was tokenized for {model}."
    sentence = f"{case.subject.name} was tokenized with {named}, but the config trains {model}. {fix}, if they differ."
    return False, sentence, "warning"


def _vocabulary(case: Case) -> Verdict:
    largest, model = case.subject.facts.get("largest_token"), _model(case)
    size = model.facts.get("vocab_size") if model else None
    if not isinstance(largest, int) or not isinstance(size, int) or model is None:
        return None, "the largest token, or the vocabulary of the model, is not known."
    if largest < size:
        return True, f"The largest token, {largest:,}, is within the {size:,} of {model.name}."
    return False, (
        f"{case.subject.name} has token {largest:,}, but {model.name} has a vocabulary of {size:,}. "
        "Tokenize the data again with this model's tokenizer."
    )


def _pack_size(case: Case) -> Verdict:
    wanted = {k: v for k in _SEQUENCE_KEYS if isinstance(v := get(case.config, k, ABSENT), int)}
    declared = case.subject.reported.get("pack_size")
    longest = case.subject.facts.get("pack_size")
    name = case.subject.name
    if not wanted or not (isinstance(declared, int) or isinstance(longest, int)):
        return None, "the config names no sequence length, or the pack size is not known."
    keys = ", ".join(f"{k} = {v}" for k, v in wanted.items())
    if isinstance(declared, int):
        if set(wanted.values()) == {declared}:
            return True, f"{name} was packed to {declared:,} tokens; {keys}."
        fixes = " ".join(f"{k}={declared}" for k, v in wanted.items() if v != declared)
        return False, f"{name} was packed to {declared:,} tokens, but {keys}. Give {fixes}, or pack the data again."
    assert isinstance(longest, int)
    if longest > min(wanted.values()):
        return False, (
            f"The longest pack of {name} has {longest:,} tokens, but {keys}. "
            f"Give these keys the size that it was packed to, or pack it to {min(wanted.values()):,}."
        )
    if longest * 2 <= min(wanted.values()):
        text = f"The longest pack of {name} has {longest:,} tokens, but {keys}: more than half of each is padding."
        return False, f"{text} Lower these keys, or pack the data to that size.", "warning"
    return True, f"The longest pack of {name} has {longest:,} tokens; {keys}."


def _megatron(wanted: str) -> Callable[[Case], Verdict]:
    def rule(case: Case) -> Verdict:
        path, facts = PurePath(case.subject.path), case.subject.facts
        kind = "iteration" if _ITERATION.fullmatch(path.name) else facts.get("kind")
        if kind not in ("parent", "iteration"):
            return None, f"{path} does not tell whether it is a parent directory or one iteration."
        if kind == wanted:
            return True, f"{path} is {'a parent directory of iter_*' if kind == 'parent' else 'one iteration'}."
        if wanted == "parent":
            return False, f"{path} is one iteration; {case.step.id} wants its parent. Give {_key(case)}={path.parent}."
        latest = facts.get("latest") or "iter_NNNNNNN"
        text = f"{path} is the parent of iterations; {case.step.id} wants one."
        return False, f"{text} Give {_key(case)}={path / str(latest)}."

    return rule


def _base_model(case: Case) -> Verdict:
    adapter = case.subject
    base = next((s for s in case.others.values() if s.type in ("checkpoint_hf", "checkpoint_megatron")), None)
    trained_on = [i for i in adapter.inputs if i.get("type") in _MODELS and i.get("content")]
    if base is not None and base.content and trained_on:
        if any(i["content"] == base.content for i in trained_on):
            return True, f"{adapter.name} was trained on {base.name}."
        there = ", ".join("/".join(i.get("asset") or [str(i.get("uri"))]) for i in trained_on)
        return False, f"{adapter.name} was trained on {there}, but {base.name} is given. Give the former as the base."
    named = adapter.facts.get("base") or adapter.facts.get("base_model")
    given = [base.path, base.facts.get("base")] if base is not None else []
    given += [get(case.config, k, None) for p in case.step.consumes if p.type != adapter.type for k, _ in p.keys]
    texts = [str(g).rstrip("/") for g in given if isinstance(g, str) and g]
    if not isinstance(named, str) or not texts:
        return None, "the adapter names no base model, or none is given."
    if named.rstrip("/") in texts:
        return True, f"{adapter.name} names {named} as its base, which is given."
    if any("/" in t and not t.startswith(("/", ".", "~")) for t in texts) and not named.startswith(("/", ".", "~")):
        return False, f"{adapter.name} belongs to {named}, but {texts[0]} is given. Give {named} as the base."
    return None, f"{adapter.name} names {named} as its base; whether {texts[0]} is that, its path does not tell."


def _same_tasks(case: Case) -> Verdict:
    listed = get(case.config, "tasks", None) or get(case.config, "evaluation.tasks", None) or []
    asked = [str(t.get("name") if isinstance(t, Mapping) else t) for t in listed] if isinstance(listed, list) else []
    scored = {str(s.get("task")) for s in case.subject.facts.get("scores") or []}
    if not asked or not scored:
        return None, "the config names no tasks, or the earlier results none."
    missing = [t for t in asked if not any(s == t or s.startswith((f"{t}_", f"{t}.")) for s in scored)]
    if not missing:
        return True, f"{case.subject.name} has scores of {', '.join(asked)}."
    text = f"{case.subject.name} has no scores of {', '.join(missing)} (it has {', '.join(sorted(scored)[:8])})."
    if len(missing) < len(asked):
        return False, f"{text} Those are shown without an earlier score.", "warning"
    return False, f"{text} Give results of the same tasks, or leave {_key(case)} out."


def _model(case: Case) -> Subject | None:
    return next((s for s in case.others.values() if s.type in _MODELS), None)


def _key(case: Case) -> str:
    return case.port.bind or case.port.name


def _short(digests: Iterable[str]) -> str:
    return " or ".join(sorted(d[:12] for d in digests))


RULES: Mapping[str, Callable[[Case], Verdict]] = {
    "chat_rows": _rows(
        ("chat", "sharegpt"), "conversations", "Give chat rows, or a step in between that makes conversations of them."
    ),
    "preference_rows": _rows(
        ("preference", "ranked"), "preference pairs", "Give rows with prompt, chosen and rejected (sdg/data_designer)."
    ),
    "prompt_rows": _rows(
        ("gym", "prompt", "chat", "sharegpt"), "prompts", "Give NeMo-Gym rows or prompts, not pairs or plain text."
    ),
    "rl_rows": _rows(
        ("gym", "prompt", "chat", "sharegpt", "preference", "ranked"),
        "prompts or preference pairs",
        "Give rows of one of these kinds.",
    ),
    "text_field": _text_field,
    "tokenizer": _tokenizer,
    "chat_template": _chat_template,
    "vocabulary": _vocabulary,
    "pack_size": _pack_size,
    "megatron_parent": _megatron("parent"),
    "megatron_iteration": _megatron("iteration"),
    "base_model": _base_model,
    "same_tasks": _same_tasks,
}
