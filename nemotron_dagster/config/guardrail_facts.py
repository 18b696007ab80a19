"""What a profile gives one job, as numbers; None where the profile does not say, or says it with an unset variable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHAPE = re.compile(r"gpu\.(?:(\d+)x)?[a-z]+\d", re.IGNORECASE)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_GB = 1024**3


@dataclass(frozen=True)
class Facts:
    """Nodes, and what one of them offers."""

    nodes: int | None
    gpus: int | None
    cpus: float | None
    memory_gb: float | None
    image: str | None
    shape_gpus: int | None = None

    @property
    def world(self) -> int | None:
        """All GPUs of the job."""
        return None if self.nodes is None or self.gpus is None else self.nodes * self.gpus


def facts(
    settings: Mapping[str, Any], image: str | None, shapes: Mapping[str, Any], nodes: int | None, gpus: int | None
) -> Facts:
    """The facts of a profile's settings; ``nodes``, ``gpus`` and ``image`` are the runspec's, for keys not given."""
    executor = settings.get("executor")
    shape = str(settings.get("resource_shape") or "")
    size = shapes.get(shape, {})
    given = "gpus_per_node" if "gpus_per_node" in settings else "gpus"
    if given in settings:
        gpus = whole(settings[given])
    tasks = whole(settings.get("ntasks_per_node", 1))
    cpus = quantity(settings.get("cpus_per_task"))
    if cpus is not None:
        cpus = cpus * tasks if tasks is not None else None
    elif "cpus_per_gpu" in settings and gpus is not None:
        per_gpu = quantity(settings["cpus_per_gpu"])
        cpus = per_gpu * gpus if per_gpu is not None else None
    elif "cpus" in settings or "cpu_limits" in settings:
        cpus = quantity(settings.get("cpus", settings.get("cpu_limits")))
    elif size:
        cpus = size.get("cpus")
    memory = next((settings[k] for k in ("mem", "memory", "memory_limits") if settings.get(k)), None)
    gigabytes = memory_gb(memory, unit="m" if executor == "slurm" else "") if memory is not None else None
    if memory is None and size:
        gigabytes = size.get("memory_gb")
    named = next((settings[k] for k in ("container_image", "container", "image") if settings.get(k)), image)
    return Facts(
        nodes=whole(settings["nodes"]) if "nodes" in settings else nodes,
        gpus=gpus,
        cpus=cpus,
        memory_gb=gigabytes or None,  # 0 is all of it
        image=str(named) if named and "${" not in str(named) else None,
        shape_gpus=shape_gpus(shape),
    )


def shape_gpus(shape: str) -> int | None:
    """GPUs in a Lepton resource shape: ``gpu.8xh100-80gb`` has 8, ``gpu.a100-80gb`` 1, ``cpu.large`` none."""
    if shape.startswith("cpu."):
        return 0
    match = _SHAPE.match(shape)
    return int(match[1] or 1) if match else None


def memory_gb(value: Any, unit: str = "") -> float | None:
    """``64G``, ``500GB``, ``64Gi``, ``65536`` (in ``unit``) as GiB; None where it is no amount of memory."""
    match = _MEMORY.fullmatch(str(value).strip())
    if not match:
        return None
    base = 1024 if match[3] or unit else 1000  # Slurm counts in powers of 1024, Kubernetes only with an i
    return float(float(match[1]) * base ** _POWER[(match[2] or unit).lower()] / _GB)


def quantity(value: Any) -> float | None:
    """A number of CPUs: ``4``, ``"0.5"`` or Kubernetes' ``500m``."""
    text = str(value).strip()
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """A whole number, also one in quotes (variables are text); None for anything else."""
    try:
        return None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError):
        return None


def minutes(time: Any) -> float | None:
    """A Slurm time limit in minutes: ``30``, ``30:00``, ``4:00:00``, ``1-12``; None where it has no end."""
    days, dash, clock = str(time).strip().rpartition("-")
    try:
        parts = [int(p) for p in clock.split(":")]
        total = int(days) * 1440 if dash else 0
    except ValueError:
        return None
    if dash:
        hours, mins, secs = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, mins, secs = parts
    else:
        hours, (mins, secs) = 0, (*parts, 0)[:2]
    return total + hours * 60 + mins + secs / 60


def image_family(image: str, families: Mapping[str, list[str]]) -> str | None:
    """Which known family an image is of, by its repository; None for any other image."""
    repository = image.partition("://")[2] or image
    repository = repository.partition("@")[0]
    head, slash, tail = repository.rpartition("/")
    repository = head + slash + tail.partition(":")[0]
    for family, names in families.items():
        if any(repository == name or repository.endswith("/" + name) for name in names):
            return family
    return None
