"""data_prep/pretrain_prep killed again and again, and run again after something changed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, Outcome, run_payload

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"


def text(number: int) -> str:
    chosen = random.Random(number)
    return f"Row {number}: " + " ".join(chosen.choice(("the", "clock", "of", "MDC", "tower")) for _ in range(60))


def write(file: Path, first: int, last: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text(i)}) + "\n" for i in range(first, last)))


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` with its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def prep(tmp_path: Path, data_python: str) -> Any:
    """Run the step; ``prep.start`` only starts it and hands over the process."""

    class Prep:
        input = tmp_path / "in"

        def config(self, **cfg: Any) -> dict[str, Any]:
            tokenizer = {"model": str(TOKENIZER), "add_eos": True}
            base = {"blend_path": str(self.input), "output_dir": str(tmp_path / "out"), "num_shards": 8}
            return {**base, "tokenizer": tokenizer, **{k: str(v) if isinstance(v, Path) else v for k, v in cfg.items()}}

        def __call__(self, env: dict[str, str] | None = None, **cfg: Any) -> Outcome:
            return run_payload(STEP, self.config(**cfg), tmp_path / "run", data_python, **(env or {}))

        def start(self, **cfg: Any) -> subprocess.Popen[str]:
            file = tmp_path / "started.yaml"
            file.write_text(json.dumps(self.config(**cfg)))
            env = {k: v for k, v in os.environ.items() if k != "NEMOTRON_MESSAGES"}
            return subprocess.Popen(
                [data_python, str(STEP / "step.py"), "--config", str(file)],
                env=env,
                start_new_session=True,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    return Prep()


def of_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(pid))
    return found


def gone(session: int) -> bool:
    deadline = time.monotonic() + 10
    while of_session(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not of_session(session)


@pytest.mark.parametrize("workers", [1, 2])
def test_25_kills_at_random_instants_change_no_byte(prep: Any, tmp_path: Path, workers: int) -> None:
    for part in range(3):
        write(prep.input / f"{part}.jsonl", part * 200, part * 200 + 200)
    started = time.monotonic()
    assert prep(output_dir=tmp_path / "whole", workers=workers).status == 0
    took = time.monotonic() - started
    expected = tree(tmp_path / "whole")
    chosen, out = random.Random(workers), tmp_path / "out"
    kills = 0
    while kills < 25:
        process = prep.start(workers=workers)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chosen.uniform(0.2, 0.8) * took)
        if process.poll() is None:
            process.kill()
            kills += 1
        status = process.wait()
        assert gone(process.pid), "a worker outlived the process that started it"
        assert process.stderr is not None
        process.stderr.close()
        if status == 0:
            assert tree(out) == expected
            shutil.rmtree(out)
    assert prep(workers=workers).status == 0
    assert tree(out) == expected


def test_new_files_cost_their_own_work_and_move_no_row_to_another_split(prep: Any, tmp_path: Path) -> None:
    for part in range(3):
        write(prep.input / f"{part}.jsonl", part * 100, part * 100 + 100)
    before = prep(output_dir=tmp_path / "first")
    blend = json.loads((tmp_path / "first/blend.json").read_text())
    held = {s: [(tmp_path / "first" / f"{p}.bin").read_bytes() for p in blend[s][1::2]] for s in ("valid", "test")}
    write(prep.input / "more/3.jsonl", 300, 350)
    outcome = prep(output_dir=tmp_path / "second", reuse=tmp_path / "first")
    assert outcome.status == 0, outcome.stderr
    assert outcome.facts["rows"] == 350
    assert outcome.facts["made_tokens"] == outcome.facts["tokens"] - before.facts["tokens"]
    after = json.loads((tmp_path / "second/blend.json").read_text())
    found = {s: [(tmp_path / "second" / f"{p}.bin").read_bytes() for p in after[s][1::2]] for s in ("valid", "test")}
    assert found == held
    again = prep(output_dir=tmp_path / "second")
    assert again.facts["made_tokens"] == 0 and again.facts["rows"] == 350


@pytest.mark.parametrize("change", [{"max_doc_tokens": 20}, {"dtype": "uint16"}, {"min_doc_chars": 3}])
def test_a_setting_that_changes_tokens_makes_all_anew(prep: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    write(prep.input / "a.jsonl", 0, 100)
    prep()
    outcome = prep(**change)
    assert outcome.facts["made_tokens"] == outcome.facts["tokens"]


def test_another_tokenizer_makes_all_anew(prep: Any, tmp_path: Path) -> None:
    write(prep.input / "a.jsonl", 0, 100)
    prep()
    model = json.loads((TOKENIZER / "tokenizer.json").read_text())
    model["added_tokens"][0]["content"] = "<|other|>"
    model["model"]["vocab"]["<|other|>"] = model["model"]["vocab"].pop("<|endoftext|>", 0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(model))
    (tmp_path / "model/tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    outcome = prep(tokenizer={"model": str(tmp_path / "model"), "add_eos": True})
    assert outcome.status == 0, outcome.stderr
    assert outcome.facts["made_tokens"] == outcome.facts["tokens"]


def test_an_input_that_changed_is_made_anew_and_the_old_plan_is_removed(prep: Any, tmp_path: Path) -> None:
    write(prep.input / "a.jsonl", 0, 100)
    prep()
    write(prep.input / "a.jsonl", 0, 120)
    outcome = prep()
    assert outcome.facts["rows"] == 120
    assert len(list((tmp_path / "out").rglob("plan.json"))) == 1


def test_force_makes_all_anew(prep: Any) -> None:
    write(prep.input / "a.jsonl", 0, 100)
    prep()
    outcome = prep(force=True)
    assert outcome.facts["made_tokens"] == outcome.facts["tokens"]


@pytest.mark.parametrize("cfg", [{"workers": 1}, {"workers": 2}, {"launch": "ray", "workers": 2}])
def test_a_bad_row_is_told_alike_wherever_the_shard_is_made(prep: Any, cfg: dict[str, Any]) -> None:
    write(prep.input / "a.jsonl", 0, 100)
    with (prep.input / "a.jsonl").open("a") as out:
        out.write("{broken\n")
    outcome = prep(on_bad_row="fail", **cfg)
    assert outcome.status == 3, outcome.stderr
    assert outcome.error["name"] == "bad_row" and f"{prep.input}/a.jsonl:101: not_json" in outcome.error["message"]
    assert "Traceback" not in outcome.stderr


def test_a_worker_that_is_killed_is_told_and_the_next_run_goes_on(prep: Any, tmp_path: Path) -> None:
    write(prep.input / "a.jsonl", 0, 6000)
    process = prep.start(workers=2, num_shards=40)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("receipts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [pid for pid in of_session(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 3 and "memory" in told and "Traceback" not in told
    assert prep(workers=2, num_shards=40).facts["rows"] == 6000
