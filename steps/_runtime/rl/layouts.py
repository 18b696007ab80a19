"""The rows that the RL steps train on, in the layouts that data_prep/rl_prep writes, as conversations.

preference: ``prompt``, ``chosen``, ``rejected`` as texts or messages; or ``context`` and two ranked ``completions``.
verifier: a prompt, and what its answer is checked against. gym: ``responses_create_params.input``. chat: ``messages``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from _runtime import chat_data
from _runtime.payload import PayloadError

Messages = list[dict[str, Any]]
T = TypeVar("T")
PROMPTS = ("prompt", "problem", "question", "input")
#: Fields in which a preference row may say how good its two answers are.
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_reward", "rejected_reward"),
          ("chosen_rating", "rejected_rating"))  # fmt: skip


class Fault(Exception):
    """What is wrong with a row, and the name of the error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def read(files: Iterable[Path], key: str, make: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """``make`` of every row, in the order of the files.

    Raises:
        PayloadError: the first row with a fault, by file and line; or there are no rows.
    """
    found: list[T] = []
    for file in files:
        for place, row in chat_data.rows(file):
            try:
                if not isinstance(row, dict):
                    raise Fault("dataset_invalid", f"a {type(row).__name__}, not an object")
                found.append(make(row))
            except Fault as e:
                raise PayloadError(e.name, f"{key}: {place}: {e}", _RECOVERY.get(e.name, _MEND)) from None
    if not found:
        named = ", ".join(str(f) for f in files)
        raise PayloadError("dataset_empty", f"{key}: {named}: no rows", "Look at the step that made the data.")
    return found


def preference(row: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt, better and worse answer.

    Raises:
        Fault: another kind of row, or one that prefers nothing, or the worse answer.
    """
    if "completions" in row and "context" in row:
        return _ranked(row)
    missing = [k for k in ("prompt", "chosen", "rejected") if row.get(k) in (None, "", [])]
    if missing:
        raise Fault("dataset_invalid", f"no preference pair: no {', '.join(missing)}; it has {_keys(row)}")
    prompt = messages(row["prompt"], "user", "prompt")
    chosen = messages(row["chosen"], "assistant", "chosen")
    rejected = messages(row["rejected"], "assistant", "rejected")
    if chosen == rejected:
        raise Fault("inverted_preference_pairs", "chosen and rejected are equal, so nothing is preferred")
    for better, worse in SCORES:
        a, b = row.get(better), row.get(worse)
        if isinstance(a, int | float) and isinstance(b, int | float) and a < b:
            raise Fault("inverted_preference_pairs", f"{better}={a} is below {worse}={b}: the pair is inverted")
    return prompt, chosen, rejected


def _ranked(row: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    context = messages(row["context"], "user", "context")
    answers = row["completions"]
    if not isinstance(answers, list) or len(answers) != 2:
        count = len(answers) if isinstance(answers, list) else answers
        raise Fault("dataset_invalid", f"completions: DPO compares two answers, not {count}")
    try:
        ordered = sorted(answers, key=lambda c: int(c["rank"]))
        best, worst = (messages(c["completion"], "assistant", "completion") for c in ordered)
        tied = ordered[0]["rank"] == ordered[1]["rank"]
    except (KeyError, TypeError, ValueError) as e:
        raise Fault("dataset_invalid", f"completions: each must have `rank` and `completion` ({e!r})") from None
    if tied or best == worst:
        raise Fault("inverted_preference_pairs", "both completions are equal or have one rank: nothing is preferred")
    return context, best, worst


def prompt(row: Mapping[str, Any], field: str | None = None) -> Messages:
    """What a row asks; ``field`` names where, other than in the usual places.

    Raises:
        Fault: it asks nothing.
    """
    params = row.get("responses_create_params")
    if params is not None:
        if not isinstance(params, dict) or not params.get("input"):
            raise Fault("responses_api_schema_missing", "responses_create_params has no `input` with messages")
        return messages(params["input"], "user", "responses_create_params.input")
    for name in (field, "messages", *PROMPTS):
        if name and row.get(name) not in (None, "", []):
            asked = messages(row[name], "user", name)
            while len(asked) > 1 and asked[-1]["role"] == "assistant":
                asked = asked[:-1]
            return asked
    raise Fault("responses_api_schema_missing", f"no prompt; it has {_keys(row)}")


def messages(value: Any, role: str, at: str) -> Messages:
    """A text as one message of ``role``, messages as they are.

    Raises:
        Fault: neither, or messages without role or text.
    """
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise Fault("dataset_invalid", f"{at!r} is neither a text nor messages")
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise Fault("dataset_invalid", f"{at!r}: each message needs `role` and `content`")
    return [dict(turn) for turn in value]


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row))[:200] or "nothing"


_MEND = "Mend or drop the row; data_prep/rl_prep finds such rows."
_RECOVERY = {
    "inverted_preference_pairs": "Read twenty rows: `chosen` must be the better answer. Swap the fields, or drop the "
    "pairs that prefer nothing.",
    "missing_verifier_fields": "Give each row what its answer is checked against (`expected_answer`), and a verifier "
    "that is known.",
    "unknown_verifier": "Name one of them in the row's `verifier`, or train with backend=nemo_rl and NeMo-Gym.",
    "responses_api_schema_missing": "Give each row a `prompt`, or `responses_create_params` whose `input` holds the "
    "chat messages.",
}
