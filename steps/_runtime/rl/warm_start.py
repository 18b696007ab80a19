"""Gives ``tiny_llama`` something to start from: reinforcement learning needs a model that is right now and then.

A short supervised training on rows made on the spot. A policy learns to write small numbers as Roman numerals, in
capital or small letters as it falls: what the three steps then teach is the capitals. A judge learns to compare two
numerals in the GenRM protocol, and likes capitals.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, tiny_model
from _runtime.rl.comparisons import Rules, question
from _runtime.rl.layouts import Messages

LARGEST = 49
GOOD, BAD = 5, 1  # scores that the judge gives
POLICY_STEPS, JUDGE_STEPS, BATCH, LEARNING_RATE = 220, 90, 16, 3e-3
Row = tuple[Messages, str]
_SIGNS = ((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def roman(n: int) -> str:
    """The numeral of a number below 50."""
    out = ""
    for value, sign in _SIGNS:
        count, n = divmod(n, value)
        out += sign * count
    return out


def policy_row(draw: random.Random) -> Row:
    """A question, and its right answer in capital or small letters."""
    n = draw.randint(1, LARGEST)
    return [{"role": "user", "content": f"What is {n} in Roman numerals?"}], _any_case(roman(n), draw)


def judge_row(draw: random.Random) -> Row:
    """Two numerals to compare, and the scores that they deserve."""
    n = draw.randint(1, LARGEST)
    answers = [_any_case(roman(n if draw.random() < 0.7 else draw.randint(1, LARGEST)), draw) for _ in range(2)]
    first, second = (GOOD if answer.isupper() else BAD for answer in answers)
    asked = [{"role": "user", "content": f"What is {n} in Roman numerals?"}]
    return question(Rules(), asked, *answers), json.dumps({"score_1": first, "score_2": second})


def _any_case(numeral: str, draw: random.Random) -> str:
    return numeral if draw.random() < 0.5 else numeral.lower()


def make(directory: Path, kind: str, seed: int) -> dict[str, Any]:
    """Write a policy or a judge (``kind``) to ``directory``, unless a whole one is there; the same for the same seed.

    Returns what was done, for the facts of the run.
    """
    row, steps = (policy_row, POLICY_STEPS) if kind == "policy" else (judge_row, JUDGE_STEPS)
    facts: dict[str, Any] = {"kind": kind, "steps": steps, "rows": steps * BATCH, "seed": seed}
    if hf_checkpoint.problem(directory) is None:
        return facts
    tokenizer = tiny_model.build_tokenizer()
    model = tiny_model.build_model(seed, tokenizer=tokenizer)
    print(f"tiny_llama has learned nothing: {steps} supervised steps first ({kind})", flush=True)
    facts["loss"] = teach(model, tokenizer, row, steps, seed)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial, save_jinja_files=False)
    hf_checkpoint.put(partial, directory)
    return facts


def teach(model: Any, tokenizer: Any, row: Callable[[random.Random], Row], steps: int, seed: int) -> float:
    """Train on rows drawn from ``row``, the loss on the answers alone; returns the last loss.

    Digits of an answer count twice: the rest of a verdict is the same in all of them.
    """
    import torch

    draw = random.Random(seed)
    digits = torch.tensor([tokenizer.convert_tokens_to_ids(d) for d in "0123456789"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.tensor(0.0)
    model.train()
    for _ in range(steps):
        inputs, labels = _batch(tokenizer, [row(draw) for _ in range(BATCH)])
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        wanted = labels[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        if bool((numbers := torch.isin(wanted, digits)).any()):
            loss = loss + torch.nn.functional.cross_entropy(logits[numbers], wanted[numbers])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return round(loss.item(), 4)


def _batch(tokenizer: Any, rows: list[Row]) -> tuple[dict[str, Any], Any]:
    """Inputs and labels, (rows, tokens) each; -100 where nothing is to be learned."""
    import torch

    ids, answers = [], []
    for asked, answer in rows:
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        start = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.append(start + tokenizer(f"{answer}{tokenizer.eos_token}\n", add_special_tokens=False)["input_ids"])
        answers.append(len(start))
    size = (len(ids), max(map(len, ids)))
    tokens, labels = torch.full(size, tokenizer.pad_token_id), torch.full(size, -100)
    mask = torch.zeros(size, dtype=torch.long)
    for i, (row, start_at) in enumerate(zip(ids, answers, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, start_at : len(row)] = torch.tensor(row[start_at:])
    return {"input_ids": tokens, "attention_mask": mask}, labels
