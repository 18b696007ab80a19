"""A small judge on the loopback interface, for as long as a run lasts: a Hugging Face model behind the OpenAI protocol.

It stands where a cluster has vLLM. Requests that come together are answered as one batch.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from _runtime.rl.layouts import Messages

_TOGETHER_S = 0.01
_LARGEST_BATCH = 64
_MAX_TOKENS = 64  # of a reply, where the request does not say


@dataclass(frozen=True)
class _Request:
    messages: Messages
    max_tokens: int
    temperature: float
    top_p: float
    reply: Future[tuple[str, int, int]] = field(default_factory=Future)


@contextlib.contextmanager
def serving(directory: str, name: str) -> Iterator[str]:
    """Serve the model in ``directory`` as ``name``; yields the base URL. Nothing is left when the block ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    waiting: queue.Queue[_Request | None] = queue.Queue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(waiting, name))
    server.daemon_threads = True
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True),
        threading.Thread(target=_answer_all, args=(waiting, model, tokenizer), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        waiting.put(None)
        for thread in threads:
            thread.join(timeout=30)


def _answer_all(waiting: queue.Queue[_Request | None], model: Any, tokenizer: Any) -> None:
    held: _Request | None = None
    while True:
        first = held or waiting.get()
        if first is None:
            return
        batch, held = [first], None
        with contextlib.suppress(queue.Empty):
            while len(batch) < _LARGEST_BATCH:
                more = waiting.get(timeout=_TOGETHER_S)
                if more is None:
                    waiting.put(None)
                    break
                if _sampling(more) != _sampling(first):
                    held = more
                    break
                batch.append(more)
        try:
            answers = _generate(batch, model, tokenizer)
        except Exception as e:  # whatever it is, the one who asked must hear of it
            for request in batch:
                request.reply.set_exception(e)
            continue
        for request, answer in zip(batch, answers, strict=True):
            request.reply.set_result(answer)


def _sampling(request: _Request) -> tuple[int, float, float]:
    return request.max_tokens, request.temperature, request.top_p


def _generate(batch: list[_Request], model: Any, tokenizer: Any) -> list[tuple[str, int, int]]:
    """(reply, tokens of the question, tokens of the reply) of each request."""
    import torch

    texts = [tokenizer.apply_chat_template(r.messages, add_generation_prompt=True, tokenize=False) for r in batch]
    asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    max_tokens, temperature, top_p = _sampling(batch[0])
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with torch.no_grad(), torch.random.fork_rng():  # the training's random numbers stay as they are
        torch.manual_seed(zlib.crc32("".join(texts).encode()))
        out = model.generate(**asked, max_new_tokens=max_tokens, max_length=None, **how)
    replies = out[:, asked["input_ids"].shape[1] :]
    lengths = (replies != tokenizer.pad_token_id).sum(dim=1).tolist()
    questions = asked["attention_mask"].sum(dim=1).tolist()
    said = tokenizer.batch_decode(replies, skip_special_tokens=True)
    return [(str(s), int(q), int(n)) for s, q, n in zip(said, questions, lengths, strict=True)]


def _handler(waiting: queue.Queue[_Request | None], name: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.rstrip("/") == "/v1/models":
                self._send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
            else:
                self._send(404, _error(f"no {self.path} here"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.rstrip("/") != "/v1/chat/completions":
                self._send(404, _error(f"no {self.path} here"))
                return
            try:
                said = json.loads(body)
                request = _Request(
                    list(said["messages"]),
                    int(said.get("max_tokens") or _MAX_TOKENS),
                    float(said.get("temperature") or 0.0),
                    float(said.get("top_p") or 1.0),
                )
            except (ValueError, KeyError, TypeError) as e:
                self._send(400, _error(f"no chat-completion request: {e!r}"))
                return
            waiting.put(request)
            try:
                text, asked, replied = request.reply.result()
            except Exception as e:
                self._send(400, _error(f"the model cannot answer: {e!r}"))
                return
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": asked, "completion_tokens": replied, "total_tokens": asked + replied}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send(200, {"object": "chat.completion", "model": name, "choices": [choice], "usage": usage})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass  # one line a request would drown the run's own

    return Handler


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
