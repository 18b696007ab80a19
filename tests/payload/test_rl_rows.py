"""What data_prep/rl_prep takes for a well-formed row is what a training_jsonl artifact takes for one."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections import Counter
from typing import Any

from interpreters import STEPS

from nemotron_dagster.artifacts.types import _rows

sys.path.insert(0, str(STEPS))

from _runtime.data_prep import rl_messages, rl_rows, rl_splits

Row = dict[str, Any]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "array", "items": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "add"},
    {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    {"role": "assistant", "content": "Two."},
]
ROWS: list[Row] = [
    {"messages": CHAT, "tools": TOOLS},
    {"messages": CHAT[:2], "tools": json.dumps(TOOLS)},
    {"prompt": "q", "chosen": "a", "rejected": "b", "tools": TOOLS},
    {"prompt": CHAT[:2], "chosen": CHAT[4:], "rejected": [{"role": "assistant", "content": "Three."}]},
    {"context": CHAT[:2], "completions": [{"rank": 0, "completion": CHAT[4:]},
                                          {"rank": 1, "completion": CHAT[2:]},
                                          {"rank": 2, "completion": [{"role": "assistant", "content": "x"}]}]},
    {"responses_create_params": {"input": [{"role": "user", "content": "q"}]}, "agent_ref": {"type": "t", "name": "n"}},
    {"responses_create_params": {"input": "q"}, "agent_ref": {"name": "n"}, "expected_answer": "2"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"question": "q", "expected_answer": "a"},
    {"problem": CHAT[:2], "answer": 3},
]  # fmt: skip
VALUES: list[Any] = [
    *(None, "", " ", "x", 0, 1, True, 1.5, [], ["x"], {}, [1], [None], {"role": "user", "content": "x"}, "[]", "{"),
    *("tool", "assistant", "function", "object", "float"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [p for key in keys for p in [(value, key), *places(value[key])]]


def mutated(row: Row, seed: random.Random) -> Row:
    made = copy.deepcopy(row)
    for _ in range(seed.choice([0, 1, 1, 1, 2, 3])):
        found = places(made)
        if not found:
            break
        container, key = seed.choice(found)
        action = seed.random()
        if action < 0.3:
            del container[key]
        elif action < 0.4 and isinstance(container, list):
            container.append(container[key])
        elif action < 0.5:
            other, name = seed.choice(found)
            container[key] = copy.deepcopy(other[name]) if name in range(len(other)) or name in other else None
        else:
            container[key] = copy.deepcopy(seed.choice(VALUES))
    return made


def accepted(check: Any, row: Row) -> bool:
    try:
        check(row)
    except (rl_messages.Fault, _rows.Fault):
        return False
    return True


def test_rows_with_up_to_three_faults_are_judged_as_the_artifact_judges_them() -> None:
    seed = random.Random(11)
    seen: Counter[bool] = Counter()
    for _ in range(6000):
        row = mutated(seed.choice(ROWS), seed)
        expected = accepted(_rows.check, row)
        assert accepted(rl_messages.check, row) == expected, row
        seen[expected] += 1
    assert min(seen.values()) > 800


def test_what_is_written_for_a_format_passes_the_artifacts_check() -> None:
    seed = random.Random(12)
    passed: Counter[str] = Counter()
    for layout in ("binary", "ranked"):
        for _ in range(2500):
            row = mutated(seed.choice(ROWS), seed)
            settings = {
                "row_format": seed.choice(rl_rows.FORMATS),
                "preference_format": layout,
                "prompt_field": "question",
                "answer_field": "expected_answer",
                "default_agent_ref": None,
            }
            try:
                made, _ = rl_rows.prepared(row, settings)
            except rl_messages.Fault:
                continue
            _rows.check(made)
            rl_rows.asked(made, settings)
            passed[settings["row_format"]] += 1
    assert set(passed) == set(rl_rows.FORMATS)


def test_names_of_files_tell_their_split() -> None:
    for name, split in {
        "train.jsonl": "train", "data/train-00000-of-00002.parquet": "train", "validation/part-0.jsonl": "valid",
        "x_val.jsonl": "valid", "dev/a.jsonl.gz": "valid", "test/train.jsonl": "train", "math.parquet": None,
        "contest.jsonl": None, "latest.jsonl": None, "valuable.jsonl": None, "TEST.jsonl": "test",
    }.items():  # fmt: skip
        assert rl_splits.named(name) == split, name


def test_shares_are_kept_and_cover_every_hash() -> None:
    shares = {"valid": 0.2, "test": 0.1}
    seed = random.Random(3)
    found = Counter(rl_splits.split_for(seed.getrandbits(64), shares, {}) for _ in range(20_000))
    assert abs(found["valid"] - 4000) < 300
    assert abs(found["test"] - 2000) < 300
    assert rl_splits.split_for(2**64 - 1, shares, {}) == "train"
    assert rl_splits.split_for(0, shares, {}) == "valid"
