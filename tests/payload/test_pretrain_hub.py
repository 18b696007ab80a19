"""data_prep/pretrain_prep with datasets and tokenizers of a Hub: one that the test serves, then only its cache."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, Outcome, run_payload

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows(word: str, count: int) -> bytes:
    return "".join(json.dumps({"text": f"{word} {i}"}) + "\n" for i in range(count)).encode()


REPOS: dict[str, dict[str, bytes]] = {
    "datasets/org/words": {
        "README.md": b"# words",
        "easy/train-00000.jsonl": rows("easy", 40),
        "easy/train-00001.jsonl.gz": gzip.compress(rows("more", 20), mtime=0),
        "easy/test-00000.jsonl": rows("test", 9),
        "hard/train-00000.jsonl": rows("hard", 7),
    },
    "models/org/tiny": {n: (TOKENIZER / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")},
}


class Hub(BaseHTTPRequestHandler):
    """The calls that huggingface_hub makes to list a repository and to fetch a file."""

    def do_GET(self) -> None:
        kind, repo, rest = self._repo()
        files = REPOS.get(f"{kind}/{repo}")
        if files is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            data = files.get("/".join(rest[2:]))
            if data is None:
                return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha1(data).hexdigest()
            return self._answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        siblings = [{"rfilename": n, "size": len(d), "blobId": hashlib.sha1(d).hexdigest()} for n, d in files.items()]
        tree = [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in files.items()
        ]
        about = tree if "tree" in rest else {"id": repo, "sha": COMMIT, "siblings": siblings}
        return self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def _repo(self) -> tuple[str, str, list[str]]:
        parts = self.path.split("?")[0].strip("/").split("/")
        parts = parts[1:] if parts[0] == "api" else parts
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        return kind, "/".join(parts[:2]), parts[2:]

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def prep(tmp_path: Path, data_python: str, hub: str) -> Any:
    def run(offline: bool = False, out: str = "out", **entry: Any) -> Outcome:
        blend = {"datasets": [{"name": "words", "path": "hf://org/words", **entry}]}
        (tmp_path / "blend.json").write_text(json.dumps(blend))
        cfg = {"blend_path": str(tmp_path / "blend.json"), "output_dir": str(tmp_path / out), "num_shards": 4}
        env = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": str(int(offline))}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return run_payload(STEP, {**cfg, "tokenizer": {"model": "org/tiny"}}, tmp_path / "run", data_python, **env)

    return run


def test_subset_and_split_choose_files_and_the_cache_serves_offline(prep: Any, tmp_path: Path) -> None:
    outcome = prep(subset="easy", split="train")
    assert outcome.status == 0, outcome.stderr
    assert outcome.facts["rows"] == 60
    plan = json.loads(next((tmp_path / "out").rglob("plan.json")).read_text())
    assert {f["revision"] for f in plan["files"]} == {COMMIT} == {plan["resolved_tokenizer"]["resolved_revision"]}
    again = prep(offline=True, subset="easy", split="train")
    assert again.status == 0, again.stderr
    assert again.facts["made_tokens"] == 0 and again.facts["rows"] == 60
    fresh = prep(offline=True, out="fresh", subset="easy", split="train")
    assert fresh.status == 0 and fresh.facts["tokens"] == outcome.facts["tokens"]


@pytest.mark.parametrize(
    ("entry", "name", "part"),
    [
        ({"subset": "middle"}, "missing_or_invalid_blend", "easy/test-00000.jsonl"),
        ({"path": "hf://org/nothing"}, "dataset_unavailable", "hf://org/nothing"),
        ({"path": "hf://words"}, "missing_or_invalid_blend", "hf://org/name"),
    ],
)
def test_what_the_hub_does_not_have_is_named(prep: Any, entry: dict[str, str], name: str, part: str) -> None:
    outcome = prep(**entry)
    assert outcome.status == 3, outcome.stderr
    assert outcome.error["name"] == name and part in outcome.error["message"] and outcome.error["recovery"]
