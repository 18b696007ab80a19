"""Submitting to Slurm so that a crash at any instant leaves one job, which is found again.

One small shell script on the login node does it, under a lock on the job's directory. It marks the attempt before
``sbatch`` and keeps the id after it; where a mark has no id beside it, the job is looked for by its unique name. What
even that may miss (a request that slurmctld answers after everybody died) the job's own claim catches, see
slurm_script.py.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from nemotron_dagster.config.secrets import is_secret
from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.transport import Done, Transport

_PATIENCE = 600.0  # seconds for sbatch, which asks a busy controller again and again by itself
_IMPORT = 24 * 3600.0  # seconds for an image to be imported: the allocation for it has to wait its turn


class Refused(TargetError):
    """The target said no: nothing was submitted, and nothing will be unless something is changed."""

    refused = True


@dataclass(frozen=True)
class Known:
    """What lies on the login node already: the job's id ("" where there is no job), and which paths are lacking."""

    id: str
    lacking: tuple[str, ...] = ()


#: ``known`` prints the id of the job that this key has, or nothing. 3: Slurm cannot say now.
_KNOWN = """
export LC_ALL=C
known() {
  if [ -s "$job/jobid" ]; then cat "$job/jobid"; return 0; fi
  claim=$(readlink "$job/claim" 2>/dev/null)
  case "$claim" in ''|*[!0-9]*) ;; *) echo "$claim"; return 0 ;; esac
  [ -s "$job/attempt" ] || return 0
  read -r began name <"$job/attempt"
  tries=0
  while :; do
    seen=$(squeue -h -t all -u "$(id -u)" -n "$name" -o '%A|%T') || return 3
    since=now-$(( $(date +%s) - began + 3600 ))
    [ -n "$seen" ] || seen=$(sacct -X -n -P --name "$name" -S "$since" -o JobIDRaw,State 2>/dev/null)
    seen=$(printf '%s\\n' "$seen" | grep -v '|FAILED$' | sort -n | head -n 1)  # Slurm keeps those that it refused
    if [ -n "$seen" ]; then printf '%s\\n' "${seen%%|*}"; return 0; fi
    tries=$((tries + 1))
    [ "$tries" -lt 4 ] && [ $(( $(date +%s) - began )) -lt 30 ] || return 0
    sleep 1
  done
}
keep() { printf '%s\\n' "$1" >"$job/.jobid" && mv -f "$job/.jobid" "$job/jobid"; }
"""

_PROBE = """
id=$(known) || exit 3
[ -z "$id" ] || echo "id $id"
for path in "$@"; do [ -e "$path" ] || echo "lacks $path"; done
"""

#: sbatch inherits the lock, so that who comes next waits even where this script was killed while sbatch goes on.
_SUBMIT = """
mkdir -p "$job" "$run" "$base/ray_temp" "$base/inputs" || exit 5
exec 9>>"$job/.lock" || exit 5
flock -w 300 9
[ $? != 1 ] || { echo "another process submits this very job" >&2; exit 3; }
id=$(known) || exit 3
if [ -n "$id" ]; then keep "$id" && echo "id $id"; exit; fi
if [ -n "$code" ] && ! [ -e "$run/code" ]; then
  rm -rf "$run/.code" && mkdir "$run/.code" && tar -xzf "$code" -C "$run/.code" && mv "$run/.code" "$run/code" || exit 5
fi
mkdir -p "$run/code" "$run/output" || exit 5
if [ "$job" != "$run" ] && [ -e "$run/messages.jsonl" ]; then wc -c <"$run/messages.jsonl" >"$job/messages.start"; fi
if [ -n "$secret" ]; then
  (umask 077 && mkdir -p "${secret%/*}" && cat >"$secret.part") || exit 5
  if [ "$(tail -n 1 "$secret.part")" != "# end" ]; then rm -f "$secret.part"; exit 6; fi
  chmod 600 "$secret.part" && mv -f "$secret.part" "$secret" || exit 5
fi
printf '%s %s\\n' "$(date +%s)" "$name" >"$job/.attempt" && mv -f "$job/.attempt" "$job/attempt" || exit 5
cd "$run" || exit 5
id=$("$@" 2>"$job/.sbatch"); code=$?
id=${id%%;*}
case "$id" in ''|*[!0-9]*) cat "$job/.sbatch" >&2; [ "$code" != 127 ] && exit 7; exit 8 ;; esac
rm -f "$job/.sbatch"
keep "$id"
echo "id $id"
"""

_PREPARE = """
mkdir -p "${path%/*}" || exit 5
exec 9>>"$path.lock" || exit 5
flock 9 || [ $? != 1 ] || exit 3
if [ -n "$force" ] || ! [ -e "$path" ]; then
  bash -c "$command" 9>&- 2>&1 || exit 7
fi
"""


def probe(transport: Transport, directory: str, paths: tuple[str, ...]) -> Known:
    """Whether the job is known, and which of ``paths`` are not there.

    Raises:
        TargetError: the login node or Slurm could not be reached.
    """
    script = f"{_set(job=directory)}set -- {shlex.join(paths)}\n{_KNOWN}{_PROBE}"
    done = transport.run(script, timeout=120, check=False)
    _reached(transport, done)
    lines = [line.partition(" ") for line in done.out.decode().splitlines()]
    found = next((value for word, _, value in lines if word == "id"), "")
    return Known(found, tuple(value for word, _, value in lines if word == "lacks"))


def submit(
    transport: Transport,
    command: tuple[str, ...],
    name: str,
    *,
    job: str,
    run: str,
    base: str,
    code: str = "",
    secret_file: str = "",
    secrets: Mapping[str, str] | None = None,
    script: str = "",
) -> str:
    """Submit once, or find that it was; the id of the job.

    Args:
        job, run: the directories of this job and of the first one of its walltime chain.
        code: archive on the login node to unpack to ``run/code``.
        script: the batch script: what it says wins over what the environment tells sbatch.

    Raises:
        Refused: sbatch took it not.
        TargetError: whether there is a job is not known; the next try finds it or submits.
    """
    lines = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in (secrets or {}).items())
    values = _set(job=job, run=run, base=base, code=code, secret=secret_file if secrets else "", name=name)
    cleared = f"unset {' '.join(sorted(_unwanted(secrets or {}, script)))}\n"
    body = f"{values}set -- {shlex.join(command)}\n{cleared}{_KNOWN}{_SUBMIT}"
    done = transport.run(body, f"{lines}# end\n".encode(), timeout=_PATIENCE, check=False)
    _reached(transport, done)
    if done.code == 8:
        raise Refused(f"{transport.where}: there is no sbatch. Set host in the profile to a login node of the cluster.")
    if done.code == 7:
        words = refusal(done.err.decode(errors="replace"))
        raise Refused(f"{transport.where}: sbatch refused the job: {words}. {_advice(words)}")
    found = done.out.decode().split()
    if len(found) != 2:
        raise TargetError(f"{transport.where}: no id came back from sbatch. Run again: it finds the job.")
    return found[1]


def prepare(transport: Transport, path: str, command: str, force: bool) -> None:
    """Make what a job needs before it is submitted, unless it is there; one process at a time.

    Raises:
        Refused: the command failed, with the end of what it wrote.
        TargetError: the login node could not be reached.
    """
    script = _set(path=path, command=command, force="1" if force else "") + _PREPARE
    done = transport.run(script, timeout=_IMPORT, check=False)
    if done.code:
        lines = (done.out + done.err).decode(errors="replace").strip().splitlines()
        tail = "\n".join(lines[-12:])
        raise Refused(f"{transport.where}: {path} could not be made (exit code {done.code}):\n{tail}\nMend that.")


def find(transport: Transport, directory: str) -> str:
    """The id of the job whose directory this is; "" where none was ever submitted.

    Raises:
        TargetError: the login node or Slurm could not be reached.
    """
    return probe(transport, directory, ()).id


def cancel(transport: Transport, job_id: str, directory: str) -> None:
    """End a job, waiting or running; one that has ended or was forgotten is left as it is.

    Raises:
        TargetError: the login node or Slurm could not be reached: the job goes on.
    """
    done = transport.run(f"{_set(job=directory, id=job_id)}{_CANCEL}", timeout=120, check=False)
    text = done.err.decode(errors="replace").strip()
    if done.code and not _OVER.search(text):
        last = text.splitlines()[-1].rstrip(".") if text else f"exit code {done.code}"
        raise TargetError(f"{transport.where}: job {job_id} could not be cancelled: {last}. Cancel it again.")


def abandon(transport: Transport, directory: str, successor: str) -> bool:
    """Take a job's claim away from it for good, unless it has it: then False.

    Raises:
        TargetError: the login node or Slurm could not be reached; whether the claim is taken is not known.
    """
    done = transport.run(f"{_set(job=directory, successor=successor)}{_ABANDON}", timeout=120, check=False)
    text = done.err.decode(errors="replace").strip()
    if done.code not in (0, 9):
        last = text.splitlines()[-1].rstrip(".") if text else f"exit code {done.code}"
        raise TargetError(f"{transport.where}: {directory}: its lost job could not be given up: {last}. Run again.")
    return done.code == 0


def remove(transport: Transport, secret_file: str) -> None:
    """Remove a job's secrets.

    Raises:
        TargetError: the login node could not be reached.
    """
    path = shlex.quote(secret_file)
    transport.run(f"rm -f {path} {path}.part")


_OVER = re.compile(r"invalid job id|already (completing|completed)|has terminated", re.I)
#: By its name too: a controller that lost its state may have given the id to another job.
_CANCEL = """
export LC_ALL=C
name=
[ ! -s "$job/attempt" ] || read -r began name <"$job/attempt"
if [ -n "$name" ]; then scancel --name="$name" "$id"; else scancel "$id"; fi
"""

#: The claim is what decides: whoever makes the link has it. A job that Slurm still keeps is removed for tidiness.
_ABANDON = """
export LC_ALL=C
name=
[ ! -s "$job/attempt" ] || read -r began name <"$job/attempt"
mkdir -p "$job" || exit 5
[ -z "$name" ] || scancel --state=PENDING --user="$(id -un)" --name="$name" || exit 3
ln -s "$successor" "$job/claim" 2>/dev/null
[ -L "$job/claim" ] || { echo "its directory cannot be written" >&2; exit 5; }
[ "$(readlink "$job/claim")" = "$successor" ] || exit 9
"""

#: What a command of Slurm says when it got no answer, so that nothing is known: not a refusal.
_NO_ANSWER = re.compile(
    r"unable to contact slurm controller|socket timed out|zero bytes were transmitted|communication (connect|shutdown)"
    r"|message (send|receive) fail|standby mode|connect(ion)? (failure|refused|reset|timed out|closed)|not connected"
    r"|temporarily unable|resource temporarily unavailable|unexpected message|authentication (error|plugin)"
    r"|invalid authentication|munge|fail(ed|ure) to (fetch|load).*config|could not establish a configuration"
    r"|fetch_config|incompatible versions|header lengths|unable to resolve|network is unreachable|no route to host"
    r"|slurm_persist_conn|protocol version",
    re.I,
)


def no_answer(text: str) -> bool:
    """Whether these words of a command of Slurm mean that the scheduler could not be asked."""
    return bool(_NO_ANSWER.search(text))


def refusal(text: str) -> str:
    """sbatch's own words, without what repeats itself."""
    lines = [re.sub(r"^(sbatch: )?((error|fatal): )?", "", line).strip() for line in text.splitlines() if line.strip()]
    lines = [line.removeprefix("Batch job submission failed: ") for line in lines if not line.startswith("Try ")]
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines)) or "without a word"


#: What to change, by what sbatch said.
_ADVICE = (
    (r"account", "account; `sacctmgr show assoc user=$USER` lists yours"),
    (r"partition", "partition (run_partition, batch_partition); `sinfo -s` lists them"),
    (r"\bqos\b|qos ", "qos; `sacctmgr show qos` lists them"),
    (r"generic resource|gres", "gres or gpus_per_node; `sinfo -o '%P %G'` lists what there is"),
    (r"feature", "constraint; `sinfo -o '%P %f'` lists the features"),
    (r"reservation", "reservation; `scontrol show reservation` lists them"),
    (r"node name", "nodelist or exclude"),
    (r"dependency", "dependency"),
    (r"time limit", "time; `sinfo -o '%P %l'` lists the limits"),
    (r"memory", "mem, mem_per_cpu or mem_per_gpu"),
    (
        r"node count|node configuration",
        "nodes, gpus_per_node, cpus_per_task, mem or constraint; `sinfo -N -l` lists nodes",
    ),
    (r"unrecognized option|invalid option|ambiguous|unknown", "additional_parameters: it must be an option of sbatch"),
    (r"license", "additional_parameters: licenses"),
)


def _advice(words: str) -> str:
    text = words.lower()
    keys = next((keys for pattern, keys in _ADVICE if re.search(pattern, text)), None)
    return f"Change in the profile: {keys}." if keys else "Mend the profile; `-d` shows the batch script."


def _reached(transport: Transport, done: Done) -> None:
    """Raise TargetError where the script could not tell."""
    text = done.err.decode(errors="replace").strip()
    if done.code in (0, 8) or (done.code == 7 and text and not no_answer(text)):
        return
    last = text.splitlines()[-1].rstrip(".") if text else f"exit code {done.code}"
    if done.code == 5:
        raise Refused(f"{transport.where}: {last}. Make remote_job_dir a directory that you can write to.")
    raise TargetError(f"{transport.where}: Slurm gives no answer: {last}. Run again: a job that is there is found.")


def _set(**values: str) -> str:
    return "".join(f"{k}={shlex.quote(v)}\n" for k, v in values.items())


def _unwanted(secrets: Mapping[str, str], script: str) -> set[str]:
    """Variables that sbatch must not see: secrets, which it would hand on to Slurm's own files, and its own options.

    What a variable such as SBATCH_PARTITION says would win over the script.
    """
    hidden = {v for v in secrets.values() if v}
    long = {v for v in hidden if len(v) >= 8}
    found = {k for k, v in os.environ.items() if is_secret(k) or v in hidden or any(s in v for s in long)}
    options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.M)
    options += ["array_inx", "job_name", "output", "error", "wait", "wait_all_nodes", "open_mode", "export"]
    options += ["no_requeue", "requeue", "delay_boot", "spread_job", "ignore_pbs", "overcommit", "no_kill", "timelimit"]
    names = {f"SBATCH_{o.replace('-', '_').upper()}" for o in options}
    return {n for n in (found | set(secrets) | names) - _NEEDED if re.fullmatch(r"[A-Za-z_]\w*", n)}


_NEEDED = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "SLURM_CONF", "PWD"}
