"""One small request before a long evaluation: is the endpoint there, is it the right kind, does it know the model."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from _runtime.evaluation.redact import Redactor
from _runtime.evaluation.settings import Endpoint
from _runtime.payload import PayloadError

TRY_TOKENS = 16  # some servers refuse to write fewer


def headers(endpoint: Endpoint) -> dict[str, str]:
    """Request headers; the only place that the key goes to."""
    made = {"Content-Type": "application/json"}
    return made | {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else made


def probe(endpoint: Endpoint, redactor: Redactor) -> None:
    """Ask for one short answer.

    Raises:
        PayloadError: what is wrong with the address, key, model id or type.
    """
    body: dict[str, Any] = {"model": endpoint.model_id, "max_tokens": TRY_TOKENS, "temperature": 0}
    if endpoint.type == "chat":
        body["messages"] = [{"role": "user", "content": "1"}]
    else:
        body["prompt"] = "1"
    choice = _first_choice(_post(endpoint, body, redactor), endpoint)
    if ("message" if endpoint.type == "chat" else "text") not in choice:
        raise _wrong_type(endpoint, f"the answer is not a {endpoint.type} one")


def probe_logprobs(endpoint: Endpoint, redactor: Redactor) -> None:
    """See that the endpoint scores the prompt's own tokens, as multiple-choice tasks need."""
    body = {"model": endpoint.model_id, "prompt": "1 2 3", "max_tokens": 1, "logprobs": 1, "echo": True}
    choice = _first_choice(_post(endpoint, body, redactor), endpoint)
    scores = choice.get("logprobs")
    if not isinstance(scores, dict) or len(scores.get("token_logprobs") or []) < 2:
        raise _wrong_type(endpoint, "it does not return log-probabilities of the prompt (echo + logprobs)")


def _post(endpoint: Endpoint, body: dict[str, Any], redactor: Redactor) -> Any:
    request = urllib.request.Request(endpoint.url, json.dumps(body).encode(), headers(endpoint), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=endpoint.request_timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        raise _refused(endpoint, e.code, redactor.text(e.read(2000).decode("utf-8", "replace"))[:300]) from None
    except (OSError, ValueError) as e:
        raise PayloadError(
            "endpoint_unreachable",
            f"target.api_endpoint.url={endpoint.url}: {redactor.text(str(e))}",
            "Start the server, or fix the address; `curl URL` from this machine must answer.",
        ) from None


def _refused(endpoint: Endpoint, code: int, text: str) -> PayloadError:
    named = f"the key in {endpoint.key_name}" if endpoint.key_name else "a request without a key"
    advice = {
        401: f"The server refuses {named}: set target.api_endpoint.api_key_name to the right variable.",
        403: f"The server refuses {named}: set target.api_endpoint.api_key_name to the right variable.",
        404: f"Check the url and that /v1/models lists {endpoint.model_id}.",
    }
    recovery = advice.get(code, "Check target.api_endpoint.{url,model_id,type} against the server's documentation.")
    return PayloadError("endpoint_refused", f"target.api_endpoint.url={endpoint.url}: HTTP {code}: {text}", recovery)


def _first_choice(answer: Any, endpoint: Endpoint) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _wrong_type(endpoint, "the answer holds no choices")
    return choices[0]


def _wrong_type(endpoint: Endpoint, why: str) -> PayloadError:
    return PayloadError(
        "wrong_endpoint_type",
        f"target.api_endpoint.url={endpoint.url} (type {endpoint.type}): {why}.",
        "Use a chat endpoint for generation tasks and a completions endpoint with prompt log-probabilities for "
        "multiple-choice tasks.",
    )
