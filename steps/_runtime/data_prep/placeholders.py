"""Rows that stand for a row of another dataset: ``{"dataset": name, "_hf_placeholder": {"row", "question_template"}}``.

NVIDIA's RL blends ship so what they may not republish. The question of the named dataset's row is put into the
template, and the row becomes a NeMo-Gym task with ``question``, ``expected_answer`` and ``responses_create_params``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from _runtime.data_prep import options
from _runtime.data_prep.options import bad
from _runtime.data_prep.rl_messages import Fault
from _runtime.data_prep.rl_rows import PLACEHOLDER

TEMPLATES = ("dapo", "skywork")


@dataclass(frozen=True)
class Target:
    """The dataset that placeholders of one name stand for.

    Attributes:
        path: ``hf://org/name``, or a local file, directory or glob of Parquet or JSONL.
        split: which of its files are meant, where they are told apart by name.
        question, answer: dotted fields of its rows; a number picks an element of a list.
        template: "dapo" takes the source's own instruction off the question and puts prefix and suffix around it;
            "skywork" puts the question in place of ``{question}``.
    """

    path: str
    split: str = "train"
    question: str = "prompt.0.content"
    answer: str = "reward_model.ground_truth"
    template: str = "dapo"
    revision: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_DAPO = Target("hf://BytedTsinghua-SIA/DAPO-Math-17k")
_SKYWORK = Target("hf://Skywork/Skywork-OR1-RL-Data", "math", template="skywork")
#: The names that the RL blends of Nemotron 3 Nano and Super use.
TARGETS: Mapping[str, Target] = {
    "nano_v3_sft_profiled_dapo17k": _DAPO,
    "nano_v3_sft_profiled_skywork_no_omni": _SKYWORK,
    "super_v3_lcsft_step1000_dapo17k": _DAPO,
    "super_v3_lcsft_step1000_skyworks": _SKYWORK,
}


def read_targets(given: Mapping[str, Any]) -> dict[str, Target]:
    """The known targets, with those of the config's ``placeholder_datasets`` added or in their place.

    Raises:
        PayloadError: an unknown key, or a value that is no text.
    """
    found = dict(TARGETS)
    for name, value in given.items():
        where = f"placeholder_datasets.{name}."
        if not isinstance(value, dict):
            raise bad(f"placeholder_datasets.{name}: {value!r} is not a mapping with a path")
        options.check_keys(value, Target.__dataclass_fields__, where)
        texts = {key: options.text(value, key, where=where) for key in value if value[key] is not None}
        base = found.get(name)
        if base is None and "path" not in texts:
            raise bad(f"{where}path is not set", "Name the dataset: hf://org/name, or a local path.")
        found[name] = Target(**{**(base.to_json() if base else {}), **texts})
        if found[name].template not in TEMPLATES:
            raise bad(f"{where}template: {found[name].template!r} is not one of {', '.join(TEMPLATES)}")
    return found


def reference(row: Mapping[str, Any]) -> tuple[str, int]:
    """The dataset's name and the row's number that a placeholder means.

    Raises:
        Fault: it does not say.
    """
    name, held = row.get("dataset"), row.get(PLACEHOLDER)
    number = held.get("row") if isinstance(held, dict) else None
    if not isinstance(name, str):
        raise Fault("unresolved_placeholder", f"{PLACEHOLDER} without the name of a dataset in 'dataset'")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise Fault("unresolved_placeholder", f"{PLACEHOLDER}.row of {name} is {number!r}, not the number of a row")
    return name, number


def resolved(row: Mapping[str, Any], target: Target, question: str, answer: Any) -> dict[str, Any]:
    """The row that a placeholder stands for: its own fields, the question in its template, and the answer as text."""
    template = row[PLACEHOLDER].get("question_template")
    if target.template == "skywork":
        full = template.replace("{question}", question) if isinstance(template, str) and "{question}" in template else (
            question
        )  # fmt: skip
    elif isinstance(template, dict):
        full = f"{template.get('prefix') or ''}{bare(question)}{template.get('suffix') or ''}".rstrip("\n")
    else:
        full = question
    made = {key: value for key, value in row.items() if key != PLACEHOLDER}
    made["question"] = question if target.template == "skywork" else full
    made["expected_answer"] = first_answer(answer)
    made["responses_create_params"] = {"input": [{"role": "user", "content": full}]}
    return made


def bare(question: str) -> str:
    """A DAPO question without its first and its last paragraph, which are instructions."""
    parts = question.split("\n\n")
    return "\n\n".join(parts[1:-1]) if len(parts) > 2 else question


def first_answer(answer: Any) -> str:
    """The answer as text; of a list or an object, which may be JSON in a text, the first value.

    NeMo-Gym's servers take text only, so "34" stays text.
    """
    parsed = answer
    if isinstance(answer, str):
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError):
            return answer
        if not isinstance(parsed, list | dict):
            return parsed if isinstance(parsed, str) else answer
    if isinstance(parsed, dict):
        parsed = list(parsed.values())
    if isinstance(parsed, list):
        parsed = parsed[0] if parsed else ""
    return parsed if isinstance(parsed, str) else json.dumps(parsed, ensure_ascii=False)
