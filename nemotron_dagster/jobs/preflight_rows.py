"""Preflight rules about data: splits, rows and what they are checked against, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.jobs.preflight_case import Case

_ANSWERS = {
    "expected_answer", "answer", "ground_truth", "reward_model", "solution", "final_answer", "label",
    "verifier_metadata", "unit_tests", "test_cases", "tests", "output",
}  # fmt: skip


def has_template(case: Case) -> str:
    """A model that cannot render a conversation."""
    model = next((s for s in case.subjects.values() if s.type == "checkpoint_hf"), None)
    if model is None or model.facts.get("chat_template") is not False or case.value("dataset.chat_template"):
        return ""
    return f"{model.name} has no chat template, and dataset.chat_template is not set."


def splits(case: Case) -> str:
    """A split that rl_prep left empty."""
    for file, manifest in _manifests(case):
        for split in ("train", "val"):
            wanted = split == "train" or _validates(case)
            rows = (manifest.get("rows") or {}).get(split)
            if wanted and split in manifest and (not manifest[split] or rows == 0):
                return f"{file}: its split {split!r} is empty."
    return ""


def validation_apart(case: Case) -> str:
    """Scores on the training rows, which say nothing of what was learned."""
    if case.value("data.allow_train_as_validation") or not _validates(case):
        return ""
    for file, manifest in _manifests(case):
        if not manifest.get("val") or manifest.get("val") == manifest.get("train"):
            return f"{file} has no validation split of its own."
    train, validation = case.value("data.train.data_path"), case.value("data.validation.data_path")
    asked = {"data.train.data_path", "data.validation.data_path"} & {t.partition("=")[0] for t in case.spec.overrides}
    same = bool(asked) and isinstance(train, str) and train == validation and not Path(train).is_dir()
    return f"data.train.data_path and data.validation.data_path are both {train}." if same else ""


def gym_rows(case: Case) -> str:
    """Rows that NeMo-Gym cannot answer."""
    if not case.value("env.should_use_nemo_gym") or case.value("backend") == "trl":
        return ""
    for subject in case.subjects.values():
        kinds = subject.facts.get("kinds")
        if isinstance(kinds, Mapping) and (wrong := {k: n for k, n in kinds.items() if k != "gym"}):
            some = ", ".join(f"{n:,} {k}" for k, n in wrong.items())
            return f"{sum(wrong.values()):,} rows of {subject.name} have no responses_create_params ({some})."
    return ""


def verifier_rows(case: Case) -> str:
    """Rows whose answers nothing could be compared with."""
    for subject in case.subjects.values():
        kinds, columns = subject.facts.get("kinds"), [str(c[0]) for c in subject.facts.get("columns") or ()]
        plain = isinstance(kinds, Mapping) and "gym" not in kinds
        if plain and columns and not _ANSWERS & set(columns):
            return f"{subject.name} has no field with an answer (it has {', '.join(columns[:8])})."
    return ""


def one_environment(case: Case) -> str:
    """Half of one config, and half of the other."""
    if case.value("backend") == "trl":
        return ""
    gym, name = bool(case.value("env.should_use_nemo_gym")), case.value("data.default.dataset_name")
    if gym and name != "NemoGymDataset":
        return f"env.should_use_nemo_gym is true, but data.default.dataset_name is {name}."
    return "" if gym or name != "NemoGymDataset" else f"data.default.dataset_name is {name}, but NeMo-Gym is off."


def mock_data(case: Case) -> str:
    """Losses on random tokens mean nothing, and nothing made of them is worth an export."""
    if case.value("args.use_mock_data") is not True:
        return ""
    if "binidx" in case.spec.external:
        return f"args.use_mock_data is true, and args.data_paths={case.value('args.data_paths')} would not be read."
    export = case.value("args.hf_export_path")
    return f"args.use_mock_data is true, and args.hf_export_path={export} asks for a model to use." if export else ""


def teacher(case: Case) -> str:
    """Distillation compares the two models' words one by one."""
    student, known_teacher = case.value("args.student_hf_path"), case.subjects.get("checkpoint_hf")
    if known_teacher is None or not isinstance(student, str) or not (Path(student) / "config.json").is_file():
        return ""
    from nemotron_dagster.artifacts.types._problems import Problems
    from nemotron_dagster.artifacts.types._tokenizer import read_tokenizer

    found = read_tokenizer(Path(student), Problems())
    mine, theirs = found.fingerprint if found else None, known_teacher.tokenizers
    if not mine or not theirs or mine in theirs:
        return ""
    return f"the student {student} and the teacher {known_teacher.name} have different tokenizers."


def _validates(case: Case) -> bool:
    """Whether the config validates at all."""
    if not case.value("data.manifest_path") and not case.value("data.validation.data_path"):
        return False
    periods = [case.value(f"{s}.val_period") for s in ("grpo", "dpo")]
    return any(isinstance(p, int) and p > 0 for p in periods) or all(p is None for p in periods)


def _manifests(case: Case) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The manifest.json of the data, where the config leads to one here."""
    for key in ("data.manifest_path", "data.train.data_path"):
        text = case.value(key)
        if not isinstance(text, str) or not text:
            continue
        path = Path(text).expanduser()
        file = path if path.name == "manifest.json" else path / "manifest.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, Mapping):
            yield file, data
            return
