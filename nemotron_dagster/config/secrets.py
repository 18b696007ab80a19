"""Which names hold secrets. By word, not by substring.

``HF_TOKEN`` is one; ``tokenizer`` and ``max_new_tokens`` are not.
"""

from __future__ import annotations

import re
from typing import Any

_SECRET = re.compile(
    r"(?:^|_)(?:token|secret|password|passwd|credential|credentials)$"
    r"|(?:^|_)(?:api|app|access|account|auth|client|encryption|private|secret|signing)_key$",
    re.IGNORECASE,
)
#: Tokens that tell themselves by their form, whatever key they stand under.
_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|nvapi-[\w-]{16,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}"
    r"|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})"
)
HIDDEN = "******"


def is_secret(name: str) -> bool:
    """Whether a variable or config key of this name holds a secret (camelCase counts as words)."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_")
    return bool(_SECRET.search(words)) or (name.isupper() and name.endswith("_KEY"))


def looks_secret(text: str) -> bool:
    """Whether a text holds a token of a well-known form (``hf_...``, ``nvapi-...``)."""
    return bool(_SHAPE.search(text))


def redact(value: Any) -> Any:
    """A copy of plain config data in which literal secrets are hidden; references like ``${oc.env:X}`` stay."""
    if isinstance(value, dict):
        return {
            k: HIDDEN if is_secret(str(k)) and v and not (isinstance(v, str) and v.startswith("${")) else redact(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [redact(v) for v in value]
    return _SHAPE.sub(HIDDEN, value) if isinstance(value, str) else value
