"""Payloads run as a person's machine runs them: as a process, with their own environment's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    status: int
    messages: list[dict[str, Any]]
    stderr: str

    @property
    def facts(self) -> dict[str, Any]:
        return self._last("result")["facts"]

    @property
    def error(self) -> dict[str, Any]:
        return self._last("error")

    def _last(self, kind: str) -> dict[str, Any]:
        found = [m for m in self.messages if m["type"] == kind]
        assert found, f"no {kind} message; exit {self.status}:\n{self.stderr}"
        return found[-1]


def run_payload(step: Path, cfg: dict[str, Any], folder: Path, python: str, **env: str) -> Outcome:
    """Run a step's payload with a configuration and collect what it reported."""
    folder.mkdir(parents=True, exist_ok=True)
    config, messages = folder / "config.yaml", folder / "messages.jsonl"
    config.write_text(json.dumps(cfg))  # JSON is YAML
    messages.unlink(missing_ok=True)
    steps = str(REPOSITORY / "steps")
    done = subprocess.run(
        [python, str(step / "step.py"), "--config", str(config)],
        env={**os.environ, "NEMOTRON_MESSAGES": str(messages), "PYTHONPATH": steps, **env},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = messages.read_text().splitlines() if messages.exists() else []
    return Outcome(done.returncode, [json.loads(line) for line in lines], done.stderr)
