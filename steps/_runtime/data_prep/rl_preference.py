"""Preference rows in the two layouts that NeMo-RL reads, whichever layout they come in.

``binary`` (BinaryPreferenceDataset): ``{"prompt": text, "chosen": text, "rejected": text}``.
``ranked`` (PreferenceDataset): ``{"context": messages, "completions": [{"rank": 0, "completion": messages}, ...]}``,
of which DPO training takes exactly two.

Rows may hold messages in all three fields; answers that repeat the prompt's turns, as UltraFeedback has them, are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _runtime.data_prep.rl_messages import Fault, conversation, ranked, triple

LAYOUTS = ("auto", "binary", "ranked")
_FIELDS = ("prompt", "chosen", "rejected", "context", "completions")
Messages = list[dict[str, Any]]


def converted(row: Mapping[str, Any], layout: str) -> tuple[Mapping[str, Any], int]:
    """The row in ``layout`` ("binary" or "ranked") with its other fields, and how many completions were left out.

    A row that is in the layout already is returned itself.

    Raises:
        Fault: it is no preference, prefers nothing, or does not fit the binary layout.
    """
    if layout == "binary" and all(isinstance(row.get(k), str) for k in ("prompt", "chosen", "rejected")):
        triple(row)
        return row, 0
    context, chosen, rejected, left_out = pair(row)
    if layout == "ranked":
        given = row.get("chosen") is None and row.get("rejected") is None
        if given and isinstance(row["context"], list) and not left_out:
            return row, 0
        completions = [{"rank": 0, "completion": chosen}, {"rank": 1, "completion": rejected}]
        made: dict[str, Any] = {"context": context, "completions": completions}
        ranked(made)  # an answer that was cut may answer a tool call of the part that it lost
    else:
        texts = [_only(messages, role) for messages, role in
                 ((context, "user"), (chosen, "assistant"), (rejected, "assistant"))]  # fmt: skip
        for name, text in zip(("prompt", "chosen", "rejected"), texts, strict=True):
            if text is None:
                raise Fault("not_a_text_pair", f"{name} is more than one text message: set preference_format=ranked")
        made = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        triple(made)
    return {**made, **{k: v for k, v in row.items() if k not in _FIELDS}}, left_out


def fits_binary(row: Mapping[str, Any]) -> bool:
    """Whether the row can be three texts; True for one that cannot be used at all, as that decides nothing."""
    try:
        context, chosen, rejected, _ = pair(row)
    except Fault:
        return True
    return None not in (_only(context, "user"), _only(chosen, "assistant"), _only(rejected, "assistant"))


def pair(row: Mapping[str, Any]) -> tuple[Messages, Messages, Messages, int]:
    """Context, better and worse answer as messages, and the number of completions that lie between them.

    Raises:
        Fault: as ``converted``.
    """
    if row.get("chosen") is None and row.get("rejected") is None:
        return _best_and_worst(row)
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise Fault(f"missing_{key}", f"no {key!r}; it has {', '.join(row)[:100]}")
    answers = [_messages(row[key], "assistant", key) for key in ("chosen", "rejected")]
    context = [] if row.get("prompt") is None else _messages(row["prompt"], "user", "prompt")
    shared = _shared(*answers)
    if any(m.get("role") == "user" for m in shared):
        if context and shared[-len(context) :] != context:
            raise Fault("prompt_mismatch", "chosen and rejected begin with turns that are not those of prompt")
        context = shared
        answers = [a[len(shared) :] for a in answers]
    if not context:
        raise Fault("missing_prompt", f"no 'prompt'; it has {', '.join(row)[:100]}")
    if answers[0] == answers[1]:
        raise Fault("equal_answers", "chosen and rejected are equal, so nothing is preferred")
    return context, answers[0], answers[1], 0


def _best_and_worst(row: Mapping[str, Any]) -> tuple[Messages, Messages, Messages, int]:
    for key in ("context", "completions"):
        if row.get(key) is None:
            raise Fault("missing_chosen", f"neither chosen and rejected nor context and completions: no {key!r}")
    context = _messages(row["context"], "user", "context")
    ranked({**row, "context": context})
    best, *between, worst = sorted(row["completions"], key=lambda c: int(c["rank"]))
    return context, best["completion"], worst["completion"], len(between)


def _messages(value: Any, role: str, at: str) -> Messages:
    if isinstance(value, str):
        if not value.strip():
            raise Fault("empty_text", f"{at!r} is empty")
        return [{"role": role, "content": value}]
    conversation(value, at)
    return list(value)


def _shared(a: Messages, b: Messages) -> Messages:
    """The turns that both begin with; each keeps one of its own."""
    count = 0
    while count < min(len(a), len(b)) - 1 and a[count] == b[count]:
        count += 1
    return a[:count]


def _only(messages: Messages, role: str) -> str | None:
    """The text of the one message, where that is all there is."""
    if len(messages) != 1:
        return None
    said = {k: v for k, v in messages[0].items() if v is not None}
    text = said.get("content")
    return text if set(said) == {"role", "content"} and said["role"] == role and isinstance(text, str) else None
