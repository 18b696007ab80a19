"""The files of a Slurm job: what is read of its log while it runs, and the inputs and code that are sent.

A log is the output of all nodes, one file for each start, then what Slurm and the batch script say.
"""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.target import Chunk
from nemotron_dagster.jobs.transport import Transport

LIMIT = 1 << 20  # bytes of one look
_MESSAGES, _START, _ENDED = "messages.jsonl", "messages.start", "ended"
_LOG = re.compile(r"log-.*_\d+_(\d+)\.out|sbatch_.*\.out|ray/logs/(?:ray-.*\.log|sbatch_.*\.out)")

#: Writes ``name offset size`` and that many bytes for each file; the files' names come in, with what was read of them.
_READ = r"""
export LC_ALL=C
cd "$job" 2>/dev/null || { printf 'end 0 0\n'; exit 0; }
seen=$(cat)
left=$limit
piece() {
  size=$(stat -c %s "$2" 2>/dev/null) || return 0
  at=$(printf '%s\n' "$seen" | awk -v name="$1" '{ at = $1; sub(/^[0-9]+ /, "") } $0 == name { print at }')
  [ -n "$at" ] || at=${3:-0}
  [ "$at" -le "$size" ] || at=0
  take=$((size - at))
  [ "$take" -le "$left" ] || take=$left
  [ "$take" -gt 0 ] || return 0
  left=$((left - take))
  printf '%s %s %s\n' "$at" "$take" "$1"
  tail -c "+$((at + 1))" "$2" | head -c "$take"
}
[ -e ended ] && printf '0 0 ended\n'
if [ -n "$messages" ]; then
  left=$((limit / 2))
  start=$(cat messages.start 2>/dev/null)
  piece messages.jsonl "$run/messages.jsonl" "${start:-0}"
  left=$((left + limit / 2))
fi
for file in log-*.out sbatch_*.out ray/logs/ray-*.log ray/logs/sbatch_*.out; do
  [ -f "$file" ] && printf '%s\n' "$file"
done | awk '{ start = $0; sub(/\.out$/, "", start); sub(/.*_/, "", start)
              print ($0 ~ /(^|\/)sbatch_/ ? 1 : 0), ($0 ~ /^log-/ ? start + 0 : 0), $0 }' |
  sort -k1,1n -k2,2n -k3 | cut -d' ' -f3- >"$list"
while read -r file; do piece "$file" "$file"; done <"$list"
printf 'end 0 0\n'
"""


def read_here(job: Path, cursor: Mapping[str, int]) -> Chunk:
    """What the job wrote after ``cursor``, where this machine sees its files: no process is started."""
    ended = (job / _ENDED).exists()  # before the rest: what came before the mark is read with it
    left, log, now = LIMIT, b"", dict(cursor)
    for name in _logs(_names(job)):
        data, at = _piece(job / name, cursor.get(name, 0), left)
        if data:
            log, left, now[name] = log + data, left - len(data), at + len(data)
    return Chunk(log, now, b"", ended)


def read_there(transport: Transport, job: str, run: str, cursor: Mapping[str, int], messages: bool) -> Chunk:
    """The same on another machine, in one round trip; with ``messages`` the payload's messages too.

    Raises:
        TargetError: the login node could not be reached.
    """
    head = "".join(
        f"{k}={shlex.quote(v)}\n" for k, v in {"job": job, "run": run, "messages": "1" if messages else ""}.items()
    )
    temporary = "list=$(mktemp) || exit 5\ntrap 'rm -f \"$list\"' EXIT\n"
    seen = "".join(f"{at} {name}\n" for name, at in cursor.items())
    done = transport.run(f"{head}limit={LIMIT}\n{temporary}{_READ}", seen.encode(), timeout=120)
    log, told, ended, now, rest = b"", b"", False, dict(cursor), done.out
    while rest:
        line, _, rest = rest.partition(b"\n")
        first, _, tail = line.decode(errors="surrogateescape").partition(" ")
        if first == "end":
            return Chunk(log, now, told, ended)
        size, _, name = tail.partition(" ")
        data, rest = rest[: int(size)], rest[int(size) :]
        if len(data) < int(size):
            break
        if name == _ENDED:
            ended = True
            continue
        now[name] = int(first) + int(size)
        if name == _MESSAGES:
            told += data
        else:
            log += data
    raise TargetError(f"{transport.where}: {job}: its log was cut off on its way. Ask again.")


def _names(job: Path) -> Iterator[str]:
    for folder in ("", "ray/logs"):
        try:
            yield from (os.path.join(folder, name) for name in os.listdir(job / folder))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _logs(names: Iterable[str]) -> list[str]:
    """The log's files in order: of each start, then the batch script's."""

    def place(name: str) -> tuple[bool, int, str]:
        found = _LOG.fullmatch(name)
        return (os.path.basename(name).startswith("sbatch_"), int(found[1] or 0) if found else 0, name)

    return sorted(filter(_LOG.fullmatch, names), key=place)


def _piece(file: Path, at: int, limit: int) -> tuple[bytes, int]:
    try:
        with open(file, "rb") as f:
            at = at if at <= os.fstat(f.fileno()).st_size else 0
            f.seek(at)
            return f.read(limit), at
    except FileNotFoundError:
        return b"", at


def send_inputs(transport: Transport, base: str, inputs: Mapping[Path, str]) -> dict[str, str]:
    """Copy inputs to ``<base>/inputs/<digest>/<name>`` unless they lie there; path here -> path there.

    Raises:
        TargetError: the login node could not be reached, or the files not be written there.
    """
    places = {path: f"{base}/inputs/{_short(digest)}" for path, digest in inputs.items()}
    lacking = _lacking(transport, [f"{folder}/{path.name}" for path, folder in places.items()])
    for path, folder in places.items():
        if f"{folder}/{path.name}" in lacking:
            _put_whole(transport, path, f"{base}/inputs", folder)
    return {str(path): f"{folder}/{path.name}" for path, folder in places.items()}


def _put_whole(transport: Transport, path: Path, inputs: str, folder: str) -> None:
    """A folder beside its place first, then renamed: who comes first wins, and nobody ever sees a part of it."""
    part = f"{inputs}/.{uuid.uuid4().hex}"
    transport.put({path.name: path}, part)
    there = shlex.quote(f"{folder}/{path.name}")
    move = f"mv -T {shlex.quote(part)} {shlex.quote(folder)} 2>/dev/null"
    alone = f"mv -n -T {shlex.quote(f'{part}/{path.name}')} {there}; rm -rf {shlex.quote(part)}"
    transport.run(f"{move} || {{ {alone}; }}\n[ -e {there} ]")


def _lacking(transport: Transport, paths: list[str]) -> set[str]:
    if not paths:
        return set()
    script = f'set -- {shlex.join(paths)}\nfor p in "$@"; do [ -e "$p" ] || printf "%s\\n" "$p"; done'
    return set(transport.run(script).out.decode().splitlines())


def _short(digest: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", digest.rpartition(":")[2])[:16]
