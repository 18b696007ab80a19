"""Submissions as text and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from nemotron_dagster.jobs.facts import TIMES, job_facts, state_of
from nemotron_dagster.jobs.ledger import Record

if TYPE_CHECKING:
    from nemotron_dagster.jobs.sync import Sight

_SHORTEST = 8  # characters of a key that a table shows at least
_HEAD = ("KEY", "STEP", "PROFILE", "STATE", "EXIT", "AGE", "ELAPSED", "GPUS", "RUN")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def state(sight: Sight) -> str:
    return state_of(sight.record, sight.status)


def row(sight: Sight) -> dict[str, Any]:
    """One line of ``list --json``."""
    record, facts = sight.record, job_facts(sight.record, sight.status)
    return {
        "key": record.key,
        "step": record.order.step,
        "asset": "/".join(record.order.asset),
        "partition": record.order.partition,
        "profile": record.profile,
        "target": record.executor,
        "phase": record.phase,
        "detached": record.detached,
        "state": facts["state"],
        "state_known": not sight.problem,
        "exit_code": facts.get("exit_code"),
        "submitted": _iso(record.created),
        "elapsed": facts.get("elapsed"),
        "gpus": facts.get("gpus", 0),
        "run": record.runs[-1] if record.runs else None,
    }


def details(sight: Sight) -> dict[str, Any]:
    """``status --json``."""
    record = sight.record
    facts = {k: _iso(v) if k in TIMES else v for k, v in job_facts(record, sight.status).items()}
    return {
        **row(sight),
        "job": facts,
        "jobs": [h.as_dict() for h in record.handles],
        "max_chain": record.max_chain,
        "runs": list(record.runs),
        "uri": record.uri or None,
        "error": record.error or None,
        "problem": sight.problem or None,
    }


def listing(sights: Sequence[Sight], keys: Sequence[str]) -> list[str]:
    """A table; each key as short as it is still unique among ``keys``."""
    rows = []
    for sight in sights:
        record, facts = sight.record, job_facts(sight.record, sight.status)
        code, elapsed = facts.get("exit_code"), facts.get("elapsed")
        rows.append(
            (
                _short(record.key, keys),
                record.order.step + (f" [{record.order.partition}]" if record.order.partition else ""),
                record.profile or record.executor,
                f"{facts['state']}?" if sight.problem else _stated(sight),
                "" if code is None else str(code),
                duration(time.time() - record.created),
                "" if elapsed is None else duration(elapsed),
                str(facts.get("gpus") or ""),
                record.runs[-1][:8] if record.runs else "",
            )
        )
    widths = [max(len(r[i]) for r in (_HEAD, *rows)) for i in range(len(_HEAD))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (_HEAD, *rows)]


def page(sight: Sight) -> list[str]:
    """Everything of one submission."""
    record, facts = sight.record, job_facts(sight.record, sight.status)
    asset = "/".join(record.order.asset)
    lines = [f"{record.key}  {record.order.step}  {facts['state']}{'? (last known)' if sight.problem else ''}"]
    told: list[tuple[str, Any]] = [
        ("submission", f"{record.phase}{', detached' if record.detached else ''}"),
        ("asset", f"{asset} [{record.order.partition}]" if record.order.partition else asset),
        ("config", record.order.config),
        ("target", f"{record.executor}{f', profile {record.profile}' if record.profile else ''}"),
        ("job ids", ", ".join(h.id for h in record.handles if h.id)),
        ("chain", f"{len(record.handles)} of at most {record.max_chain}" if record.max_chain > 1 else ""),
        ("scheduler says", facts.get("raw_state") if facts.get("raw_state") != facts["state"] else ""),
        ("reason", facts.get("reason")),
        ("exit code", facts.get("exit_code")),
        ("nodes", facts.get("nodes")),
        ("may start", _local(facts.get("start_estimate"))),
        ("submitted", _local(facts.get("submitted"))),
        ("started", _local(facts.get("started"))),
        ("ended", _local(facts.get("ended"))),
        ("waited", duration(facts["queue_wait"]) if "queue_wait" in facts else ""),
        ("elapsed", duration(facts["elapsed"]) if "elapsed" in facts else ""),
        ("restarts", facts.get("restarts") or ""),
        ("GPUs", facts.get("gpus") or ""),
        ("GPU-hours", f"{facts['gpu_hours']:.2f}" if facts.get("gpus") and "gpu_hours" in facts else ""),
        ("CPU efficiency", f"{facts['cpu_efficiency']:.0%}" if "cpu_efficiency" in facts else ""),
        ("memory", f"{facts['max_rss_bytes'] / 1e9:.2f} GB" if "max_rss_bytes" in facts else ""),
        ("GPU memory", f"estimated: {facts['memory_estimate']}" if "memory_estimate" in facts else ""),
        ("log", facts.get("log")),
        ("runs", ", ".join(record.runs)),
        ("artifact", record.uri),
        ("error", record.error.replace("\n", "\n    ")),
    ]
    return lines + [f"  {name:<14}  {value}" for name, value in told if value not in (None, "")]


def cancelled(before: Record, now: Record, error: str) -> str:
    """What `cancel` has to say of one submission."""
    if error:
        return f"not cancelled: {error}"
    if before.phase in ("failed", "published", "cancelled"):
        return f"was {before.phase} already"
    if now.phase == "cancelled":
        return "cancelled"
    if now.phase in ("failed", "published"):
        return f"{now.phase} meanwhile"
    return "ended by itself, or is slow to end; see `nemotron runs status`, then `nemotron runs sync`"


def duration(seconds: float) -> str:
    """``4s``, ``12m``, ``3h05m``, ``2d04h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def _stated(sight: Sight) -> str:
    """The state, and whether `sync` has something to do for it."""
    waits = sight.due and sight.record.phase in ("submitting", "submitted")
    return f"{state(sight)} (sync)" if waits else state(sight)


def _short(key: str, keys: Sequence[str]) -> str:
    length = _SHORTEST
    while length < len(key) and sum(k.startswith(key[:length]) for k in keys) > 1:
        length += 1
    return key[:length]


def _local(seconds: float | None) -> str:
    return time.strftime("%F %T", time.localtime(seconds)) if seconds else ""


def _iso(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
