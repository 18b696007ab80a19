"""data_prep/sft_packing as a process: right token for token, nothing lost, real splits, runs that survive a kill."""

from __future__ import annotations

import hashlib
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

import packed_reader
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from payload_run import REPOSITORY, Outcome, run_payload

from nemotron_dagster.artifacts.types import _tokenizer, packed_parquet
from nemotron_dagster.artifacts.types._problems import Problems

STEP = REPOSITORY / "steps/data_prep/sft_packing"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
NANO3 = REPOSITORY / "steps/_runtime/data_prep/chat_templates/nano3.jinja"
PLAIN = (  # no generation blocks: answers are found by rendering
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKS = ["<think>\n", "<think></think>"]
ALL_TRAIN = {"train_ratio": 1.0, "valid_ratio": 0.0, "test_ratio": 0.0}
Row = dict[str, Any]
Prepare = Callable[..., Outcome]


@pytest.fixture
def prepare(tmp_path: Path, data_python: str) -> Prepare:
    def run(source: Path, **cfg: Any) -> Outcome:
        cfg = {
            "blend_path": str(source), "output_dir": str(tmp_path / "out"), "tokenizer": {"model": str(TOKENIZER)},
            "num_shards": 1, "pack_size": 512, "workers": 1, **cfg,
        }  # fmt: skip
        return run_payload(STEP, cfg, tmp_path / "run", data_python)

    return run


@pytest.fixture
def slowly(data_python: str) -> Callable[..., Any]:
    def ask(**request: Any) -> Any:
        request = {"tokenizer": str(TOKENIZER / "tokenizer.json"), **request}
        command = [data_python, str(Path(__file__).with_name("slow_chats.py"))]
        done = subprocess.run(command, input=json.dumps(request), check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def write(file: Path, rows: Iterable[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def chat(*turns: str, **more: Any) -> Row:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)], **more}


def numbered(count: int, start: int = 0) -> list[Row]:
    return [
        chat(f"What is number {n}?", f"It is {n}, " + "said again, " * (n % 7)) for n in range(start, start + count)
    ]


WORDS = (
    "yes",
    "a longer answer,",
    "\n\nwith lines",
    "  two  spaces ",
    "ärger 😀",
    '"<b>"',
    "1 + 1 = 2",
    "\u2028",
    "()",
)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "description": " first "}, "b": {"enum": ["x", "y"], "default": [1]}},
    "required": ["a"],
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}},
         {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
         ]  # fmt: skip


def mixed(count: int, seed: int) -> list[Row]:
    """Chats with and without system prompt, tools, reasoning; of one turn or several."""
    rng = random.Random(seed)

    def words() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    rows = []
    for _ in range(count):
        thinking, calling = rng.random() < 0.4, rng.random() < 0.4
        messages: list[Row] = [{"role": "system", "content": words()}] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": words()})
            if calling and rng.random() < 0.7:
                arguments: Any = {"a": rng.randint(0, 99), "b": words()}
                called = {"name": "add", "arguments": json.dumps(arguments) if rng.random() < 0.5 else arguments}
                calls = [{"id": "1", "type": "function", "function": called}] * rng.randint(1, 2)
                messages.append({"role": "assistant", "content": rng.choice([None, "", words()]), "tool_calls": calls})
                if thinking and rng.random() < 0.7:
                    messages[-1]["reasoning_content"] = words()
                messages += [{"role": "tool", "content": words()} for _ in calls]
            messages.append({"role": "assistant", "content": words()})
            if thinking and rng.random() < 0.7:
                messages[-1]["reasoning_content"] = words()
        rows.append({"messages": messages, **({"tools": TOOLS} if calling else {})})
    return rows


@pytest.mark.parametrize(
    ("template", "prompts", "end"),
    [("nano3", THINKS, "<|im_end|>\n"), ("tokenizer", [], "<|im_end|>"), (PLAIN, [], "<|im_end|>\n")],
    ids=["nano3", "own", "unmarked"],
)
def test_tokens_and_masks_are_those_of_a_slow_implementation(
    prepare: Prepare, slowly: Callable[..., Any], tmp_path: Path, template: str, prompts: list[str], end: str
) -> None:
    rows = mixed(150, 11)
    own = json.loads((TOKENIZER / "tokenizer_config.json").read_text())["chat_template"]
    text = {"nano3": NANO3.read_text(), "tokenizer": own}.get(template, template)
    told = slowly(rows=rows, template=text, prompts=prompts, end=end, limit=1024)
    expected = [tuple(s) for of_row in told for s in of_row]
    done = prepare(
        write(tmp_path / "rows.jsonl", rows),
        chat_template=template,
        algorithm="concatenative",
        pack_size=1024,
        **ALL_TRAIN,
    )
    assert done.status == 0, done.stderr
    assert packed_reader.sequences(tmp_path / "out/splits/train") == expected
    assert done.facts["sequences"] == len(expected)
    assert done.facts["tokens"] == sum(len(ids) for ids, _ in expected)
    assert done.facts["trained_tokens"] == sum(sum(mask) for _, mask in expected)


def test_a_tokenizer_that_begins_texts_with_a_space_gets_whole_conversations(
    prepare: Prepare, slowly: Callable[..., Any], tmp_path: Path
) -> None:
    data = json.loads((TOKENIZER / "tokenizer.json").read_text())
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    (tmp_path / "spaced").mkdir()
    (tmp_path / "spaced/tokenizer.json").write_text(json.dumps(data))
    rows = mixed(80, 12)
    file = str(tmp_path / "spaced/tokenizer.json")
    asked = {"template": NANO3.read_text(), "prompts": THINKS, "end": "<|im_end|>\n", "limit": 1024}
    found = slowly(rows=rows, whole=True, tokenizer=file, **asked)
    cfg = {"tokenizer": str(tmp_path / "spaced"), "algorithm": "concatenative", "pack_size": 1024, **ALL_TRAIN}
    done = prepare(write(tmp_path / "rows.jsonl", rows), **cfg)
    assert done.status == 0, done.stderr
    assert packed_reader.sequences(tmp_path / "out/splits/train") == [tuple(s) for row in found for s in row]


def test_a_trainer_learns_exactly_what_the_assistant_said(
    prepare: Prepare, slowly: Callable[..., Any], tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows: list[Row] = [
        chat("one?", "First.", "two?", "Second."),
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "Third.", "reasoning_content": "Thought."},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "", "reasoning_content": "Plan.", "tool_calls": [call]},
                {"role": "tool", "content": "told"},
                {"role": "assistant", "content": "Fourth.", "reasoning_content": "Seen."},
            ],
            "tools": TOOLS,
        },
    ]
    prepare(write(tmp_path / "rows.jsonl", rows), algorithm="concatenative", pack_size=2048, **ALL_TRAIN)
    shown = []
    for example in packed_reader.examples(tmp_path / "out/splits/train"):
        shown.append([label for label, on in zip(example.labels, example.mask, strict=True) if on])
    called = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n"
    assert "".join(slowly(decode=shown)) == (
        "First.<|im_end|>\nSecond.<|im_end|>\n"
        "Thought.\n</think>\nThird.<|im_end|>\n"
        f"Plan.\n</think>\n{called}<|im_end|>\nSeen.\n</think>\nFourth.<|im_end|>\n"
    )


def test_rows_are_in_exactly_one_split_and_links_are_exactly_what_exists(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", numbered(300))
    ratios = {"train_ratio": 0.6, "valid_ratio": 0.2, "test_ratio": 0.2}
    done = prepare(source, num_shards=10, **ratios)
    out = tmp_path / "out"
    found = {s: packed_reader.sequences(out / "splits" / s) for s in ("train", "valid", "test")}
    texts = {s: {tuple(ids) for ids, _ in rows} for s, rows in found.items()}
    assert sum(map(len, found.values())) == sum(map(len, texts.values())) == len(set().union(*texts.values())) == 300
    assert {s: about["shards"] for s, about in done.facts["splits"].items()} == {"train": 6, "valid": 2, "test": 2}
    assert done.facts["same_rows_in_splits"] == {"valid_in_train": 0, "test_in_train": 0, "test_in_valid": 0}
    facts = packed_parquet.validate(out)
    for key in ("sequences", "tokens", "trained_tokens"):
        assert facts[key] == done.facts[key]
    assert facts["rows"] == done.facts["packs"]
    done = prepare(source, num_shards=4, valid_shards=1, test_shards=0)
    links = sorted(p for p in (out / "splits").rglob("*") if p.is_symlink())
    assert len(links) == 4
    assert all(not os.readlink(p).startswith("/") and p.exists() for p in links)
    shutil.move(out, tmp_path / "moved")
    assert packed_parquet.validate(tmp_path / "moved")["sequences"] == 300


def test_rows_that_the_source_repeats_across_splits_are_reported(prepare: Prepare, tmp_path: Path) -> None:
    for split, rows in (("train", numbered(30)), ("valid", numbered(5, 28)), ("test", numbered(3, 32))):
        write(tmp_path / f"{split}.jsonl", rows)
    blend = {s: [{"name": s, "path": f"{s}.jsonl"}] for s in ("train", "valid", "test")}
    (tmp_path / "blend.json").write_text(json.dumps(blend))
    facts = prepare(tmp_path / "blend.json").facts
    assert facts["same_rows_in_splits"] == {"valid_in_train": 2, "test_in_train": 0, "test_in_valid": 1}


def test_facts_name_tokenizer_and_template_as_checkpoints_do(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", numbered(5))
    facts = prepare(source, chat_template="tokenizer").facts
    problems = Problems()
    model = _tokenizer.read_tokenizer(TOKENIZER, problems)
    assert model is not None
    assert facts["tokenizer_fingerprint"] == model.fingerprint
    template = _tokenizer.read_template(TOKENIZER, problems)
    assert template is not None
    own = hashlib.sha256(template.encode()).hexdigest()
    assert facts["chat_template_fingerprint"] == own
    assert prepare(source).facts["chat_template_fingerprint"] != own
    folder = tmp_path / "same"
    shutil.copytree(TOKENIZER, folder)
    spelled = NANO3.read_text().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    (folder / "chat_template.jinja").write_text(spelled)
    facts = prepare(source, tokenizer=str(folder)).facts  # nano3 writes what the model's own template writes
    assert facts["chat_template_fingerprint"] == hashlib.sha256(spelled.encode()).hexdigest()


def test_parquet_says_what_jsonl_says(prepare: Prepare, tmp_path: Path) -> None:
    rows = [row for row in mixed(60, 3) if "tools" not in row]
    cfg = {"algorithm": "concatenative", **ALL_TRAIN}
    prepare(write(tmp_path / "rows.jsonl", rows), **cfg)
    expected = packed_reader.packs(tmp_path / "out/splits/train")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=7)
    prepare(tmp_path / "rows.parquet", **cfg)
    assert packed_reader.packs(tmp_path / "out/splits/train") == expected


BAD: list[tuple[str, str]] = [
    ("not_json", '{"messages": ['),
    ("no_messages", '{"text": "x"}'),
    ("no_messages", '{"messages": []}'),
    ("bad_message", '{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}'),
    ("bad_message", '{"messages": ["hi"]}'),
    ("bad_tools", json.dumps(chat("q", "a", tools="[not json"))),
    ("bad_tool_call", json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]})),
    ("tool_call_without_tools", json.dumps(chat("q", "<tool_call>\n<function=f>\n</function>\n</tool_call>"))),
    ("no_trainable_turn", json.dumps(chat("only a question"))),
]


def test_rejected_rows_are_counted_by_reason_with_their_lines_or_stop_the_run(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", numbered(20))
    source.write_text(source.read_text() + "\n".join(line for _, line in BAD) + "\n")
    done = prepare(source, **ALL_TRAIN)
    expected: dict[str, list[str]] = {}
    for n, (reason, _) in enumerate(BAD, 21):
        expected.setdefault(reason, []).append(f"{source}:{n}")
    report = json.loads((tmp_path / "out/packing.json").read_text())
    assert {r: [e["row"] for e in about["examples"]] for r, about in report["rejected"].items()} == expected
    assert done.facts["rejected"] == {reason: len(at) for reason, at in expected.items()}
    assert done.facts["sequences"] == 20
    done = prepare(source, on_bad_row="fail")
    assert done.status == 3
    assert f"{source}:21" in done.error["message"]
    assert "Traceback" not in done.stderr


def test_a_template_that_refuses_a_row_and_rows_of_another_stage_are_counted(prepare: Prepare, tmp_path: Path) -> None:
    rows = [{**row, "used_in": ["sft"] if n % 3 else "rl, dpo"} for n, row in enumerate(numbered(30))]
    picky = "{% if '7' in messages[0]['content'] %}{{ raise_exception('no sevens') }}{% endif %}" + PLAIN
    facts = prepare(write(tmp_path / "rows.jsonl", rows), used_in_filter="sft", chat_template=picky).facts
    sevens = sum(n % 3 > 0 and "7" in str(n) for n in range(30))
    assert facts["rejected"] == {"template_error": sevens, "used_in_filter": 10}
    assert facts["sequences"] == 20 - sevens


def test_long_conversations_are_cut_left_out_or_split_and_counted(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [*numbered(10), chat("q?", "word " * 400)])
    cfg = {"algorithm": "concatenative", "pack_size": 256, **ALL_TRAIN}
    found = {}
    for how in ("truncate", "drop", "split"):
        facts = prepare(source, long_sequences=how, **cfg).facts
        assert facts["over_long"] == 1
        found[how] = packed_reader.sequences(tmp_path / "out/splits/train")
    assert found["drop"] == found["truncate"][:10]
    assert len(found["truncate"][10][0]) == 256
    pieces = found["split"][10:]
    assert len(pieces) > 1
    assert pieces[0] == found["truncate"][10]
    assert all(mask[-1] == 0 for _, mask in pieces)
    full = prepare(source, **{**cfg, "pack_size": 4096}).facts
    assert full["over_long"] == 0
    whole = packed_reader.sequences(tmp_path / "out/splits/train")[10]
    assert [t for ids, _ in pieces for t in ids] == whole[0]


def test_padding_for_context_parallelism_changes_no_token_that_counts(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", numbered(60))
    cfg = {"algorithm": "best_fit_decreasing", **ALL_TRAIN}
    prepare(source, **cfg)
    plain = sorted(packed_reader.sequences(tmp_path / "out/splits/train"))
    facts = prepare(source, pad_seq_to_multiple=16, **cfg).facts
    padded = sorted(packed_reader.sequences(tmp_path / "out/splits/train"))
    assert all((len(ids) - 1) % 16 == 0 for ids, _ in padded)
    assert sorted((i[: len(p)], m[: len(p)]) for (i, m), (p, _) in zip(padded, plain, strict=True)) == plain
    assert all(not any(m[len(p) :]) for (_, m), (p, _) in zip(padded, plain, strict=True))
    assert facts["padding_tokens"] == sum(len(i) for i, _ in padded) - sum(len(i) for i, _ in plain)
    assert packed_parquet.validate(tmp_path / "out")["pack_size"] <= 512


@pytest.mark.parametrize(
    ("cfg", "text"),
    [
        ({"pack_sise": 512}, "did you mean 'pack_size'"),
        ({"pack_size": 0}, "pack_size: 0"),
        ({"algorithm": "worst_fit"}, "algorithm: 'worst_fit'"),
        ({"train_ratio": 0.5}, "ratio"),
        ({"chat_template": "{% for %}"}, "chat_template {% for %}"),
        ({"chat_template": "/nowhere.jinja"}, "/nowhere.jinja"),
        ({"tokenizer": {"model": "/nowhere"}}, "/nowhere"),
        ({"pad_seq_to_multiple": 512}, "pad_seq_to_multiple: 512"),
        ({"template_date": "yesterday"}, "template_date: 'yesterday'"),
        ({"blend_path": "/nowhere/chats.jsonl"}, "/nowhere/chats.jsonl"),
        ({"stratify": True}, "stratify"),
        ({"messages_field": "chat"}, "no_messages 3"),
    ],
)
def test_what_a_person_must_mend_is_named(prepare: Prepare, tmp_path: Path, cfg: Row, text: str) -> None:
    done = prepare(write(tmp_path / "rows.jsonl", numbered(3)), **cfg)
    assert done.status == 3, done.stderr
    assert text in done.error["message"]
    assert done.error["recovery"] or "did you mean" in text or "not one of" in done.error["message"]
    assert "Traceback" not in done.stderr


def test_a_tokenizer_without_a_template_cannot_lend_one(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(TOKENIZER / "tokenizer.json", tmp_path / "bare")
    source = write(tmp_path / "rows.jsonl", numbered(3))
    error = prepare(source, tokenizer=str(tmp_path / "bare"), chat_template="tokenizer").error
    assert error["name"] == "chat_template_missing"


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_the_same_run_again_keeps_its_shards_and_makes_a_damaged_one_anew(prepare: Prepare, tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", numbered(200)), tmp_path / "out"
    prepare(source, num_shards=4)
    shards = sorted((out / "runs").rglob("shard_*.parquet"))
    before, times = content(out), [p.stat().st_mtime_ns for p in shards]
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    shards[2].unlink()
    prepare(source, num_shards=4)
    assert content(out) == before
    assert [p.stat().st_mtime_ns == t for p, t in zip(shards, times, strict=True)] == [True, False, False, True]


def test_a_run_killed_at_any_instant_goes_on_to_the_same_bytes(tmp_path: Path, data_python: str) -> None:
    source = write(tmp_path / "rows.jsonl", mixed(2000, 4))
    cfg = {
        "blend_path": str(source), "num_shards": 8, "workers": 2, "tokenizer": str(TOKENIZER),
        "algorithm": "best_fit_decreasing", "train_ratio": 0.5, "valid_ratio": 0.25, "test_ratio": 0.25,
    }  # fmt: skip

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
    seed = random.Random(9)
    for attempt in range(2):
        out = tmp_path / f"out{attempt}"
        args, env = command(tmp_path / f"r{attempt}", out)
        for _ in range(5):
            process = subprocess.Popen(args, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
            time.sleep(seed.uniform(0.2, seconds * 0.9))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(args, env=env, check=True)
        assert content(out) == content(calm)


def test_importing_the_step_loads_no_heavy_library(data_python: str) -> None:
    code = (
        "import sys; from _runtime.data_prep import sft\n"
        "heavy = {'torch', 'transformers', 'datasets', 'ray', 'pandas', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "steps")}
    assert subprocess.run([data_python, "-c", code], env=env, check=False).returncode == 0
