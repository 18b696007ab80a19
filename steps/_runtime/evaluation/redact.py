"""Keeps an endpoint's key out of everything that is printed or written.

Libraries print request headers in their error messages, and servers echo keys in theirs.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

SHOWN = "[redacted]"
SHORTEST = 8  # a placeholder such as "none" is no secret, and replacing it would spoil ordinary text


class Redactor(logging.Filter):
    """A log filter that also mends texts and files."""

    def __init__(self, secret: str | None) -> None:
        super().__init__()
        forms = {secret, json.dumps(secret)[1:-1]} if secret and len(secret) >= SHORTEST else set()
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, SHOWN)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        if self._forms:
            record.msg, record.args = self.text(record.getMessage()), None
            if record.exc_info:
                record.exc_text = self.text(logging.Formatter().formatException(record.exc_info))
        return True

    def files(self, folder: Path) -> None:
        for path in (p for p in folder.rglob("*") if self._forms and p.is_file()):
            data = path.read_text(encoding="utf-8")
            if (clean := self.text(data)) != data:
                path.write_text(clean, encoding="utf-8")


def quiet_logging(redactor: Redactor) -> None:
    """Warnings and errors only, on stderr, redacted."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(redactor)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
