"""All three steps of data preparation on input that is damaged, empty or in another encoding, and on a full disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, Outcome, run_payload

TOKENIZER = {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")}
Row = Callable[[int, str], dict[str, Any]]


def chat(i: int, text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{text} {i}"}]}


#: Step -> its rows, its settings, what its output files are called.
STEPS: dict[str, tuple[Row, dict[str, Any], str]] = {
    "pretrain_prep": (lambda i, t: {"text": f"{t} {i}"}, {"tokenizer": TOKENIZER, "num_shards": 4}, "shard_*.bin"),
    "sft_packing": (
        chat, {"tokenizer": TOKENIZER, "num_shards": 4, "pack_size": 4096}, "runs/**/shard_*.parquet",
    ),
    "rl_prep": (
        lambda i, t: {"prompt": f"{i}?", "chosen": f"{t} {i}", "rejected": "0"},
        {"num_shards_per_split": 4, "valid_ratio": 0.2}, "*_shard_*.jsonl",
    ),
}  # fmt: skip
every_step = pytest.mark.parametrize("name", STEPS)


@pytest.fixture
def prep(tmp_path: Path, data_python: str, name: str) -> Any:
    """Run the step on ``in.jsonl``."""

    class Prep:
        file, out = tmp_path / "in.jsonl", tmp_path / "out"
        row, settings, files = STEPS[name]
        step = REPOSITORY / "steps/data_prep" / name

        def config(self, **cfg: Any) -> dict[str, Any]:
            base = {"blend_path": str(self.file), "output_dir": str(self.out), "workers": 1}
            return {**base, **self.settings, **cfg}

        def lines(self, count: int, text: str = "the clock strikes") -> list[bytes]:
            return [json.dumps(type(self).row(i, text)).encode() for i in range(count)]

        def write(self, lines: list[bytes]) -> None:
            self.file.write_bytes(b"".join(line + b"\n" for line in lines))

        def __call__(self, **cfg: Any) -> Outcome:
            return run_payload(self.step, self.config(**cfg), tmp_path / "run", data_python)

        def content(self) -> dict[str, bytes]:
            return {str(p): p.read_bytes() for p in sorted(self.out.rglob("*")) if p.is_file()}

    return Prep()


@every_step
def test_lines_that_are_cut_off_or_in_another_encoding_are_counted_and_their_neighbours_kept(prep: Any) -> None:
    lines = prep.lines(60)
    lines[20] = lines[20][:-9]
    lines[40] = prep.lines(1, "Glocke schlägt")[0].decode("unicode_escape").encode("latin-1")
    lines[41] = lines[41][: len(lines[41]) // 2]
    prep.write(lines)
    done = prep()
    assert done.status == 0, done.stderr
    assert done.facts["removed"] == {"not_json": 2, "not_utf8": 1} and done.facts["rows"] == 57
    told = done.facts["rejected"]
    assert {e["row"] for e in told["not_json"]["examples"]} == {f"{prep.file}:21", f"{prep.file}:42"}
    assert [e["row"] for e in told["not_utf8"]["examples"]] == [f"{prep.file}:41"]


@every_step
@pytest.mark.parametrize("content", [b"", b"\n \n\n", "utf-16"])
def test_a_file_without_rows_or_in_utf_16_is_named(prep: Any, content: bytes | str) -> None:
    prep.file.write_bytes(b"\n".join(prep.lines(20)).decode().encode(content) if isinstance(content, str) else content)
    done = prep()
    assert done.status == 3 and "Traceback" not in done.stderr
    assert str(prep.file) in done.error["message"] and done.error["recovery"]
    assert ("UTF-16" in done.error["message"]) == (content == "utf-16")
    assert not list(prep.out.glob("*.json")) and not (prep.out / "splits").exists()


@every_step
def test_output_that_is_deleted_or_cut_off_between_runs_is_made_again_the_same(prep: Any) -> None:
    prep.write(prep.lines(200))
    assert prep().status == 0
    whole = prep.content()
    first, second, *others = sorted(prep.out.rglob(prep.files))
    kept = {p: p.stat().st_ino for p in others}
    first.unlink()
    os.truncate(second, second.stat().st_size // 2)
    done = prep()
    assert done.status == 0, done.stderr
    assert prep.content() == whole
    touched = {p for p, inode in kept.items() if p.stat().st_ino != inode}
    assert len(touched) <= 2  # of rl_prep a shard has a file per split, and is made as a whole


@every_step
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    prep: Any, tmp_path: Path, data_python: str
) -> None:
    prep.write(prep.lines(400, "".join(chr(33 + i % 90) for i in range(997))))
    assert prep().status == 0
    calm = {Path(name).name: data for name, data in prep.content().items()}
    largest = max(len(p.read_bytes()) for p in prep.out.rglob(prep.files))
    prep.out = tmp_path / "full"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))

    config, messages = tmp_path / "full.yaml", tmp_path / "full.messages"
    config.write_text(json.dumps(prep.config()))
    command = [data_python, str(prep.step / "step.py"), "--config", str(config)]
    env = {**os.environ, "NEMOTRON_MESSAGES": str(messages)}
    done = subprocess.run(command, env=env, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    error = json.loads(messages.read_text().splitlines()[-1])
    assert error["name"] == "disk_full" and str(prep.out) in error["message"]
    assert "finished shards are kept" in error["recovery"]
    assert not list(prep.out.rglob("*.parquet")) or all(p.stat().st_size for p in prep.out.rglob("*.parquet"))
    assert prep().status == 0
    assert {Path(name).name: data for name, data in prep.content().items()} == calm
