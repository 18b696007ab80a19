"""Payloads run as a person's machine runs them: as a process, with their own environment's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optimize_run
import pytest
import yaml
from interpreters import payload_python
from payload_run import REPOSITORY


@pytest.fixture(scope="session")
def roman_rows() -> Callable[[str], list[tuple[dict[str, Any], str | None]]]:
    """The rows of a config of the example's source step, each with the kind of dirt it is, or None."""
    step = REPOSITORY / "examples/teach_a_skill/steps/source/roman_numerals"
    spec = importlib.util.spec_from_file_location("roman_rows", step / "rows.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def rows(config: str) -> list[tuple[dict[str, Any], str | None]]:
        cfg = yaml.safe_load((step / f"config/{config}.yaml").read_text("utf-8"))
        return list(module.generate(cfg["seed"], cfg["phrasings"], cfg["rows"], cfg["noise"]))

    return rows


@pytest.fixture(scope="session")
def data_python() -> str:
    return payload_python("data")


@pytest.fixture(scope="session")
def roman_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model of 0.5 M parameters that has learnt to write Roman numerals fairly well."""
    folder = tmp_path_factory.mktemp("roman") / "model"
    optimize_run.python(optimize_run.TRAIN, folder, REPOSITORY / "steps/sft/automodel/data/tiny.jsonl")
    return folder
