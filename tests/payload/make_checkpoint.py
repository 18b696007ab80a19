"""`python make_checkpoint.py TINY_LLAMA OUT STEPS`: a checkpoint for the evaluator's tests.

It learns every eighth test question by heart, so that it soon scores above zero: what is tested is the evaluator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TESTS = Path(__file__).resolve().parents[2] / "steps/eval/model_eval/tasks/roman_numerals/test.jsonl"


def main(source: str, out: str, steps: int) -> None:
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    rows = [json.loads(line) for line in TESTS.read_text().splitlines()[::8]]
    chats = [
        [
            {"role": "user", "content": f"What is {r['number']} in Roman numerals?"},
            {"role": "assistant", "content": r["numeral"]},
        ]
        for r in rows
    ]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    data = tokenizer(texts, padding=True, return_tensors="pt")
    asked = [len(tokenizer.apply_chat_template(c[:1], add_generation_prompt=True).input_ids) for c in chats]
    labels = data.input_ids.masked_fill(data.attention_mask == 0, -100)
    for row, length in zip(labels, asked, strict=True):
        row[:length] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(**data, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(loss.item())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
