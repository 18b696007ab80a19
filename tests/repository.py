"""The files of this repository, for the tests that read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import REPO


def files(*patterns: str) -> list[Path]:
    """What git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [p for line in listed.splitlines() if (p := REPO / line).is_file()]
