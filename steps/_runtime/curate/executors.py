"""Run the stages over the units: in this process, or with NeMo Curator's Ray Data executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_curator.backends.base import BaseStageAdapter, NodeInfo, WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch

from _runtime.curate.local_ray import local_ray
from _runtime.curate.options import Options
from _runtime.curate.rows import Unit, compressed
from _runtime.curate.stages import UnitTask
from _runtime.payload import PayloadError

IN_PROCESS_BYTES = 256 << 20  # Ray takes about ten seconds to start; below this the work itself takes less
EXPANSION = 4  # assumed for compressed files


def choose(options: Options, files: list[Path]) -> str:
    if options.executor != "auto":
        return options.executor
    size = sum(f.stat().st_size * (EXPANSION if compressed(f) else 1) for f in files)
    return "ray" if size >= IN_PROCESS_BYTES or options.domains else "in_process"


def run(
    executor: str,
    stages: list[ProcessingStage],
    units: list[Unit],
    options: Options,
    seen: Callable[[DocumentBatch], None],
) -> list[DocumentBatch]:
    """Every unit's batch after the last stage, in the units' order; ``seen`` is called as each one is done.

    Raises:
        PayloadError: the first bad row, by file and line; too few CPUs for Ray.
    """
    tasks = [UnitTask(dataset_name="rows", data=unit) for unit in units]
    batches = _in_process(stages, tasks, seen) if executor == "in_process" else _ray(stages, tasks, options, seen)
    batches.sort(key=lambda batch: batch._metadata["unit"])
    for batch in batches:
        _raise_if_bad(batch)
    return batches


def _raise_if_bad(batch: DocumentBatch) -> None:
    if batch._metadata["error"]:
        raise PayloadError(*batch._metadata["error"])


def _in_process(
    stages: list[ProcessingStage], tasks: list[UnitTask], seen: Callable[[DocumentBatch], None]
) -> list[DocumentBatch]:
    """One unit through all stages before the next is read, so that texts never pile up."""
    adapters = [BaseStageAdapter(stage) for stage in stages]
    for adapter in adapters:
        adapter.setup_on_node(NodeInfo("local"), WorkerMetadata("0"))
        adapter.setup(WorkerMetadata("0"))
    results: list[DocumentBatch] = []
    try:
        for task in tasks:
            batches: list[Any] = [task]
            for adapter in adapters:
                batches = adapter.process_batch(batches)
            for batch in batches:
                _raise_if_bad(batch)
                seen(batch)
            results += batches
    finally:
        for adapter in adapters:
            adapter.teardown()
    return results


def _ray(
    stages: list[ProcessingStage],
    tasks: list[UnitTask],
    options: Options,
    seen: Callable[[DocumentBatch], None],
) -> list[DocumentBatch]:
    from nemo_curator.backends.ray_data import RayDataExecutor

    class Streaming(RayDataExecutor):
        """Takes batches as they are finished, where Curator's own method waits for all of them."""

        def _dataset_to_tasks(self, dataset: Any) -> list[Any]:
            done = []
            for row in dataset.iter_rows():
                seen(row["item"])
                done.append(row["item"])
            return done

    actors = sum(bool(stage.ray_stage_spec().get("is_actor_stage")) for stage in stages)
    sizes = {key: options.ray.get(key) for key in ("num_gpus", "object_store_memory")}
    with local_ray(num_cpus=_cpus(options, actors + 1), **sizes):
        done: list[DocumentBatch] = Streaming().execute(stages, tasks)
    return done


def _cpus(options: Options, needed: int) -> int:
    """CPUs for Ray: ``ray.num_cpus``, else the environment's, else the machine's. A stage with a model keeps one."""
    key, value = "ray.num_cpus", options.ray.get("num_cpus")
    if value is None:
        key, value = "NEMOTRON_CURATOR_RAY_NUM_CPUS", os.environ.get("NEMOTRON_CURATOR_RAY_NUM_CPUS")
    if value is None:
        return max(needed, len(os.sched_getaffinity(0)))
    try:
        cpus = int(value)
    except ValueError:
        raise PayloadError("not_enough_cpu_resources", f"{key}: {value!r} is not a number", "") from None
    if cpus < needed:
        message = f"{key} is {cpus}; these filters need {needed}: one per model and one for the rest"
        raise PayloadError("not_enough_cpu_resources", message, f"Set {key} to {needed} or more.")
    return cpus
