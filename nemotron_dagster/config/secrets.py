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
HIDDEN = "******"


def is_secret(name: str) -> bool:
    """Whether a variable or config key of this name holds a secret (camelCase counts as words)."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_")
    return bool(_SECRET.search(words)) or (name.isupper() and name.endswith("_KEY"))


def redact(value: Any) -> Any:
    """A copy of plain config data in which literal secrets are hidden; references like ``${oc.env:X}`` stay."""
    if isinstance(value, dict):
        return {
            k: HIDDEN if is_secret(str(k)) and v and not (isinstance(v, str) and v.startswith("${")) else redact(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [redact(v) for v in value]
    return value
