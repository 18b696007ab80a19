"""What the partitions of a Slurm cluster offer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemotron_dagster.jobs.transport import Transport


@dataclass(frozen=True)
class Partition:
    """What a partition offers one job; ``minutes`` None: no time limit."""

    nodes: int
    gpus_per_node: int
    minutes: int | None
    default: bool


def partitions(transport: Transport) -> dict[str, Partition]:
    """The cluster's partitions by name; empty where sinfo fails.

    Raises:
        TargetError: the login node could not be reached.
    """
    done = transport.run("LC_ALL=C sinfo -h -o '%P|%D|%l|%G'", check=False)
    found: dict[str, Partition] = {}
    for line in done.out.decode(errors="replace").splitlines() if not done.code else ():
        name, nodes, limit, gres = line.split("|", 3)
        default, name = name.endswith("*"), name.rstrip("*")
        gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))
        old = found.get(name, Partition(0, 0, None, default))
        known = int(nodes) if nodes.isdigit() else 0
        found[name] = Partition(old.nodes + known, max(old.gpus_per_node, gpus), _minutes(limit), default)
    return found


def _minutes(limit: str) -> int | None:
    """sinfo's time limit, ``[days-]hours:minutes:seconds`` or ``minutes:seconds``."""
    return None if not re.fullmatch(r"[\d:-]+", limit) else int(duration(limit) // 60)


def duration(text: str) -> float:
    """Seconds of ``[days-][[hours:]minutes:]seconds``, as Slurm writes it."""
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + float(part or 0)
    return total + 86400 * int(days or 0)
