"""Steps as partitioned assets: a run makes one partition, and reads one artifact per input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from nemotron_dagster.errors import PreflightError


def one_partition(context: dg.AssetExecutionContext, name: str, inputs: Mapping[str, Any]) -> str | None:
    """The partition that the run of node ``name`` makes, or None where it has none.

    Raises:
        PreflightError: it makes none or several of those that it has, or an input is several partitions.
    """
    partition: str | None = None
    if context.assets_def.partitions_def is not None:
        if not (context.has_partition_key or context.has_partition_key_range):
            raise PreflightError(f"{name}: has partitions, and this run names none. Materialize one in the UI.")
        keys = list(context.partition_keys)
        if len(keys) != 1:
            raise PreflightError(
                f"{name}: this run makes {len(keys)} partitions ({keys[0]} to {keys[-1]}), and a step makes one "
                "artifact per run. Choose a run per partition in the backfill, or drop BackfillPolicy.single_run()."
            )
        partition = str(keys[0])
    for port, value in inputs.items():
        if isinstance(value, Mapping):
            raise PreflightError(
                f"{name}: input {port} is {len(value)} partitions, and a step reads one artifact. Give {name} the same "
                "partitions, or put an asset of your own between them that makes one of all."
            )
    return partition
