"""The files that `nemotron init` and `nemotron steps new` write, with ``{{name}}`` where a word is filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def fill(name: str, words: Mapping[str, str]) -> str:
    """One template with its slots filled; every slot must have a word."""
    return _SLOT.sub(lambda slot: words[slot[1]], (_HERE / name).read_text(encoding="utf-8"))


def fill_all(folder: str, words: Mapping[str, str]) -> dict[str, str]:
    """All templates below a folder: relative path of the file to write -> its text."""
    root = _HERE / folder
    files = sorted(p for p in root.rglob("*.tmpl") if p.is_file())
    return {
        p.relative_to(root).as_posix().removesuffix(".tmpl"): fill(p.relative_to(_HERE).as_posix(), words)
        for p in files
    }
