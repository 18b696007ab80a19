"""The refusing half of the targets that cannot submit yet. Whoever builds submission replaces this base class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.target import Chunk, JobHandle, Status, Submission


class PreviewOnly:
    """A target that shows what it would submit, and refuses to."""

    executor = ""
    shares_files = False

    @property
    def cluster(self) -> str:
        return self.executor

    def check(self) -> None:
        self._refuse()

    def job_directory(self, key: str) -> str:
        self._refuse()

    def send(self, inputs: Mapping[Path, str]) -> dict[str, str]:
        self._refuse()

    def hardware(self) -> None:
        return None  # its profile says what a job gets

    def submit(self, job: Submission) -> JobHandle:
        self._refuse()

    def find(self, key: str) -> JobHandle | None:
        return None

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        self._refuse()

    def read(self, handle: JobHandle, cursor: Mapping[str, int]) -> Chunk:
        self._refuse()

    def collect(self, handle: JobHandle, output: Path) -> None:
        self._refuse()

    def release(self, handle: JobHandle) -> None:
        self._refuse()

    def abandon(self, handle: JobHandle, successor: str) -> bool:
        self._refuse()

    def cancel(self, handle: JobHandle) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TargetError(
            f"submitting to {self.executor} is not built yet; nothing was run. `-d` shows what would be submitted."
        )
