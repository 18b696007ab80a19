"""What an entry of [[errors]] may name as its ``check``: how the engine finds that error before anything is submitted.

A lock of one of the step's ports may be named too. The rules are code, in ``jobs/preflight_rules.py``.
"""

from __future__ import annotations

from nemotron_dagster.catalog.locks import LOCKS

#: name -> what is refused; of a name with `:PORT`, for that port.
CHECKS = {
    "given:PORT": "The input is not given, or nothing is at its path.",
    "input:PORT": "What lies at the path of the input is not whole, or of another type.",
    "memory": "Weights, gradients and optimizer alone are larger than the profile's GPU.",
    "parallel": "The parallel sizes of the config do not divide the GPUs of the profile.",
    "apart": "An output lies in an input, or an input in an output.",
    "no_parquet": "Parquet is given where rows are read as JSONL.",
    "one_length": "The sequence lengths that the config names in several places differ.",
    "scheduler_keys": "The learning-rate schedule has a key that AutoModel's does not know.",
    "batch": "The batch does not split evenly over micro batches and data-parallel ranks.",
    "has_template": "The model has no chat template, and the config names none.",
    "splits": "The training or the validation split of the data's manifest.json is empty.",
    "validation_apart": "The rows that validate are those that train, and nobody asked for that.",
    "gym_rows": "NeMo-Gym is on, and rows are no tasks of its Responses format.",
    "verifier_rows": "No row has what a verifier could compare an answer with.",
    "one_environment": "The data of NeMo-Gym is used without it, or it is on without them.",
    "judge_apart": "Policy and judge are the same model.",
    "mock_data": "Random tokens train what is to be used: rows or an export are asked for beside them.",
    "teacher": "Teacher and student have different tokenizers.",
    "one_target": "Both a parameter budget and an exact shape are given.",
    "layers": "The pipeline stages do not divide the layers of the target.",
    "quant_recipe": "The recipe is none that the quantization script knows.",
    "hf_source": "Nothing says which Hugging Face model describes the architecture of the export.",
}


def known(name: str) -> bool:
    """Whether an entry may name this check."""
    kind, colon, _ = name.partition(":")
    return f"{kind}:PORT" in CHECKS if colon else name in CHECKS or name in LOCKS
