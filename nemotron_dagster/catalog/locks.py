"""The locks that a consumed port may declare: what must fit although the types do not say it.

The rules are code, in ``artifacts/lock_rules.py``.
"""

from __future__ import annotations

#: name -> what it demands, as asset checks and docs/steps.md say it
LOCKS = {
    "chat_rows": "Every row is a conversation (`messages`, or ShareGPT's `conversations`).",
    "preference_rows": "Every row prefers one answer: `prompt`, `chosen`, `rejected`, or ranked completions.",
    "prompt_rows": "Every row is a prompt to answer: a NeMo-Gym task, a prompt, a conversation.",
    "rl_rows": "Every row is a prompt or a preference.",
    "text_field": "The rows have the field that the config's `text_field` names.",
    "tokenizer": "The tokens were made with the tokenizer of the model that is trained.",
    "chat_template": "The conversations were rendered with the chat template of the model that is trained.",
    "vocabulary": "No token lies outside the vocabulary of the model that is trained.",
    "pack_size": "The pack size is the sequence length of the config.",
    "megatron_parent": "A Megatron checkpoint is given as its parent directory.",
    "megatron_iteration": "A Megatron checkpoint is given as one iter_* directory.",
    "base_model": "The adapter belongs to the base model that is given with it.",
    "same_tasks": "The earlier results have the tasks that are to be evaluated.",
}
