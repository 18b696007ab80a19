"""Data preparation killed at fifty instants of its work, and what a run that goes on does not do twice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS
from payload_run import REPOSITORY

TOKENIZER = {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")}
KILL_OFTEN = Path(__file__).with_name("kill_often.py")


def chat(i: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"{i} is " + "a number " * (i % 30)}
    return {"messages": [{"role": "user", "content": f"{i}?"}, answer]}


def pair(i: int) -> dict[str, Any]:
    return {"prompt": f"Question {i}?", "chosen": f"yes {i} " * (i % 50), "rejected": f"no {i}"}


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft": (chat, {"tokenizer": TOKENIZER, "num_shards": 12, "pack_size": 512, "algorithm": "best_fit_decreasing"}),
    "rl": (pair, {"num_shards_per_split": 12, "valid_ratio": 0.2}),
}


@pytest.mark.parametrize("step", CASES)
def test_50_kills_at_random_instants_of_the_work_change_no_byte(step: str, tmp_path: Path, data_python: str) -> None:
    row, cfg = CASES[step]
    data = tmp_path / "data"
    data.mkdir()
    for part in range(3):
        lines = (json.dumps(row(i)) + "\n" for i in range(part * 1000, part * 1000 + (80 if step == "sft" else 1000)))
        (data / f"{part}.jsonl").write_text("".join(lines))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"blend_path": str(data), "output_dir": str(tmp_path / "out"), "workers": 1, **cfg}))
    command = [data_python, str(KILL_OFTEN), step, str(config), "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 50 and told["halfway"] >= 10


HASHED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from _runtime.data_prep import pretrain, shards
from _runtime.data_prep.pretrain_options import read_options
read = []
def hashed(file, once=shards.hashed):
    read.append(file)
    return once(file)
shards.hashed = hashed
pretrain.prepare(read_options(json.loads(Path(sys.argv[2]).read_text())))
Path(sys.argv[3]).write_text(json.dumps(read))
"""


def test_a_run_that_goes_on_reads_each_finished_shard_once(tmp_path: Path, data_python: str) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{i} is a number"}) + "\n" for i in range(200)))

    def files_read(out: str, **cfg: Any) -> list[str]:
        base = {"blend_path": f"{tmp_path}/a.jsonl", "output_dir": f"{tmp_path}/{out}", "num_shards": 4, "workers": 1}
        (tmp_path / "config.json").write_text(json.dumps({**base, "tokenizer": TOKENIZER, **cfg}))
        command = [data_python, "-c", HASHED, str(STEPS), f"{tmp_path}/config.json", f"{tmp_path}/read.json"]
        subprocess.run(command, check=True, capture_output=True)
        return list(json.loads((tmp_path / "read.json").read_text()))

    files_read("out")
    again = files_read("out")
    assert len(again) == len(set(again)) == 12  # .bin, .idx and hashes of 4 shards
    reused = files_read("other", reuse=f"{tmp_path}/out")
    assert len(reused) == len(set(reused)) == 12 and all(f.startswith(f"{tmp_path}/other/") for f in reused)
