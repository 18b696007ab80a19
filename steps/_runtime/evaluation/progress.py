"""Tells how many samples are scored, while lm-evaluation-harness scores them."""

from __future__ import annotations

import inspect
import time
from typing import Any

from _runtime import payload

METHODS = ("generate_until", "loglikelihood", "loglikelihood_rolling")
SECONDS_BETWEEN = 0.5


class SampleProgress:
    """Stands where lm-eval's response cache hooks in, which every model class calls once per finished request."""

    def __init__(self, model: Any, total: int) -> None:
        self._total, self._before, self._told = total, 0, 0.0
        self._requests, self._done, self._samples = 1, 0, 0
        for name in METHODS:
            setattr(model, name, self._counted(getattr(model, name)))
        model.set_cache_hook(self)
        payload.progress(0, total)

    def _counted(self, method: Any) -> Any:
        def run(requests: list[Any], *args: Any, **kwargs: Any) -> Any:
            self._samples = len({(r.task_name, r.doc_id) for r in requests})
            self._requests, self._done = max(1, len(requests)), 0
            if "disable_tqdm" in inspect.signature(method).parameters:
                kwargs["disable_tqdm"] = True
            answers = method(requests, *args, **kwargs)
            self._before += self._samples
            payload.progress(self._before, self._total)
            return answers

        return run

    def add_partial(self, method: str, request: Any, answer: Any) -> None:
        """A request is answered; a sample with four choices is four requests."""
        self._done = min(self._done + 1, self._requests)
        if time.monotonic() - self._told > SECONDS_BETWEEN:
            self._told = time.monotonic()
            payload.progress(self._before + self._samples * self._done // self._requests, self._total)
