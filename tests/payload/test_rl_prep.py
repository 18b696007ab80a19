"""data_prep/rl_prep as a process: nothing lost, real splits, rows that NeMo-RL reads, and runs that survive a kill."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from payload_run import REPOSITORY, Outcome, run_payload

from nemotron_dagster.artifacts.types import training_jsonl

STEP = REPOSITORY / "steps/data_prep/rl_prep"
Row = dict[str, Any]
Prepare = Callable[..., Outcome]


@pytest.fixture
def prepare(tmp_path: Path, data_python: str) -> Prepare:
    def run(source: Path | str, **cfg: Any) -> Outcome:
        env = cfg.pop("env", {})
        cfg = {"blend_path": str(source), "output_dir": str(tmp_path / "out"), **cfg}
        return run_payload(STEP, cfg, tmp_path / "run", data_python, **env)

    return run


def pairs(count: int, start: int = 0) -> list[Row]:
    return [{"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": f"no {i}", "n": i}
            for i in range(start, start + count)]  # fmt: skip


def write(file: Path, rows: Iterable[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def manifest(out: Path) -> Row:
    return dict(json.loads((out / "manifest.json").read_text()))


def read(out: Path) -> dict[str, list[Row]]:
    """Split -> its rows, as the manifest has them; the path or glob of a split must mean exactly its shards."""
    found = {}
    for split, shards in manifest(out)["shards"].items():
        files = [out / s["path"] for s in shards]
        named = manifest(out)[split]
        assert sorted(out.glob(named) if named else []) == sorted(files)
        found[split] = [json.loads(line) for f in files for line in f.read_text().splitlines()]
        assert [s["rows"] for s in shards] == [len(f.read_text().splitlines()) for f in files]
        assert [s["bytes"] for s in shards] == [f.stat().st_size for f in files]
    return found


def numbers(rows: Iterable[Row]) -> list[int]:
    return sorted(row["n"] for row in rows)


@pytest.mark.parametrize("shards", [1, 5])
def test_every_row_is_in_one_shard_of_the_manifest_and_its_split_is_its_prompts_hash(
    prepare: Prepare, tmp_path: Path, shards: int
) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(400))
    done = prepare(source, num_shards_per_split=shards, valid_ratio=0.2, test_ratio=0.1)
    out = tmp_path / "out"
    found = read(out)
    expected: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row in pairs(400):
        share = xxhash.xxh3_64_intdigest(row["prompt"].encode(), 42) / 2**64
        expected["val" if share < 0.2 else "test" if share < 0.3 else "train"].append(row["n"])
    assert {split: numbers(rows) for split, rows in found.items()} == expected
    assert all(row == pairs(1, row["n"])[0] for rows in found.values() for row in rows)
    assert {s: len(v) for s, v in manifest(out)["shards"].items()} == dict.fromkeys(expected, shards)
    assert done.facts["rows"] == 400
    assert training_jsonl.validate(out)["rows"] == 400
    shutil.move(out, tmp_path / "moved")
    assert read(tmp_path / "moved") == found


def test_rows_of_one_prompt_share_a_split_and_none_moves_when_rows_are_added(prepare: Prepare, tmp_path: Path) -> None:
    rows = pairs(150)
    again = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}], "chosen": "other", "n": row["n"] + 1000}
             for row in rows]  # fmt: skip
    source = write(tmp_path / "data/a.jsonl", rows)
    prepare(source.parent, valid_ratio=0.3)
    before = read(tmp_path / "out")
    write(tmp_path / "data/b.jsonl", again)
    done = prepare(source.parent, valid_ratio=0.3)
    after = read(tmp_path / "out")
    for split in ("train", "val"):
        first = numbers(before[split])
        assert first
        assert numbers(after[split]) == first + [n + 1000 for n in first]
    assert done.facts["prompts_across_splits"] == {"valid_in_train": 0, "test_in_train": 0, "test_in_valid": 0}
    assert len(manifest(tmp_path / "out")["shards"]["train"]) == 1


def test_a_handful_of_rows_still_gets_a_validation_split(prepare: Prepare, tmp_path: Path) -> None:
    for count in (2, 3, 7):
        prepare(write(tmp_path / "rows.jsonl", pairs(count)), valid_ratio=0.01)
        found = read(tmp_path / "out")
        assert (len(found["train"]), len(found["val"])) == (count - 1, 1)
    error = prepare(write(tmp_path / "rows.jsonl", pairs(1) * 9), valid_ratio=0.01).error
    assert error["name"] == "split_names_do_not_match_rl_config"
    assert "no row is left for validation: 9 rows" in error["message"]


def test_splits_of_the_source_are_kept_and_only_a_lacking_one_is_dealt(prepare: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "train-00000.jsonl", pairs(50))
    write(data / "more/extra.jsonl", pairs(50, 50))
    write(data / "validation/x.jsonl", pairs(9, 100))
    done = prepare(data, test_ratio=0.2, valid_ratio=0.5)
    found = read(tmp_path / "out")
    assert numbers(found["val"]) == list(range(100, 109))
    assert found["test"]
    assert numbers(found["train"] + found["test"]) == list(range(100))
    assert done.facts["source_splits"] == manifest(tmp_path / "out")["source_splits"] == ["train", "validation"]
    assert done.facts["held_out"] == {"test": 0.2}
    prepare(data, splits="ratios", valid_ratio=0.1)
    assert manifest(tmp_path / "out")["source_splits"] == []
    assert numbers(row for rows in read(tmp_path / "out").values() for row in rows) == list(range(109))


def test_max_rows_counts_per_split_of_the_source(prepare: Prepare, tmp_path: Path) -> None:
    for n, name in enumerate(("train", "test", "val")):
        write(tmp_path / f"data/{name}.jsonl", pairs(20, n * 100))
    for cfg in ({"max_rows": 7, "num_shards_per_split": 3}, {"sample": 7}):
        prepare(tmp_path / "data", **cfg)
        found = {s: numbers(rows) for s, rows in read(tmp_path / "out").items()}
        assert found == {"train": [*range(7)], "test": [*range(100, 107)], "val": [*range(200, 207)]}


def test_a_blend_with_lists_per_split_gives_the_splits(prepare: Prepare, tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 10), ("c", 20)):
        write(tmp_path / f"{name}.jsonl", pairs(5, start))
    blend = {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl"}], "valid": [{"path": "c.jsonl"}]}
    (tmp_path / "blend.json").write_text(json.dumps(blend))
    prepare(tmp_path / "blend.json")
    found = {s: numbers(rows) for s, rows in read(tmp_path / "out").items()}
    assert found == {"train": [*range(5), *range(10, 15)], "val": [*range(20, 25)], "test": []}


def test_prompts_of_two_splits_are_reported_and_leave_training_on_request(prepare: Prepare, tmp_path: Path) -> None:
    write(tmp_path / "data/train.jsonl", pairs(20))
    write(tmp_path / "data/val.jsonl", [*pairs(3), *[{**r, "chosen": "new"} for r in pairs(2, 5)], *pairs(4, 50)])
    write(tmp_path / "data/test.jsonl", pairs(2, 50))
    facts = prepare(tmp_path / "data").facts
    assert facts["duplicates_across_splits"] == {"valid_in_train": 3, "test_in_train": 0, "test_in_valid": 2}
    assert facts["prompts_across_splits"] == {"valid_in_train": 5, "test_in_train": 0, "test_in_valid": 2}
    facts = prepare(tmp_path / "data", dedup_across_splits=True).facts
    assert facts["removed"] == {"in_another_split": 7}
    assert set(facts["prompts_across_splits"].values()) == {0}
    found = {s: numbers(rows) for s, rows in read(tmp_path / "out").items()}
    assert found["train"] == [3, 4, *range(7, 20)]
    assert found["val"] == [0, 1, 2, 5, 6, 52, 53]
    assert found["test"] == [50, 51]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
LAYOUTS: list[Row] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]},
    {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
    {"prompt": "q", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
    {"context": [user("q")], "completions": [{"rank": 4, "completion": [said("b")]},
                                             {"rank": 1, "completion": [said("a")]}]},
    {"context": "q", "completions": [{"rank": 0, "completion": [said("a")]}, {"rank": 1, "completion": [said("c")]},
                                     {"rank": 2, "completion": [said("b")]}]},
]  # fmt: skip


def test_every_layout_of_preferences_becomes_the_one_that_is_asked_for(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{**row, "n": i} for i, row in enumerate(LAYOUTS)])
    done = prepare(source, preference_format="binary", valid_ratio=0)
    binary = read(tmp_path / "out")["train"]
    assert binary == [{"prompt": "q", "chosen": "a", "rejected": "b", "n": i} for i in range(len(LAYOUTS))]
    assert done.facts["reader"] == {"dataset_name": "BinaryPreferenceDataset"}
    assert done.facts["completions_left_out"] == 1
    done = prepare(source, valid_ratio=0)  # some rows are ranked
    assert done.facts["reader"] == {"dataset_name": "PreferenceDataset"}
    for row in read(tmp_path / "out")["train"]:
        better, worse = sorted(row["completions"], key=lambda c: int(c["rank"]))  # NeMo-RL takes exactly two
        assert better["rank"] < worse["rank"]
        assert (row["context"], better["completion"], worse["completion"]) == ([user("q")], [said("a")], [said("b")])
    assert training_jsonl.validate(tmp_path / "out")["kinds"] == {"ranked": len(LAYOUTS)}


def test_a_pair_with_a_system_prompt_makes_all_ranked_or_is_counted(prepare: Prepare, tmp_path: Path) -> None:
    odd = {"prompt": [SYSTEM, user("q")], "chosen": "a", "rejected": "b"}
    source = write(tmp_path / "rows.jsonl", [*pairs(3), odd])
    assert prepare(source, valid_ratio=0).facts["preference_format"] == "ranked"
    assert read(tmp_path / "out")["train"][3]["context"] == [SYSTEM, user("q")]
    facts = prepare(source, valid_ratio=0, preference_format="binary").facts
    assert facts["rejected"]["not_a_text_pair"]["examples"][0]["row"] == f"{source}:4"


def test_bad_rows_are_counted_by_reason_with_their_lines_or_stop_the_run(prepare: Prepare, tmp_path: Path) -> None:
    bad = [
        ("missing_rejected", '{"prompt": "q", "chosen": "a"}'),
        ("missing_prompt", '{"chosen": "a", "rejected": "b"}'),
        ("equal_answers", '{"prompt": "q", "chosen": "a", "rejected": "a"}'),
        ("empty_text", '{"prompt": " ", "chosen": "a", "rejected": "b"}'),
        ("not_json", '{"prompt": "q", "chosen": '),
        ("not_json", '{"prompt": "q", "chosen": "a", "rejected": "b", "score": NaN}'),
        ("not_json", '{"prompt": "q\\ud800", "chosen": "a", "rejected": "b"}'),
        ("not_an_object", "[1]"),
        ("missing_chosen", '{"messages": [{"role": "user", "content": "q"}]}'),
        ("bad_tools", '{"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"function": {}}]}'),
    ]
    source = tmp_path / "rows.jsonl"
    good = [json.dumps(row) for row in pairs(20)]
    source.write_text("\n".join([*good, *[line for _, line in bad]]) + "\n")
    facts = prepare(source).facts
    expected: dict[str, list[str]] = {}
    for n, (reason, _) in enumerate(bad, 21):
        expected.setdefault(reason, []).append(f"{source}:{n}")
    assert {r: [e["row"] for e in about["examples"]] for r, about in facts["rejected"].items()} == expected
    assert facts["rows"] == training_jsonl.validate(tmp_path / "out")["rows"] == 20
    source.write_text("\n".join([*good, bad[0][1], good[0], bad[1][1]]) + "\n")
    done = prepare(source, on_bad_row="fail")
    assert (done.status, done.error["name"]) == (3, "bad_row")
    assert done.error["message"].startswith(f"{source}:21: missing_rejected")
    done = prepare(write(tmp_path / "none.jsonl", [{"prompt": "q", "chosen": "a"}] * 3))
    assert (done.status, done.error["name"]) == (3, "invalid_dpo_preference_schema")
    assert "missing_rejected 3" in done.error["message"]
    assert "Traceback" not in done.stderr


def test_verifier_rows_need_the_field_their_answers_are_checked_against(prepare: Prepare, tmp_path: Path) -> None:
    done = prepare(STEP / "data/problems.jsonl")
    assert done.facts["reader"] == {
        "dataset_name": "ResponseDataset", "input_key": "prompt", "output_key": "expected_answer",
    }  # fmt: skip
    rows = [{"question": f"q{i}", "reward_model": {"ground_truth": str(i)}} for i in range(5)]
    source = write(tmp_path / "rows.jsonl", [*rows, {"question": "q", "reward_model": {}}])
    facts = prepare(source).facts
    assert (facts["row_format"], facts["prompt_field"]) == ("verifier", "question")
    assert facts["answer_field"] == "reward_model.ground_truth"
    assert facts["removed"] == {"missing_verifier_field": 1}
    assert facts["reader"] == {}  # ResponseDataset reads no field of an object
    error = prepare(source, answer_field="solution").error
    assert error["name"] == "missing_rlvr_verifier_fields"
    assert "'solution'" in error["message"]


def test_gym_rows_are_written_as_they_are_and_get_the_default_agent(prepare: Prepare, tmp_path: Path) -> None:
    agent = {"type": "responses_api_agents", "name": "math"}
    lines = [f'{{"responses_create_params": {{"input": "q{i}"}}, "agent_ref": {json.dumps(agent)},  "big": {10**30}}}'
             for i in range(9)]  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines) + '\n{"responses_create_params": {"input": "q"}}\n')
    facts = prepare(source, valid_ratio=0).facts
    assert facts["reader"] == {"dataset_name": "NemoGymDataset"}
    assert facts["removed"] == {"missing_agent_ref": 1}
    file = tmp_path / "out" / manifest(tmp_path / "out")["train"]
    assert file.read_text().splitlines() == lines
    prepare(source, valid_ratio=0, default_agent_ref={"name": "math"})
    assert read(tmp_path / "out")["train"][-1]["agent_ref"] == agent


def test_parquet_gzip_and_zstd_say_what_jsonl_says(prepare: Prepare, tmp_path: Path) -> None:
    rows = pairs(60)
    write(tmp_path / "a/rows.jsonl", rows)
    (tmp_path / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b/rows.parquet", row_group_size=7)
    (tmp_path / "c").mkdir()
    with gzip.open(tmp_path / "c/rows.jsonl.gz", "wt") as out:
        out.write((tmp_path / "a/rows.jsonl").read_text())
    found = []
    for folder in "abc":
        prepare(tmp_path / folder, num_shards_per_split=3, valid_ratio=0.2)
        found.append({s: sorted(rs, key=lambda r: r["n"]) for s, rs in read(tmp_path / "out").items()})
    assert found[0] == found[1] == found[2]
    prepare(tmp_path / "a", compression="zstd", valid_ratio=0.2)
    named = manifest(tmp_path / "out")["train"]
    assert named.endswith("train_shard_000000.jsonl.zst")
    with pa.CompressedInputStream(str(tmp_path / "out" / named), "zstd") as stream:
        lines = stream.read().decode().splitlines()
    assert [json.loads(line) for line in lines] == found[0]["train"]
    assert training_jsonl.validate(tmp_path / "out")["rows"] == 60


def placeholder(name: str, row: Any, template: Any, n: int) -> Row:
    held = {"row": row, "question_template": template}
    return {"dataset": name, "_hf_placeholder": held, "agent_ref": {"name": "math"}, "n": n}


MATH = [{"prompt": [user(f"Solve this.\n\nWhat is {i} + 1?\n\nBox it.")], "reward_model": {"ground_truth": str(i + 1)}}
        for i in range(30)]  # fmt: skip
OR1 = [{"prompt": [user(f"Sum {i}?")], "reward_model": {"ground_truth": json.dumps([f"{i}/2"])}} for i in range(8)]
BLEND = [
    placeholder("nano_v3_sft_profiled_dapo17k", 17, {"prefix": "<<", "suffix": ">>\n"}, 0),
    placeholder("nano_v3_sft_profiled_skywork_no_omni", 3, "Think. {question} Go.", 1),
    {"responses_create_params": {"input": "plain"}, "agent_ref": {"name": "x"}, "n": 2},
    placeholder("nano_v3_sft_profiled_dapo17k", 30, {}, 3),
    placeholder("nobody_knows", 1, {}, 4),
    placeholder("nano_v3_sft_profiled_dapo17k", None, {}, 5),
]


def test_placeholders_become_the_rows_of_datasets_in_the_hub_cache_offline(prepare: Prepare, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    for repo, file, rows in (
        ("BytedTsinghua-SIA--DAPO-Math-17k", "data/dapo-math-17k.parquet", MATH),
        ("Skywork--Skywork-OR1-RL-Data", "data/math-00000-of-00001.parquet", OR1),
        ("Skywork--Skywork-OR1-RL-Data", "data/code-00000-of-00001.parquet", MATH),
    ):
        commit = "a" * 40
        path = hub / f"datasets--{repo}/snapshots/{commit}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        (hub / f"datasets--{repo}/refs").mkdir(exist_ok=True)
        (hub / f"datasets--{repo}/refs/main").write_text(commit)
    source = write(tmp_path / "rows.jsonl", BLEND)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "HF_HOME": str(tmp_path / "home")}
    facts = prepare(source, valid_ratio=0, env=offline).facts
    rows = {row["n"]: row for row in read(tmp_path / "out")["train"]}
    assert sorted(rows) == [0, 1, 2]
    assert rows[0]["question"] == "<<What is 17 + 1?>>"
    assert rows[0]["responses_create_params"] == {"input": [user("<<What is 17 + 1?>>")]}
    assert (rows[0]["expected_answer"], rows[1]["expected_answer"]) == ("18", "3/2")
    assert rows[1]["question"] == "Sum 3?"
    assert rows[1]["responses_create_params"]["input"][0]["content"] == "Think. Sum 3? Go."
    assert all("_hf_placeholder" not in row for row in rows.values())
    assert facts["resolved_placeholders"] == 2
    assert facts["removed"] == {"unresolved_placeholder": 3}
    notes = [e["note"] for e in facts["rejected"]["unresolved_placeholder"]["examples"]]
    assert "hf://BytedTsinghua-SIA/DAPO-Math-17k has no question in row 30" in notes[0]
    assert "placeholder_datasets does not say what 'nobody_knows' is" in notes[1]
    assert facts["placeholders"]["nano_v3_sft_profiled_dapo17k"]["found"] == 1
    shutil.rmtree(hub)
    facts = prepare(source, valid_ratio=0, env=offline).facts
    assert facts["removed"] == {"unresolved_placeholder": 5}
    assert "HF_HUB_OFFLINE is set" in facts["placeholders"]["nano_v3_sft_profiled_skywork_no_omni"]["why"]


def test_a_placeholder_dataset_may_be_a_local_file_and_placeholders_may_stay(prepare: Prepare, tmp_path: Path) -> None:
    given = {"nobody_knows": {"path": str(write(tmp_path / "m.jsonl", MATH)), "template": "dapo"}}
    source = write(tmp_path / "rows.jsonl", [BLEND[4], *BLEND[2:3]])
    assert prepare(source, valid_ratio=0, placeholder_datasets=given).facts["resolved_placeholders"] == 1
    assert read(tmp_path / "out")["train"][0]["question"] == "What is 1 + 1?"
    facts = prepare(source, valid_ratio=0, resolve_hf_placeholders=False).facts
    assert facts["removed"] == {"placeholder": 1}


@pytest.mark.parametrize(
    ("cfg", "name", "text"),
    [
        ({"row_fromat": "chat"}, "config_invalid", "row_fromat: unknown key; did you mean 'row_format'?"),
        ({"row_format": "dpo"}, "config_invalid", "row_format: 'dpo' is not one of"),
        ({"valid_ratio": 0.6, "test_ratio": 0.5}, "config_invalid", "leave nothing for training"),
        ({"num_shards_per_split": 0}, "config_invalid", "num_shards_per_split: 0"),
        ({"placeholder_datasets": {"x": {"template": "dapo"}}}, "config_invalid", "placeholder_datasets.x.path"),
        ({"default_agent_ref": {"type": "t"}}, "config_missing", "default_agent_ref.name"),
    ],
)
def test_a_wrong_setting_is_named(prepare: Prepare, tmp_path: Path, cfg: Row, name: str, text: str) -> None:
    done = prepare(write(tmp_path / "rows.jsonl", pairs(3)), **cfg)
    assert (done.status, done.error["name"]) == (3, name)
    assert text in done.error["message"]


@pytest.mark.parametrize(
    ("files", "name", "text"),
    [
        ({"train_test.jsonl": pairs(3)}, "split_names_do_not_match_rl_config", "says both test and train"),
        ({"test.jsonl": pairs(3)}, "split_names_do_not_match_rl_config", "has test, and nothing to train on"),
        ({"a.jsonl": [{"text": "x", "id": 1}]}, "unknown_row_format", "rows have text, id"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(
    prepare: Prepare, tmp_path: Path, files: dict[str, list[Row]], name: str, text: str
) -> None:
    for file, rows in files.items():
        write(tmp_path / "data" / file, rows)
    done = prepare(tmp_path / "data")
    assert (done.status, done.error["name"]) == (3, name)
    assert text in done.error["message"]


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_new_files_cost_only_their_own_work_and_other_settings_leave_nothing_behind(
    prepare: Prepare, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for i in range(8):
        write(data / f"{i}.jsonl", pairs(300, i * 1000))
    prepare(data, num_shards_per_split=4)
    before = {p.name: p.stat().st_ino for p in out.rglob("*_shard_*.jsonl")}
    write(data / "8.jsonl", pairs(300, 8000))
    done = prepare(data, num_shards_per_split=4)
    after = {p.name: p.stat().st_ino for p in out.rglob("*_shard_*.jsonl")}
    assert before.items() < after.items()
    assert done.facts["rows"] == 2700
    rows = read(out)
    assert numbers(rows["train"] + rows["val"]) == sorted(i * 1000 + n for i in range(9) for n in range(300))
    prepare(data, num_shards_per_split=4, valid_ratio=0.5)
    assert len(list((out / "runs").iterdir())) == 1
    assert training_jsonl.validate(out)["rows"] == 2700


def test_a_run_killed_at_any_instant_goes_on_to_the_same_bytes(tmp_path: Path, data_python: str) -> None:
    rows = ({**row, "chosen": "word " * 60 + str(row["n"])} for row in pairs(40_000))
    source = write(tmp_path / "rows.jsonl", rows)
    cfg = {"blend_path": str(source), "num_shards_per_split": 12, "workers": 2}

    def command(folder: Path, out: Path) -> tuple[list[str], dict[str, str]]:
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps({**cfg, "output_dir": str(out)}))
        messages = str(folder / "messages.jsonl")
        return [data_python, str(STEP / "step.py"), "--config", str(folder / "config.yaml")], {
            **os.environ, "NEMOTRON_MESSAGES": messages,
        }  # fmt: skip

    calm = tmp_path / "calm"
    args, env = command(tmp_path / "c", calm)
    started = time.monotonic()
    subprocess.run(args, env=env, check=True)
    seconds = time.monotonic() - started
    assert any(b"completed" in data for name, data in content(calm).items() if "receipts" in name)
    seed = random.Random(5)
    for attempt in range(3):
        out = tmp_path / f"out{attempt}"
        args, env = command(tmp_path / f"r{attempt}", out)
        for _ in range(2):
            process = subprocess.Popen(args, env=env, start_new_session=True)
            time.sleep(seed.uniform(0.3, seconds * 0.9))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(args, env=env, check=True)
        assert content(out) == content(calm)
