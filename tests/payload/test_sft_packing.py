"""data_prep/sft_packing, run for real: what it writes token for token, what it counts, and how it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from chat_slowly import learned, parts, shifted, stretches
from interpreters import STEPS
from packed_reader import PackedDataset, collate
from payload_run import REPOSITORY, Outcome, run_payload

from nemotron_dagster.artifacts.types import packed_parquet

sys.path.insert(0, str(STEPS))

from _runtime.data_prep import chat, chat_template

STEP = REPOSITORY / "steps/data_prep/sft_packing"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
ROWS = [json.loads(line) for line in (STEP / "data/tiny.jsonl").read_text().splitlines()]
NANO3 = chat_template.load("nano3", None)
Sequence = tuple[tuple[int, ...], tuple[int, ...]]


def row(i: int, text: str = "") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}. {text}"}]}


@pytest.fixture
def packing(tmp_path: Path, data_python: str) -> Any:
    """Run the step on rows, or on what ``blend_path`` names; ``packing.out`` is its output directory."""

    class Packing:
        out = tmp_path / "out"
        file = tmp_path / "in.jsonl"
        python = data_python

        def config(self, **cfg: Any) -> dict[str, Any]:
            base = {"blend_path": str(self.file), "output_dir": str(self.out), "num_shards": 4, "pack_size": 512}
            shares = {"train_ratio": 0.5, "valid_ratio": 0.25, "test_ratio": 0.25}
            return {**base, **shares, "tokenizer": {"model": str(TOKENIZER)}, **cfg}

        def __call__(self, rows: list[Any] | None = None, env: dict[str, str] | None = None, **cfg: Any) -> Outcome:
            if rows is not None:
                self.file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
            return run_payload(STEP, self.config(**cfg), tmp_path / "run", data_python, **(env or {}))

        def sequences(self, split: str | None = None) -> list[Sequence]:
            """Tokens and mask of every sequence, in the order of a reader."""
            found = []
            for name in [split] if split else ("train", "valid", "test"):
                if any((self.out / "splits" / name).iterdir()):
                    dataset = PackedDataset(self.out / "splits" / name)
                    for item in (dataset[i] for i in range(len(dataset))):
                        bounds = item["seq_boundaries"]
                        found += [
                            (tuple(item["input_ids"][a:b].tolist()), tuple(item["loss_mask"][a:b].tolist()))
                            for a, b in pairwise(bounds)
                        ]
            return found

    return Packing()


def slowly(python: str, rows: list[dict[str, Any]], template: str = "nano3") -> list[Sequence]:
    """Every sequence of the rows: rendered message by message, each stretch tokenized on its own, one by one."""
    wanted = []
    chosen = chat_template.load(template, None)
    for r in rows:
        read = chat.read(r, chat.RowFields())

        def render(messages: list[dict[str, Any]], tools: Any = read.tools) -> str:
            text = chosen.render(messages, tools)
            return text.replace(chat_template.START, "").replace(chat_template.END, "")

        wanted += [stretches(*learned(some, first, render)) for some, first in parts(read.messages)]
    code = (
        "import json, sys; from tokenizers import Tokenizer; t = Tokenizer.from_file(sys.argv[1]);"
        "ids = lambda text: t.encode(text, add_special_tokens=False).ids;"
        "print(json.dumps([[[ids(x), b] for x, b in s] for s in json.load(sys.stdin)]))"
    )
    command = [python, "-c", code, str(TOKENIZER / "tokenizer.json")]
    done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, check=True)
    found = []
    for sequence in json.loads(done.stdout):
        ids = [i for some, _ in sequence for i in some]
        mask = [bit for some, bit in sequence for _ in some]
        found.append((tuple(ids), tuple(shifted(ids, mask))))
    return found


def first_fit(lengths: list[int], order: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for i in order:
        fitting = (b for b in bins if sum(lengths[j] for j in b) + lengths[i] <= capacity)
        target = next(fitting, None)
        if target is None:
            bins.append([i])
        else:
            target.append(i)
    return bins


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def refused(outcome: Outcome, name: str, *parts_: str) -> None:
    assert outcome.status == 3, outcome.stderr
    assert outcome.error["name"] == name
    for part in parts_:
        assert part in outcome.error["message"], outcome.error["message"]
    assert outcome.error["recovery"]
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(("shards", "template"), [(1, "nano3"), (5, "nano3"), (2, "lightning35")])
def test_every_conversation_is_there_token_for_token_with_its_mask(
    packing: Any, data_python: str, shards: int, template: str
) -> None:
    outcome = packing(ROWS, num_shards=shards, pack_size=4096, chat_template=template)
    assert outcome.status == 0, outcome.stderr
    expected = slowly(data_python, ROWS, template)
    assert Counter(packing.sequences()) == Counter(expected)
    facts = packed_parquet.validate(packing.out)
    told = outcome.facts
    assert facts["sequences"] == told["sequences"] == len(expected)
    assert facts["tokens"] == told["tokens"] == sum(len(ids) for ids, _ in expected)
    assert facts["trained_tokens"] == told["trained_tokens"] == sum(sum(mask) for _, mask in expected)
    assert facts["rows"] == told["packs"] and told["rows"] == len(ROWS) and told["removed"] == {}
    assert told["fill"] == pytest.approx(facts["tokens"] / facts["rows"] / 4096, abs=1e-4)


def test_a_shard_has_the_packs_of_the_reference_in_its_order(packing: Any, data_python: str) -> None:
    packing(ROWS[:60], num_shards=1, pack_size=4096, sample_seed=5)
    expected = slowly(data_python, ROWS[:60])
    order = list(range(len(expected)))
    random.Random(5).shuffle(order)
    bins = first_fit([len(ids) for ids, _ in expected], order, 4096)
    dataset = PackedDataset(packing.out / "splits/train")
    assert len(dataset) == len(bins)
    for i, wanted in enumerate(bins):
        item = dataset[i]
        assert tuple(item["input_ids"].tolist()) == tuple(t for j in wanted for t in expected[j][0])
        assert tuple(item["loss_mask"].tolist()) == tuple(b for j in wanted for b in expected[j][1])


def test_a_trainer_learns_the_answers_and_nothing_else(packing: Any, data_python: str) -> None:
    rows = [row(i, "The answer is yes." * (i % 4)) for i in range(100)]
    packing(rows, num_shards=1, parquet_row_group_size=3)
    learned_ids: Counter[tuple[int, ...]] = Counter()
    dataset = PackedDataset(packing.out / "splits/train")
    assert len(dataset.groups) > 3
    for batch in (collate(dataset[i]) for i in range(len(dataset))):
        assert batch["cu_seqlens"][-1] == len(batch["tokens"]) == len(batch["labels"]) == len(batch["loss_mask"])
        for a, b in zip(batch["cu_seqlens"][:-1], batch["cu_seqlens"][1:], strict=True):
            assert batch["position_ids"][a] == 0
            learned_ids[tuple(batch["labels"][a:b][batch["loss_mask"][a:b] == 1].tolist())] += 1
    code = (
        "import json, sys; from tokenizers import Tokenizer; t = Tokenizer.from_file(sys.argv[1]);"
        "print(json.dumps([t.decode(x, skip_special_tokens=False) for x in json.load(sys.stdin)]))"
    )
    command = [data_python, "-c", code, str(TOKENIZER / "tokenizer.json")]
    given = json.dumps(list(learned_ids.elements()))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    answers = [f"{r['messages'][1]['content'].strip()}<|im_end|>\n" for r in rows]
    assert sorted(json.loads(done.stdout)) == sorted(answers)


def test_the_schema_is_the_one_that_trainers_read(packing: Any) -> None:
    packing(ROWS[:20], num_shards=1, pack_size=2048)
    (shard,) = (packing.out / "splits/train").iterdir()
    assert os.readlink(shard).startswith("../../runs/") and shard.name == "000000__in__shard_000000.parquet"
    file = pq.ParquetFile(shard)
    assert [(f.name, str(f.type)) for f in file.schema_arrow] == [
        ("input_ids", "list<element: int32>"),
        ("loss_mask", "list<element: uint8>"),
        ("seq_start_id", "list<element: int32>"),
    ]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("choice", ["truncate", "drop", "split"])
def test_conversations_over_the_pack_size_are_handled_as_asked_and_counted(
    packing: Any, data_python: str, choice: str
) -> None:
    rows = [row(i, "The answer is yes. " * (i % 9)) for i in range(40)]
    outcome = packing(rows, num_shards=1, pack_size=64, long_sequences=choice)
    whole = slowly(data_python, rows)
    long = [s for s in whole if len(s[0]) > 64]
    assert 0 < len(long) < 40
    assert outcome.facts["over_long"] == len(long)
    pieces = {
        "truncate": [(ids[:64], (*mask[:63], 0) if len(ids) > 64 else mask) for ids, mask in whole],
        "drop": [s for s in whole if s not in long],
        "split": [
            (ids[i : i + 64], (*mask[i : i + 64][:-1], 0)) for ids, mask in whole for i in range(0, len(ids), 64)
        ],
    }[choice]
    assert Counter(packing.sequences()) == Counter(s for s in pieces if any(s[1]))
    assert outcome.facts["untrained_sequences"] == sum(not any(mask) for _, mask in pieces)


def test_padding_for_context_parallelism_changes_no_token_and_no_mask(packing: Any, data_python: str) -> None:
    outcome = packing(ROWS[:60], num_shards=1, pack_size=4096, pad_seq_to_multiple=16)
    expected = Counter(slowly(data_python, ROWS[:60]))
    found: Counter[Sequence] = Counter()
    padding = 0
    for ids, mask in packing.sequences():
        assert (len(ids) - 1) % 16 == 0
        length = max(n for n in range(len(ids) + 1) if (ids[:n], mask[:n]) in expected)
        assert set(ids[length:]) <= {2} and not any(mask[length:])  # the end token, as Megatron-Bridge pads
        padding += len(ids) - length
        found[ids[:length], mask[:length]] += 1
    assert found == expected and outcome.facts["padding_tokens"] == padding


def test_rows_that_are_left_out_are_counted_with_their_line_and_reason(packing: Any) -> None:
    bad = [
        '{"messages": [', {"text": "x"}, {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<tool_call>"}]},
        row(99, "half of \ud800"),
    ]  # fmt: skip
    outcome = packing([*(row(i) for i in range(10)), *bad, *(row(i) for i in range(10, 20))], num_shards=1)
    told = outcome.facts["rejected"]
    assert {k: v["examples"][0]["row"] for k, v in told.items()} == {
        "not_json": f"{packing.file}:11",
        "no_messages": f"{packing.file}:12",
        "no_trainable_turn": f"{packing.file}:13",
        "tool_call_without_tools": f"{packing.file}:14",
        "not_utf8": f"{packing.file}:15",
    }
    assert set(outcome.facts["removed"].values()) == {1} and outcome.facts["sequences"] == 20
    assert json.loads((packing.out / "packing.json").read_text())["rejected"] == told


def test_on_bad_row_fail_stops_at_the_first_broken_row(packing: Any) -> None:
    refused(packing([row(1), {"text": "x"}], num_shards=1, on_bad_row="fail"), "bad_row", f"{packing.file}:2")
    assert (
        packing([row(1), {"messages": [{"role": "user", "content": "a"}]}], num_shards=1, on_bad_row="fail").status == 0
    )


def test_parquet_rows_give_the_same_sequences_as_json_rows(packing: Any, tmp_path: Path) -> None:
    rows = [r for r in ROWS if not isinstance(_arguments(r), str)][:80]
    packing(rows, num_shards=1, pack_size=4096)
    expected = Counter(packing.sequences())
    file = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([{"messages": r["messages"], "tools": r.get("tools")} for r in rows])
    pq.write_table(table, file)
    outcome = packing(blend_path=str(file), num_shards=1, pack_size=4096)
    assert outcome.status == 0, outcome.stderr
    assert Counter(packing.sequences()) == expected


def _arguments(r: dict[str, Any]) -> Any:
    calls = [c for m in r["messages"] for c in m.get("tool_calls", ())]
    return calls[0]["function"]["arguments"] if calls else None


def test_splits_share_no_row_and_links_are_those_of_the_last_run(packing: Any) -> None:
    rows = [row(i) for i in range(200)]
    first = packing(rows, num_shards=8, pack_size=256)
    assert set(first.facts["duplicates_across_splits"].values()) == {0}
    found = {s: set(packing.sequences(s)) for s in ("train", "valid", "test")}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 200
    before = tree(packing.out / "splits")
    (packing.out / "splits/train/999999__old__shard_000009.parquet").symlink_to("../../nowhere")
    second = packing(num_shards=8, pack_size=256)
    assert tree(packing.out / "splits") == before and second.facts["made_tokens"] == 0
    assert packed_parquet.validate(packing.out)["splits"].keys() == {"train", "valid", "test"}
    third = packing([*rows, *rows[:100]], num_shards=8, pack_size=256)
    assert sum(third.facts["duplicates_across_splits"].values()) > 0


def test_unequal_weights_mix_the_packs_of_a_split_and_equal_ones_keep_all(packing: Any, tmp_path: Path) -> None:
    for name, count in (("much", 400), ("little", 100)):
        some = [row(i, name) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))

    def blend(much: float, little: float) -> Counter[str]:
        entries = [{"name": n, "path": f"{n}.jsonl", "weight": w} for n, w in (("much", much), ("little", little))]
        (tmp_path / "blend.json").write_text(json.dumps({"datasets": entries}))
        shares = {"train_ratio": 1.0, "valid_ratio": 0.0, "test_ratio": 0.0}
        outcome = packing(blend_path=str(tmp_path / "blend.json"), num_shards=20, pack_size=64, **shares)
        assert outcome.status == 0, outcome.stderr
        packs: Counter[str] = Counter()
        for link in (packing.out / "splits/train").iterdir():
            packs[link.name.split("__")[1]] += pq.ParquetFile(link).metadata.num_rows
        assert packs == outcome.facts["per_split"]["train"]["packs"]
        return packs

    equal = blend(1.0, 1.0)
    assert equal["much"] == pytest.approx(4 * equal["little"], rel=0.1)
    weighted = blend(0.25, 0.75)
    assert weighted["little"] == equal["little"]
    assert weighted["much"] == pytest.approx(weighted["little"] / 3, rel=0.2)


def test_a_blend_per_split_keeps_its_datasets_apart(packing: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("train", "valid")):
        some = [row(i) for i in range(number * 50, number * 50 + 30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    blend = {s: [{"name": "same", "path": f"{s}.jsonl"}] for s in ("train", "valid")}
    (tmp_path / "blend.json").write_text(json.dumps(blend))
    outcome = packing(blend_path=str(tmp_path / "blend.json"))
    assert outcome.status == 0, outcome.stderr
    assert {s: len(packing.sequences(s)) for s in ("train", "valid", "test")} == {"train": 30, "valid": 30, "test": 0}


def test_a_changed_template_pack_size_or_tokenizer_packs_anew_and_nothing_else_does(
    packing: Any, tmp_path: Path
) -> None:
    assert packing([row(i) for i in range(40)], num_shards=2).facts["made_tokens"] > 0
    assert packing(num_shards=2, workers=2).facts["made_tokens"] == 0
    assert packing(num_shards=2, pack_size=256).facts["made_tokens"] > 0
    assert packing(num_shards=2, chat_template="tokenizer").facts["made_tokens"] > 0
    other = json.loads((TOKENIZER / "tokenizer.json").read_text())
    other["added_tokens"].append({**other["added_tokens"][0], "id": 394, "content": "<|new|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    assert packing(num_shards=2, tokenizer={"model": str(tmp_path)}).facts["made_tokens"] > 0


def test_fingerprints_are_those_that_checkpoints_are_compared_by(packing: Any, tmp_path: Path) -> None:
    from nemotron_dagster.artifacts.types._problems import Problems
    from nemotron_dagster.artifacts.types._tokenizer import fingerprint, read_template, read_tokenizer

    known = read_tokenizer(TOKENIZER, Problems())
    facts = packing([row(i) for i in range(9)], num_shards=1, chat_template="tokenizer").facts
    assert known and facts["tokenizer_fingerprint"] == known.fingerprint
    assert facts["chat_template_fingerprint"] == fingerprint(read_template(TOKENIZER, Problems()))
    # a checkpoint whose own template is spelled otherwise, but writes what nano3 writes
    (tmp_path / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{# mine #}" + NANO3.text)
    facts = packing(num_shards=1, tokenizer={"model": str(tmp_path)}).facts
    assert facts["chat_template_fingerprint"] == fingerprint("{# mine #}" + NANO3.text) != NANO3.fingerprint


def test_workers_ray_and_one_process_write_the_same(packing: Any) -> None:
    packing(ROWS, pack_size=4096, workers=1)
    alone = tree(packing.out)
    for launch in ({"workers": 2}, {"launch": "ray", "workers": 2}):
        outcome = packing(pack_size=4096, force=True, **launch)
        assert outcome.status == 0, outcome.stderr
        assert tree(packing.out) == alone, launch


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(packing: Any, tmp_path: Path) -> None:
    rows = [row(i, "The answer is yes. " * (i % 40)) for i in range(1500)]
    cfg = {"num_shards": 8, "workers": 2, "algorithm": "best_fit_decreasing"}
    began = time.monotonic()
    assert packing(rows, **cfg).status == 0
    whole = time.monotonic() - began
    expected = tree(packing.out)
    packing.out = tmp_path / "killed"
    config = tmp_path / "kill.yaml"
    config.write_text(json.dumps(packing.config(**cfg)))
    kills = 0
    rng = random.Random(1)
    for _ in range(20):
        process = subprocess.Popen(
            [packing.python, str(STEP / "step.py"), "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, whole))
        kills += process.poll() is None
        process.kill()
        process.wait()
        if kills % 4 == 3:  # what a crash of the machine leaves: a receipt whose file was lost or cut off
            for shard in sorted(packing.out.rglob("shard_*.parquet"))[:1]:
                shard.write_bytes(shard.read_bytes()[:-1])
    assert kills > 3
    assert packing(**cfg).status == 0
    assert tree(packing.out) == expected


def test_the_plan_says_what_a_run_would_take_and_makes_nothing(packing: Any, data_python: str, tmp_path: Path) -> None:
    packing.file.write_text("".join(json.dumps(row(i)) + "\n" for i in range(300)))
    config = tmp_path / "plan.yaml"
    config.write_text(json.dumps(packing.config(num_shards=1)))
    env = {k: v for k, v in os.environ.items() if k != "NEMOTRON_MESSAGES"}
    command = [data_python, str(STEP / "step.py"), "--config", str(config), "--plan"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)["plan"]
    assert plan["rows"] == pytest.approx(300, rel=0.05) and plan["shards"] == 1 and plan["tokens"] > 3000
    assert not packing.out.exists()


def tiny(packing: Any, **cfg: Any) -> Outcome:
    shipped = yaml.safe_load((STEP / "config/tiny.yaml").read_text())
    del shipped["run"]
    text = json.dumps({**shipped, "output_dir": str(packing.out)}).replace("${oc.env:NEMOTRON_STEP_DIR}", str(STEP))
    outcome: Outcome = packing(**{**json.loads(text), **cfg})
    assert outcome.status == 0, outcome.stderr
    return outcome


def test_tiny_packs_its_tools_and_reasoning_into_the_trainers_length(packing: Any) -> None:
    outcome = tiny(packing, chat_template="nano3")
    facts = packed_parquet.validate(packing.out)
    assert set(facts["splits"]) == {"train", "valid", "test"} and outcome.facts["removed"] == {}
    assert outcome.facts["rows"] == len(ROWS) < outcome.facts["sequences"]
    assert facts["pack_size"] <= outcome.facts["pack_size"] == 4096 and facts["efficiency"] > 0.85
    assert np.array(PackedDataset(packing.out / "splits/train")[0]["loss_mask"]).any()


def test_tiny_packs_are_made_like_those_that_the_tiny_trainers_bring_along(packing: Any) -> None:
    made = tiny(packing).facts
    for trainer in ("sft", "peft"):
        plan = json.loads((STEPS / trainer / "megatron_bridge/data/train/plan.json").read_text())
        assert made["tokenizer_fingerprint"] == plan["settings"]["tokenizer"]
        assert made["chat_template_fingerprint"] == plan["settings"]["chat_template"]
        assert made["pack_size"] == plan["settings"]["pack_size"]


BAD: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "an unknown key": ({"pack_sise": 4}, "config_invalid", ["pack_sise", "did you mean 'pack_size'"]),
    "a pack size of 0": ({"pack_size": 0}, "config_invalid", ["pack_size: 0"]),
    "ratios that do not add up": ({"valid_ratio": 0.5}, "config_invalid", ["add up to 1.25"]),
    "an unknown algorithm": ({"algorithm": "best_fit"}, "config_invalid", ["did you mean 'best_fit_decreasing'"]),
    "stratified first fit": ({"stratify": True}, "config_invalid", ["best_fit_decreasing"]),
    "a multiple as large as the pack": ({"pad_seq_to_multiple": 512}, "config_invalid", ["pad_seq_to_multiple: 512"]),
    "a template that is not there": ({"chat_template": "nano4"}, "chat_template_missing", ["nano4", "nano3"]),
    "a template that is broken": ({"chat_template": "{% if %}"}, "chat_template_invalid", ["line 1"]),
    "no tokenizer": ({"tokenizer": {"model": "/no/such"}}, "tokenizer_mismatch", ["/no/such"]),
    "a tokenizer of the Hub, offline": ({"tokenizer": "nobody/nothing"}, "tokenizer_unavailable", ["nobody/nothing"]),
    "a field that no row has": ({"messages_field": "turns"}, "empty_output", ["no_messages 20", "in.jsonl:"]),
    "a stage that no row names": ({"used_in_filter": "sft"}, "empty_output", ["used_in_filter 20"]),
    "packs too short for any answer": ({"pack_size": 8}, "empty_output", ["20 were too long"]),
    "no blend": ({"blend_path": "/path/to/data_blend.json"}, "config_invalid", ["blend_path"]),
    "no date": ({"template_date": "today"}, "config_invalid", ["template_date"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused_with_the_fix(packing: Any, case: str) -> None:
    cfg, name, parts_ = BAD[case]
    refused(packing([row(i) for i in range(20)], env={"HF_HUB_OFFLINE": "1"}, **cfg), name, *parts_)


def test_a_tokenizer_without_a_template_is_told_where_its_own_is_asked_for(packing: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    outcome = packing([row(1)], tokenizer={"model": str(tmp_path)}, chat_template="tokenizer")
    refused(outcome, "chat_template_missing", "no chat template")
