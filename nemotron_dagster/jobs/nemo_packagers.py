"""Runs NeMo-Run's packagers, as a program of its own: ``python -I nemo_packagers.py`` with its orders on stdin.

They work on the current directory and the repository around it, write scratch files there, read stdin, print, and
importing them takes seconds and sets up logging. In a process of their own, in an empty directory, none of that reaches
the submitter or the project: GIT_DIR names the repository, so that git reads there and writes here.

Orders are a JSON list of objects: ``name`` of the archive; ``git``: git_dir, commit, inner (quoted for a shell);
``pattern``: relative_path and include_pattern, whose words are quoted for a shell. With both it is one archive.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(orders: list[dict[str, Any]], scratch: str) -> None:
    """Make ``<scratch>/<name>.tar.gz`` for each order."""
    from nemo_run import GitArchivePackager, HybridPackager, PatternPackager

    os.environ["GIT_WORK_TREE"] = scratch
    for order in orders:
        packagers: dict[str, Any] = {}
        if git := order.get("git"):
            os.environ["GIT_DIR"] = git["git_dir"]
            packagers["git"] = GitArchivePackager(
                basepath=scratch, ref=git["commit"], subpath=git["inner"], include_submodules=False
            )
        if pattern := order.get("pattern"):
            packagers["pattern"] = PatternPackager(**pattern)
        one = next(iter(packagers.values()))
        whole = one if len(packagers) == 1 else HybridPackager(sub_packagers=packagers, extract_at_root=True)
        whole.package(Path(scratch), scratch, order["name"])


if __name__ == "__main__":
    main(json.load(sys.stdin), os.getcwd())
