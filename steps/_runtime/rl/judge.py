"""Asks a judge over the OpenAI chat-completions protocol: several questions at once, with timeouts and retries."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from _runtime.payload import PayloadError
from _runtime.rl.layouts import Messages

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Endpoint:
    """``base_url`` ends before ``/chat/completions``; ``key_env`` names the variable that holds the key."""

    base_url: str
    model: str
    key_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 5
    pause_s: float = 0.5
    at_once: int = 8
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str | None:
        """The key, or None where none is named.

        Raises:
            PayloadError: the variable that is named holds nothing.
        """
        if not self.key_env:
            return None
        found = os.environ.get(self.key_env)
        if not found:
            raise PayloadError(
                "judge_key_missing", f"env.judge.api_key_env={self.key_env}: that variable is not set", "Export it."
            )
        return found


def ask_all(endpoint: Endpoint, questions: Sequence[Messages]) -> list[str]:
    """The replies, in the order of the questions.

    Raises:
        PayloadError: the judge does not answer, or refuses.
    """
    key = endpoint.key()
    with ThreadPoolExecutor(max_workers=max(1, min(endpoint.at_once, len(questions)))) as pool:
        return list(pool.map(lambda asked: _ask(endpoint, key, asked), questions))


def _ask(endpoint: Endpoint, key: str | None, asked: Messages) -> str:
    body = json.dumps({"model": endpoint.model, "messages": asked, **endpoint.sampling}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    url = endpoint.base_url.rstrip("/") + "/chat/completions"
    why = ""
    for attempt in range(endpoint.retries + 1):
        if attempt:
            time.sleep(min(endpoint.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE))
        try:
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=endpoint.timeout_s) as response:
                said = json.load(response)
            return str(said["choices"][0]["message"].get("content") or "")
        except urllib.error.HTTPError as e:
            why = f"HTTP {e.code}: {_short(e.read())}"
            if e.code not in RETRIED:
                break
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as e:
            why = f"{type(e).__name__}: {getattr(e, 'reason', e)}"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
            why = f"no chat completion in the reply ({type(e).__name__}: {e})"
    raise PayloadError(
        "genrm_server_not_ready",
        f"the judge {endpoint.model} at {url} does not answer: {why}",
        "Serve it alone until it answers one comparison, check env.judge (base_url, model, api_key_env, timeout_s), "
        "and run again: training continues from its last checkpoint.",
    )


def _short(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:300]
