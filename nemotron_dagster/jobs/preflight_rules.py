"""The rules behind ``catalog/preflight.py``, by name: each says why a compiled job is refused, or "".

A rule that looks into an input says nothing while that has not been read: every rule is asked once before and once
after the inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nemotron_dagster.jobs import preflight_paths as paths
from nemotron_dagster.jobs import preflight_rows as rows
from nemotron_dagster.jobs import preflight_sizes as sizes
from nemotron_dagster.jobs.preflight_case import Case

RULES: Mapping[str, Callable[[Case], str]] = {
    "apart": paths.apart,
    "no_parquet": paths.no_parquet,
    "hf_source": paths.hf_source,
    "judge_apart": paths.judge_apart,
    "one_length": sizes.one_length,
    "scheduler_keys": sizes.scheduler_keys,
    "batch": sizes.batch,
    "one_target": sizes.one_target,
    "layers": sizes.layers,
    "quant_recipe": sizes.quant_recipe,
    "has_template": rows.has_template,
    "splits": rows.splits,
    "validation_apart": rows.validation_apart,
    "gym_rows": rows.gym_rows,
    "verifier_rows": rows.verifier_rows,
    "one_environment": rows.one_environment,
    "mock_data": rows.mock_data,
    "teacher": rows.teacher,
}
