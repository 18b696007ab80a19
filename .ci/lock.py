"""Write the two locks from pyproject.toml: ``python .ci/lock.py [--upgrade]``. Pins move only with --upgrade.

The build backend is pinned with the rest, so that the editable install fetches nothing that is not locked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [
    "--universal",
    *("--python-version", "3.11"),
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
    "--no-strip-extras",  # without extras in the pins, plain pip refuses the hashes
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--quiet",
]


def index() -> dict[str, str]:
    """uv does not read pip's configuration: hand it the index that pip uses, where pip is told one."""
    got = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], check=False, capture_output=True, text=True
    )
    url = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or got.stdout.strip()
    return {"UV_DEFAULT_INDEX": url} if url else {}


def main(arguments: list[str]) -> None:
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    dev = ["--extra", "dev", "-o", "requirements-dev.lock"]
    runtime = ["-c", "requirements-dev.lock", "-o", "requirements.lock"]  # the same pins in both
    for options in (dev, runtime):
        subprocess.run(
            [uv, "pip", "compile", "pyproject.toml", "-", *OPTIONS, *options, *arguments],
            cwd=ROOT,
            input="\n".join(backend),
            text=True,
            env={**os.environ, **index()},
            check=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
