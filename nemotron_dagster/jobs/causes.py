"""The likely cause of a failed job in one sentence with what to do, and the end of its log as a person can read it.

Many processes write one log. When one fails the others follow: torchrun reports its children, collectives time out,
pipes break. So the first line that is an error of its own counts, and what may be an echo counts only where there is
nothing better.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.files import printable
from nemotron_dagster.jobs import cause_rules
from nemotron_dagster.jobs.cause_rules import ECHO, ERROR, HINT, RULES, VERDICT

_READ = 1 << 20  # bytes of a log that are looked at
_WIDTH, _QUOTE, _LINES = 400, 200, 4000
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: ``0: `` of srun --label, ``[rank3]:`` of PyTorch, ``[default3]:`` of torchrun, ``(Worker pid=7) `` of Ray.
_PREFIX = re.compile(r"^(?: *\d{1,5}: |\[(?:rank|default)?\d{1,5}\]:? ?|\([^()]{1,60}pid=\d+[^()]{0,40}\) )")
_RANK = re.compile(r"\[?\b[Rr]ank[ =:]?(\d{1,5})\b|^\[default(\d{1,5})\]|^ *(\d{1,5}): ")
_HOST = re.compile(r"^([\w.-]+):\d+:\d+ \[\d+\] NCCL|(?:srun|slurmstepd)[^:]*: error: ([\w.-]+): task")
_WARNING = re.compile(r"\b(?:WARNING|\w*Warning)\b|\[W\d{3,}")  # not WARN: NCCL's errors are called so
_FRAME = re.compile(r'\s+File ".*", line \d+')
_CONTEXT = "During handling of the above exception, another exception occurred:"
#: The scheduler ended this attempt and may start another, whose output follows.
_REQUEUED = re.compile(r"CANCELLED AT \S+ DUE TO (?:PREEMPTION|NODE FAILURE|JOB REQUEUE)")
_AGAIN = -1
_ASSIGNED = re.compile(r"""([A-Za-z_][\w.-]*)("?'?\s*[=:]\s*["']?)([^\s"',;&<>]{6,})""")
_OPTION = re.compile(r"""--([\w-]+)(\s+["']?)([^\s"'<>-][^\s"'<>]{5,})""")
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w+/=.~-]{8,}")
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@")

#: Scheduler states that say the cause themselves.
_STATES = {
    "TIMEOUT": cause_rules.TIME_LIMIT,
    "DEADLINE": cause_rules.TIME_LIMIT,
    "OUT_OF_MEMORY": cause_rules.HOST_MEMORY,
    "PREEMPTED": cause_rules.PREEMPTED,
    "NODE_FAIL": cause_rules.NODE_FAILED,
    "BOOT_FAIL": cause_rules.NODE_FAILED,
}
_NO_FAILURE = ("COMPLETED", "SUCCEEDED", "CANCELLED", "PENDING", "RUNNING")
#: Exit codes of shells, and the negative ones of Python's subprocess, that say something by themselves.
_CODES = {
    126: cause_rules.NOT_EXECUTABLE,
    127: cause_rules.NO_COMMAND,
    128 + signal.SIGKILL: cause_rules.PERHAPS_MEMORY,
    -signal.SIGKILL: cause_rules.PERHAPS_MEMORY,
    128 + signal.SIGSEGV: cause_rules.SEGFAULT,
    -signal.SIGSEGV: cause_rules.SEGFAULT,
}


def likely_cause(state: str, exit_code: int | None, tail: str) -> str | None:
    """One sentence that says why the job probably failed, and what to do; None where nothing tells.

    ``state`` is the scheduler's (``OUT_OF_MEMORY``) or ours (``FAILED``), ``tail`` the end of the log, the longer the
    better. A signal that ended the job may be given as exit code 128 + n or -n.
    """
    named = state.strip().upper().split(" ")[0].rstrip("+")
    if named in _NO_FAILURE and not (named == "CANCELLED" and "DUE TO" in tail):
        return None
    found = _found(tail)
    error, verdict = found.get(ERROR), found.get(VERDICT)
    if named in _STATES and (verdict is None or named in ("TIMEOUT", "DEADLINE")):
        verdict = _filled(_STATES[named])
    if verdict == cause_rules.TIME_LIMIT and error:  # the others may have waited for one that had failed
        return f"{verdict} An error before that: {error}"
    if verdict or error:
        return verdict or error
    if exit_code in (128 + signal.SIGSEGV, -signal.SIGSEGV):
        return _filled(cause_rules.SEGFAULT)
    by_code = _filled(_CODES[exit_code]) if exit_code in _CODES else None
    return found.get(HINT) or by_code or found.get(ECHO)


def tail_of(log: bytes | Path, lines: int = 12) -> str:
    """The last lines of a log: redrawn lines as they stood last, nothing that moves a terminal, secrets hidden.

    A log that is not there or cannot be read has none.
    """
    data = log if isinstance(log, bytes) else _end_of(log)
    if len(data) > _READ:
        data = data[-_READ:]
    text = data.decode("utf-8", "replace")
    kept: list[str] = []
    for line in reversed(text.rstrip().split("\n")):
        if len(kept) == lines:
            break
        kept.append(_shown(line))
    return "\n".join(reversed(kept)) if text.strip() else ""


def hide(text: str) -> str:
    """The text without what looks like a secret: well-known tokens, ``HF_TOKEN=...``, logins in URLs, bearer tokens."""
    text = _LOGIN.sub(rf"\1{HIDDEN}@", str(redact(text)))
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _OPTION.sub(lambda m: f"--{m[1]}{m[2]}{HIDDEN}" if is_secret(m[1]) else m[0], text)
    return _ASSIGNED.sub(lambda m: f"{m[1]}{m[2]}{HIDDEN}" if is_secret(m[1]) else m[0], text)


def _end_of(log: Path) -> bytes:
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _READ))
            return file.read(_READ)
    except OSError:
        return b""


def _shown(line: str) -> str:
    """One line as a terminal would show it in the end, safe to print."""
    states = [s for s in _ESCAPES.sub("", line).split("\r") if s.strip()]
    return printable(hide(states[-1].expandtabs(8).rstrip()), _WIDTH) if states else ""


def _found(tail: str) -> dict[int, str]:
    """For each level of sureness the sentence of the first line that has it."""
    wholes = [_ESCAPES.sub("", x)[:2000] for x in re.split(r"[\r\n]+", tail[-_READ:])][-_LINES:]
    pairs = [(bare, whole) for whole in wholes if (bare := _bare(whole)).strip()]
    found: dict[int, str] = {}
    quoted = False
    for i, (line, whole) in enumerate(pairs):
        quoted = bool(_FRAME.match(line)) or (quoted and line.startswith("    "))  # the code of a traceback's frame
        if quoted or _WARNING.search(whole):
            continue
        context = i + 1 < len(pairs) and _CONTEXT in pairs[i + 1][0]
        for rule in RULES:
            level = HINT if context and rule.level == ERROR else rule.level
            if match := rule.pattern.search(line):
                if level <= ERROR and _AGAIN in found:
                    found.clear()  # of an attempt before this one
                found.setdefault(level, _filled(rule.text, whole, match.groupdict()))
                break
        if _REQUEUED.search(line):
            found.pop(ERROR, None)
            found[_AGAIN] = ""
    return found


def _bare(line: str) -> str:
    while (bare := _PREFIX.sub("", line)) != line:
        line = bare
    return line


def _filled(text: str, line: str = "", groups: dict[str, str | None] | None = None) -> str:
    """The sentence with what the line says; every word of it is safe to print."""
    found = {k: printable(hide(v.strip()), _QUOTE) for k, v in (groups or {}).items() if v}
    rank = next((n for m in _RANK.finditer(line) for n in m.groups() if n), None)
    host = found.get("host") or next((n for m in _HOST.finditer(line) for n in m.groups() if n), None)
    places = [f"rank {rank}"] if rank else []
    places += [f"host {host}"] if host else []
    values = {
        "where": f" on {', '.join(places)}" if places else "",
        "line": printable(hide(line.strip()), _QUOTE),
        "module": found.get("module", ""),
        "port": found.get("port", "of the rendezvous or of a server"),
        "size": f" (it wanted {found['size']} more)" if "size" in found else "",
        "path": "",
    }
    if "path" in found:
        values["path"] = found["path"] if "{where}: {path}" in text else f" ({found['path']})"
    return text.format(**values)
