"""Where things lie for the job, on targets that move the code."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.config.grammar import Call, Text, parse


@dataclass(frozen=True)
class Relocation:
    """Where a target puts the project's folder (``code``) and the job's own directory (``run``)."""

    code: str
    run: str


def _working_directory() -> Path:
    """As the shell names it: ``PWD`` keeps the links on the way, where it is right."""
    here, named = Path.cwd(), os.environ.get("PWD", "")
    return Path(named) if named.startswith("/") and _same(named, here) else here


def _same(a: str, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


@dataclass(frozen=True)
class Places:
    """The folders of the submitter, and where the job finds them.

    Attributes:
        root: the project's folder, where the working directory lies in it; else the working directory.
    """

    relocation: Relocation | None = None
    root: Path | None = None
    here: Path = field(default_factory=_working_directory)

    @property
    def moved(self) -> bool:
        return self.relocation is not None

    @property
    def working_directory(self) -> str:
        """``PWD`` of the job."""
        return self.there(str(self.here))

    def _folders(self) -> dict[str, str]:
        """Folders of the submitter and their names on the target, the innermost first."""
        if self.relocation is None:
            return {}
        here = self.here.resolve()
        root = self.root.resolve() if self.root and here.is_relative_to(self.root.resolve()) else here
        code = self.relocation.code.rstrip("/")
        inner = here.relative_to(root).as_posix()
        moved_here = code if inner == "." else f"{code}/{inner}"
        pairs = {str(self.here): moved_here, str(here): moved_here, str(root): code}
        return {k: v for k, v in pairs.items() if k != "/"}

    def there(self, path: str) -> str:
        """An absolute path below the project or the working directory, as the job finds it; any other as it is."""
        return _replaced(path, self._folders())

    def back(self, path: str) -> str:
        """The opposite of ``there``."""
        return _replaced(path, {v: k for k, v in reversed(self._folders().items())})

    def relocate(self, data: Any) -> Any:
        """Train data as written, with its paths as the job finds them; unchanged where nothing moves."""
        if self.relocation is None:
            return data
        if isinstance(data, dict):
            return {k: self.relocate(v) for k, v in data.items()}
        if isinstance(data, list):
            return [self.relocate(v) for v in data]
        if not isinstance(data, str):
            return data
        if "${oc.env:NEMO_RUN_DIR" in data and "${oc.env:PWD}" not in data:
            return _leading_run_directory(data, self.relocation.run)
        return self.there(data)


def _replaced(path: str, folders: dict[str, str]) -> str:
    for folder, name in folders.items():
        if path == folder or path.startswith(folder + "/"):
            return name + path[len(folder) :]
    return path


def _leading_run_directory(text: str, run: str) -> str:
    """``${oc.env:NEMO_RUN_DIR,default}/x`` as ``<run>/x``: the job's own directory, whatever the default."""
    if not text.startswith("${oc.env:NEMO_RUN_DIR"):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += c == "{"
        depth -= c == "}"
        if c == "}" and not depth:
            head = parse(text[: i + 1]).parts[0]
            name = head.args[0] if isinstance(head, Call) and head.args else None
            if isinstance(name, Text) and name.parts == ("NEMO_RUN_DIR",):
                return run.rstrip("/") + text[i + 1 :]
            break
    return text
