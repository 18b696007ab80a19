"""What Slurm says of many jobs, in one round trip: one squeue for all, one sacct for those that have ended.

squeue forgets a job some minutes after its end, and accounting may lag behind, be down, or not exist at all. So what
the jobs' own marks say is taken where Slurm says nothing, and a job is lost only when all have been silent for long.
A controller that was killed may also believe for minutes that a job runs which ended meanwhile: then the mark is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.slurm_partitions import duration
from nemotron_dagster.jobs.slurm_reasons import hopeless, signal_name, words
from nemotron_dagster.jobs.slurm_submit import no_answer
from nemotron_dagster.jobs.target import JobHandle, State, Status
from nemotron_dagster.jobs.transport import Transport

_UNSURE = 3  # times as long until a job is lost, where the accounting cannot be asked for it
_SETTLE = 30  # seconds in which accounting may still tell more of a job that has left its end mark

#: Slurm's state -> ours; those that are not here have not ended.
_ENDED: Mapping[str, State] = {
    "COMPLETED": State.SUCCEEDED,
    "FAILED": State.FAILED,
    "CANCELLED": State.CANCELLED,
    "TIMEOUT": State.TIMEOUT,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "PREEMPTED": State.PREEMPTED,
    "NODE_FAIL": State.NODE_FAIL,
    "BOOT_FAIL": State.NODE_FAIL,
    "LAUNCH_FAILED": State.NODE_FAIL,
    "RECONFIG_FAIL": State.NODE_FAIL,
    "DEADLINE": State.FAILED,  # a follow-up job would be as late
    "REVOKED": State.CANCELLED,
}
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_GONE = -2  # instead of seconds: the job's directory is not there
_QUEUE = "JobID,Name,State,exit_code,RestartCnt,SubmitTime,StartTime,EndTime,tres-alloc,NodeList,Reason"
_ACCOUNT = (
    "JobIDRaw,JobName,State,ExitCode,DerivedExitCode,Submit,Start,End,"
    "AllocTRES,TotalCPU,CPUTimeRAW,MaxRSS,NodeList,Reason"
)

#: Reads ``id key directory`` lines. Q: rows of squeue; A: of sacct; M: marks of jobs that have ended or are
#: not known, by key: a controller that lost its state gives ids again.
_SCRIPT = r"""
export LC_ALL=C SLURM_TIME_FORMAT=%s
asked=$(cat)
ids=$(printf '%s\n' "$asked" | cut -d' ' -f1 | paste -sd, -)
queue=$(squeue -h -t all -u "$(id -u)" -j "$ids" -O "$fields" 2>&1) || case "$queue" in
  *"Invalid job id"*) queue= ;;
  *) printf '%s\n' "$queue" >&2; exit 3 ;;
esac
over=$(printf '%s\n==\n%s\n' "$queue" "$asked" | awk -F'|' -v ended="$ended" '
  asked { split($0, a, " "); n = name[a[1]]; s = state[a[1]]
          ours = substr(n, length(n) - length(a[2])) == "." a[2]
          if (!ours || index(ended, " " s " ")) print $0 " " (ours ? s : "-"); next }
  $0 == "==" { asked = 1; next }
  { name[$1] = $2; state[$1] = $3 }')
printf '%s\n' "$queue" | sed 's/^/Q|/'
now=$(date +%s)
echo "N|$now"
printf '%s\n' "$asked" | while read -r id key dir; do
  [ -r "$dir/ended" ] && read -r code starts at <"$dir/ended" && [ $((now - at)) -gt "$stale" ] || continue
  printf '%s\n' "$queue" | awk -F'|' -v id="$id" -v key="$key" '
    $1 == id && $3 == "RUNNING" { n = split($2, w, "."); if (w[n] == key) found = 1 } END { exit !found }' || continue
  echo "M|$key||$code $starts $at|$((now - at))||"
done
[ -n "$over" ] || exit 0
gone=$(printf '%s\n' "$over" | cut -d' ' -f1 | paste -sd, -)
tries=0
while :; do
  told=$(sacct -n -P -j "$gone" -o "$columns" 2>&1) || { echo "X|sacct"; told=; break; }
  late=$(printf '%s\n==\n%s\n' "$told" "$over" | awk -F'|' -v ended="$ended" '
    over { split($0, a, " "); if (a[4] != "-" && !(a[1] in done)) late++; next }
    $0 == "==" { over = 1; next }
    { split($3, s, " "); if (index(ended, " " s[1] " ")) done[$1] = 1 }
    END { print late + 0 }')
  tries=$((tries + 1))
  [ "$late" != 0 ] && [ "$tries" -lt 4 ] || break
  sleep 0.5
done
printf '%s\n' "$told" | sed 's/^/A|/'
for uid in $(printf '%s\n' "$told" | sed -n 's/.*|CANCELLED by \([0-9][0-9]*\)|.*/\1/p' | sort -u); do
  echo "U|$uid|$(id -un "$uid" 2>/dev/null || echo "user $uid")"
done
finished=$(printf '%s\n' "$told" | awk -F'|' -v ended="$ended" '
  { split($3, s, " "); n = split($2, w, "."); if (index(ended, " " s[1] " ")) printf " %s/%s ", $1, w[n] }')
printf '%s\n' "$over" | while read -r id key dir state; do
  claim= mark= age=-1 said= oom=
  [ -L "$dir/claim" ] && claim=$(readlink "$dir/claim")
  [ -r "$dir/ended" ] && read -r mark <"$dir/ended"
  case "$finished" in *" $id/$key "*) state=known ;; esac
  if [ "$state" = - ]; then
    age=-2
    if [ -d "$dir" ]; then
      since=$now last=$now
      [ -r "$dir/missing" ] && read -r since last <"$dir/missing"
      [ $((now - last)) -lt 900 ] || since=$now
      printf '%s %s\n' "$since" "$now" >"$dir/missing"
      age=$((now - since))
    fi
  elif [ -e "$dir/missing" ]; then
    rm -f "$dir/missing"
  fi
  case "$mark" in 0\ *) ;; *)
    for file in "$dir"/sbatch_*_"$id".out "$dir"/log-*_"$id"_*.out "$dir"/ray/logs/sbatch_*_"$id".out; do
      [ -r "$file" ] || continue
      end=$(tail -c 65536 "$file")
      [ -n "$said" ] || said=$(printf '%s\n' "$end" | grep -a -m1 -E '^srun: error: .*: tasks? [^ ]+: ' | tr '|' ' ')
      [ -n "$oom" ] || oom=$(printf '%s\n' "$end" | grep -a -m1 -c -E \
        '^slurmstepd.*: error: .*([Ee]xceeded (job )?memory limit|oom[-_ ]kill)' | grep -v '^0')
    done ;;
  esac
  echo "M|$key|$claim|$mark|$age|$oom|$said"
done
"""


@dataclass(frozen=True)
class _Answer:
    queue: Mapping[str, list[str]] = field(default_factory=dict)
    account: Mapping[str, list[list[str]]] = field(default_factory=dict)
    marks: Mapping[str, list[str]] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    accounting: bool = True


def statuses(transport: Transport, handles: Iterable[JobHandle], lost_after: int) -> dict[str, Status]:
    """Key -> status of each job, by one round trip.

    ``lost_after``: seconds in which neither Slurm nor the job's own marks know it, after which it is lost.

    Raises:
        TargetError: the login node or Slurm could not be reached.
    """
    asked = list(handles)
    if not asked:
        return {}
    answer = _ask(transport, asked, lost_after)
    found, moved = {}, []
    for handle in asked:
        claim = answer.marks.get(handle.key, [""] * 6)[1]
        if claim.isdigit() and claim != handle.id:  # a job of an earlier try does the work, this one has ended at once
            moved.append(replace(handle, id=claim))
        found[handle.key] = _status(answer, handle, lost_after)
    return found | statuses(transport, moved, lost_after) if moved else found


def _ask(transport: Transport, handles: list[JobHandle], stale: int) -> _Answer:
    suffixed = ",".join(f"{name}:|" for name in _QUEUE.split(","))
    head = f"fields='{suffixed}'\ncolumns='{_ACCOUNT}'\nended=' {' '.join(_ENDED)} '\nstale={stale}\n"
    lines = "".join(f"{h.id or 0} {h.key} {h.directory}\n" for h in handles)
    done = transport.run(head + _SCRIPT, lines.encode(), timeout=120, check=False)
    text = done.err.decode(errors="replace").strip()
    if done.code:
        last = text.splitlines()[-1].rstrip(".") if text else f"exit code {done.code}"
        kind = "Slurm gives no answer" if no_answer(text) or not text else "squeue failed"
        raise TargetError(f"{transport.where}: {kind}: {last}. Its jobs go on; ask again.")
    queue: dict[str, list[str]] = {}
    account: dict[str, list[list[str]]] = {}
    marks: dict[str, list[str]] = {}
    users: dict[str, str] = {}
    accounting = True
    for line in done.out.decode(errors="replace").splitlines():
        kind, _, rest = line.partition("|")
        if kind == "Q" and len(row := rest.split("|", 10)) == 11 and row[0].isdigit():
            row[10] = row[10].rstrip("|")
            queue[row[0]] = row
        elif kind == "A" and len(row := rest.split("|", 13)) == 14 and row[0][:1].isdigit():
            account.setdefault(re.split(r"[.+]", row[0])[0], []).append(row)
        elif kind == "M":
            row = rest.split("|", 5)
            marks[row[0]] = row
        elif kind == "U":
            uid, _, name = rest.partition("|")
            users[uid] = name
        elif kind == "X":
            accounting = False
    return _Answer(queue, account, marks, users, accounting)


def _status(answer: _Answer, handle: JobHandle, lost_after: int) -> Status:
    row = answer.queue.get(handle.id)
    if row is not None and not row[1].endswith(f".{handle.key}"):
        row = None  # a controller that lost its state gave the id to another job
    told = answer.account.get(handle.id, [])
    told = told if told and told[0][1].endswith(f".{handle.key}") else []
    _, claim, mark, age, oom, said = answer.marks.get(handle.key, ["", "", "", "-1", "", ""])
    if row is not None and row[2] == "RUNNING" and mark and int(age) > lost_after:
        return _unknown(claim, mark, int(age), lost_after, False, oom, said)  # only Slurm has missed its end
    if row is not None and row[2] not in _ENDED:
        return _live(row)
    restarts = int(mark.split()[1]) if mark else int(row[4]) if row is not None else 0
    if told and told[0][2].split()[0] in _ENDED:
        return replace(_accounted(told, answer.users, mark, oom, said), restarts=restarts)
    if row is not None:
        return replace(_from_queue(row, mark, oom, said), restarts=restarts)
    limit = lost_after if answer.accounting else lost_after * _UNSURE
    return _unknown(claim, mark, int(age), limit, answer.accounting, oom, said)


def _live(row: list[str]) -> Status:
    """Of a job that has not ended, as squeue has it."""
    state, reason = row[2], "" if row[10] in ("None", "") else row[10]
    waiting = state in _WAITING
    return Status(
        State.PENDING if waiting else State.RUNNING,
        reason=words(state, reason) if waiting else "",
        raw=state,
        hopeless=waiting and hopeless(state, reason),
        nodes="" if waiting else _text(row[9]),
        submitted=_time(row[5]),
        started=None if waiting else _time(row[6]),
        estimate=_time(row[6]) if waiting else None,
        gpus=_gpus(row[8]),
        restarts=int(row[4]) if row[4].isdigit() else 0,
    )


def _from_queue(row: list[str], mark: str, oom: str, said: str) -> Status:
    """Of a job that has just ended, or of one whose cluster keeps no accounts."""
    raw = row[3]
    if ":" in raw:
        code, signal = (int(n) for n in raw.split(":"))
    else:  # as wait() has it
        code, signal = (int(raw) >> 8 & 0xFF, int(raw) & 0x7F) if raw.isdigit() else (0, 0)
    if mark and row[2] == "FAILED" and not (code or signal):
        code = int(mark.split(maxsplit=1)[0])
    status = Status(
        _ENDED[row[2]],
        raw=row[2],
        nodes=_text(row[9]),
        submitted=_time(row[5]),
        started=_time(row[6]),
        ended=_time(row[7]),
        gpus=_gpus(row[8]),
    )
    return _ended(status, row[2], row[10], code, signal, oom, said)


def _accounted(rows: list[list[str]], users: Mapping[str, str], mark: str, oom: str, said: str) -> Status:
    """Of a job that has ended, as accounting has it: its own row, then those of its steps."""
    job, steps = rows[0], rows[1:]
    state, _, by = job[2].partition(" by ")
    code, signal = (int(n) for n in job[3].split(":"))
    first = [int(n) for n in (job[4] or "0:0").split(":")]
    if any(first) and code:  # of the step itself; srun adds up what it did to the other tasks
        code, signal = first
    elif mark and (code or (state == "FAILED" and not signal)):
        code = int(mark.split(maxsplit=1)[0])  # sacct writes 139 as 11, and for a moment nothing but the state
    figures: dict[str, float] = {}
    cpu, given = duration(job[9]), float(job[10] or 0)
    if given > 0:
        figures["cpu_efficiency"] = round(min(cpu / given, 1.0), 4)
    memory = max((_bytes(r[11]) for r in steps), default=0)
    if memory:
        figures["max_rss_bytes"] = memory
    status = Status(
        _ENDED[state.split()[0]],
        raw=job[2],
        nodes=_text(job[12]),
        submitted=_time(job[5]),
        started=_time(job[6]),
        ended=_time(job[7]) or (float(mark.split()[2]) if mark else None),
        gpus=_gpus(job[8]),
        figures=figures,
    )
    if any(r[2].startswith("OUT_OF_ME") for r in steps):
        oom = "1"
    status = _ended(status, state.split()[0], job[13], code, signal, oom, said)
    return replace(status, reason=f"by {users.get(by, by)}") if by and status.state is State.CANCELLED else status


def _unknown(claim: str, mark: str, age: int, limit: int, accounting: bool, oom: str, said: str) -> Status:
    """Of a job that Slurm does not know: not yet, or no longer."""
    if mark and (age > min(_SETTLE, limit) or age == _GONE or not accounting):
        code, starts, at = (int(n) for n in mark.split())
        status = Status(State.SUCCEEDED if code == 0 else State.FAILED, raw="FORGOTTEN", ended=float(at))
        return replace(_ended(status, "", "", code, 0, oom, said), restarts=starts)
    if age == _GONE:
        return Status(State.LOST, reason="Slurm does not know it, and its directory is gone", raw="UNKNOWN")
    if age > limit and not claim.isdigit():
        return Status(State.LOST, reason="Slurm lost it before it began", raw="UNKNOWN", never_began=True)
    if age > limit:
        return Status(State.LOST, reason="Slurm lost it while it ran, and it left no mark of its end", raw="UNKNOWN")
    return Status(
        State.RUNNING if claim.isdigit() else State.PENDING,
        reason="" if claim.isdigit() else "Slurm is taking it up",
        raw="UNKNOWN",
    )


def _ended(status: Status, state: str, reason: str, code: int, signal: int, oom: str, said: str) -> Status:
    """How it ended: exit code (minus the signal that killed it) and reason."""
    if status.state is State.SUCCEEDED:
        return replace(status, exit_code=0)
    if status.state is not State.FAILED or state == "DEADLINE":
        return replace(status, exit_code=code or None, reason=words(state, reason))
    first = re.search(r"error: (\S+): tasks? ([\d,-]+): (?:Exited with exit code (\d+))?", said)
    if first and first[3] and code in (128 + 9, 128 + 15) and not signal:
        code = int(first[3])  # the others were killed because of this one
    if not signal and 128 < code <= 128 + 64:
        signal = code - 128
    if oom and (signal == 9 or code == 9):
        return replace(status, state=State.OUT_OF_MEMORY, exit_code=-9, reason=words("OUT_OF_MEMORY", ""))
    where = f", task {first[2]} on {first[1]}" if first else ""
    if signal:
        return replace(status, exit_code=-signal, reason=f"killed by {signal_name(signal)}{where}")
    own = words(state, reason)
    return replace(status, exit_code=code, reason=own or (f"exit code {code}{where}" if where else ""))


def _text(value: str) -> str:
    return "" if value in ("None assigned", "(null)", "N/A") else value


def _time(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) and float(value) > 0 else None


def _gpus(tres: str) -> int:
    counts = dict(p.split("=", 1) for p in tres.split(",") if p.startswith("gres/gpu") and "=" in p)
    numbers = {k: int(v) for k, v in counts.items() if v.isdigit()}
    return numbers.get("gres/gpu") or sum(numbers.values())


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)", text)
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else 0
