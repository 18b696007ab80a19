"""`python serve_checkpoint.py CHECKPOINT PORT_FILE`: an OpenAI-compatible server over a real checkpoint.

Speaks /v1/chat/completions and /v1/completions (with echoed log-probabilities) with the standard library's HTTP
server on the loopback interface. It wants the key of SERVER_KEY, repeats a wrong key in its refusal, and fails one
request in seven with status 500 and the key in its text, as careless servers do.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOCK = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    model: Any
    tokenizer: Any
    served = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = self.headers.get("Authorization", "")
        with LOCK, torch.no_grad():
            Handler.served += 1
            if given != f"Bearer {os.environ['SERVER_KEY']}":
                self.answer(401, {"error": {"message": f"bad credentials: {given}"}})
            elif Handler.served % 7 == 0:
                self.answer(500, {"error": {"message": f"worker lost while serving {given}"}})
            elif self.path == "/v1/chat/completions":
                self.answer(200, self.chat(body))
            elif self.path == "/v1/completions":
                self.answer(200, self.score(body) if body.get("echo") else self.complete(body))
            else:
                self.answer(404, {"error": {"message": self.path}})

    def generate(self, ids: list[int], body: dict[str, Any]) -> str:
        made = self.model.generate(torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False)
        text = self.tokenizer.decode(made[0][len(ids) :], skip_special_tokens=True)
        for stop in body.get("stop") or []:
            text = text.split(stop)[0]
        return text

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        content = self.generate(self.tokenizer(text, add_special_tokens=False).input_ids, body)
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = [self.generate(ids, body) for ids in self.prompts(body)]
        return {"choices": [{"index": i, "text": text} for i, text in enumerate(texts)]}

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for index, ids in enumerate(self.prompts(body)):
            logs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            own = [None, *(logs[i, t].item() for i, t in enumerate(ids[1:]))]
            best = [None, *({"best": row.max().item()} for row in logs[:-1])]
            last = logs[-1].max().item()  # max_tokens=1: one token is written after the prompt
            scores = {"token_logprobs": [*own, last], "top_logprobs": [*best, {"best": last}]}
            choices.append({"index": index, "text": "", "logprobs": scores})
        return {"choices": choices}

    def prompts(self, body: dict[str, Any]) -> list[list[int]]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            return [self.tokenizer(prompt, add_special_tokens=False).input_ids]
        return [prompt] if isinstance(prompt[0], int) else prompt

    def answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


if __name__ == "__main__":
    Handler.tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    Handler.model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    part = Path(sys.argv[2] + ".part")
    part.write_text(str(server.server_port))
    part.rename(sys.argv[2])
    server.serve_forever()
