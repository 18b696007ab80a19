"""A real Slurm on this machine: munge, accounting in MariaDB, a controller and four nodes with two fake GPUs each.

All of it listens on loopback, on ports of its own, and lies in one directory: several can run side by side. Nothing is
read from or written to ``/etc``; whoever talks to it has ``SLURM_CONF`` in the environment.
"""

from __future__ import annotations

import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import processes
from processes import MARK, wait_until

NODES = ("n1", "n2", "n3", "n4")
CPUS, MEMORY, GPUS = 4, 4000, 2
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_SOCKET_LIMIT = 90  # of the 108 bytes that a socket's path may have


@dataclass(frozen=True)
class Job:
    """A job as the accounting has it. ``state`` is Slurm's word alone: ``CANCELLED``, not ``CANCELLED by 0``."""

    id: int
    name: str
    state: str
    exit_code: str
    reason: str
    nodes: str
    partition: str
    attempts: int = 1


class Cluster:
    """A Slurm in the directory ``root``. ``settings`` go into slurm.conf in place of ours.

    ``requeue_seconds`` is how long Slurm holds a requeued job back, by default 120 s; it is also how long a job's
    credential lives, so that a busy machine needs some seconds.
    """

    def __init__(self, root: Path, requeue_seconds: int = 10, **settings: object) -> None:
        self.root = root
        self.requeue_seconds = requeue_seconds
        self.settings = dict(settings)
        self.config = root / "etc/slurm.conf"
        self._run = root / "run"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to talk to this cluster."""
        return {"SLURM_CONF": str(self.config), "PATH": _PATH, MARK: str(self.root)}

    def command(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 60) -> str:
        """The stdout of a command of Slurm.

        Raises:
            AssertionError: it fails, with what it wrote.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "MUNGE_"))}
        done = subprocess.run(
            argv,
            input=stdin,
            env={**kept, **self.env},
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert not check or not done.returncode, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr}"
        return done.stdout

    # Life of the cluster

    def start(self) -> None:
        """Start it, and return when all nodes take jobs. What an earlier one left in the directory is cleaned up.

        Raises:
            AssertionError: a program is missing, or does not come up.
        """
        missing = [p for p in PROGRAMS if not shutil.which(p, path=_PATH)]
        assert not missing, f"{', '.join(missing)}: not installed. Run .ci/run, which installs what tests need."
        assert len(str(self.root)) < _SOCKET_LIMIT - 20, f"{self.root}: too long for sockets. Use a shorter --basetemp"
        self.stop()
        for folder in ("etc", "run", "log", "state", "db", "tmp", "gpu", "munge", *(f"spool/{n}" for n in NODES)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._configure()
        database = self._begin_database()
        self._start_munge()
        self._finish_database(database)
        self.start_dbd()
        self.start_controller(wait=False)
        for node in NODES:
            self.start_node(node)
        wait_until(self._all_idle, f"{self.root}/log: all nodes idle", 60)

    def stop(self) -> None:
        """End every process of it, jobs included, and remove all but its logs."""
        if self._alive("slurmctld"):
            self.command("scancel", "--signal=KILL", f"--user={getpass.getuser()}", check=False)
        order = (*(f"slurmd.{n}" for n in NODES), "slurmctld", "slurmdbd")
        processes.end([p for p in map(self._alive, order) if p])
        processes.end([p for p in map(self._alive, ("mariadbd", "munged")) if p])
        processes.end(processes.of_cluster(self.root), grace=2)
        for folder in ("etc", "run", "state", "db", "tmp", "gpu", "munge", "spool"):
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def kill_controller(self) -> None:
        """``kill -9`` of slurmctld: jobs run on, commands cannot reach it.

        It saves its state every five seconds, so that a job submitted just before may be unknown to it afterwards.
        """
        self._kill("slurmctld")

    def stop_controller(self) -> None:
        """Stop slurmctld as for maintenance: it saves its state first."""
        pid = self._alive("slurmctld")
        assert pid, "slurmctld does not run"
        processes.end([pid])

    def start_controller(self, wait: bool = True) -> None:
        """Start slurmctld, again, from the state that it saved."""
        self._daemon("slurmctld")
        if wait:
            wait_until(lambda: "UP" in self.command("scontrol", "ping", check=False), "slurmctld answers")

    def kill_dbd(self) -> None:
        """``kill -9`` of slurmdbd: sacct fails; the controller keeps what it has to tell until it is back."""
        self._kill("slurmdbd")

    def start_dbd(self) -> None:
        """Start slurmdbd, again."""
        self._daemon("slurmdbd")
        ask = ("sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster")
        wait_until(lambda: processes.from_file(self._pid_file("slurmdbd")), "slurmdbd runs")
        wait_until(lambda: self._answers(*ask), "slurmdbd answers", 60)
        if "test" not in self.command(*ask):
            self.command("sacctmgr", "--immediate", "add", "cluster", "test")

    def kill_node(self, node: str) -> None:
        """``kill -9`` of a node's slurmd, of its jobs' too, and tell Slurm that it is down: NODE_FAIL."""
        self._kill(f"slurmd.{node}")
        spool = str(self.root / f"log/slurmd.{node}.log")
        steps = [p for p in processes.of_cluster(self.root) if _holds(p, spool)]
        works = [d for p in steps for d in processes.descendants(p)]
        for p in (*steps, *works):  # those first that would tell the controller how the job ended
            with suppress(ProcessLookupError):
                os.kill(p, signal.SIGKILL)
        processes.end([*steps, *works], grace=0)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, again; ``resume_node`` brings a node back that was taken down."""
        self._daemon("slurmd", "-N", node)

    def resume_node(self, node: str) -> None:
        """Bring a node back that was killed or drained; returns when it takes jobs."""
        if not self._alive(f"slurmd.{node}"):
            self.start_node(node)

        def back() -> bool:
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return self.node_state(node) in ("idle", "mixed", "allocated")

        wait_until(back, f"{node} takes jobs", 60)

    def drain_node(self, node: str) -> None:
        """Let a node take no more jobs."""
        self.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=drained")

    def node_state(self, node: str) -> str:
        """``idle``, ``mixed``, ``down``, ``drained`` ..."""
        return self.command("sinfo", "--noheader", f"--nodes={node}", "-o", "%T").split("\n")[0].strip("*$#~ ")

    def configure(self, **settings: object) -> None:
        """Change lines of slurm.conf while it runs, e.g. ``MinJobAge=5``."""
        self.settings.update(settings)
        self._write_config()
        self.command("scontrol", "reconfigure")

    # Jobs

    def submit(self, script: str, *options: str) -> int:
        """``sbatch`` of a shell script; the job's id."""
        log = f"--output={self.root}/log/job-%j.out"
        out = self.command("sbatch", "--parsable", log, *options, stdin=f"#!/bin/sh\n{script}\n")
        return int(out.strip().split(";")[0])

    def expire(self, job_id: int) -> None:
        """Let a running job's time be up: TIMEOUT, when the controller next looks, which it does every 30 s."""
        self.command("scontrol", "update", f"jobid={job_id}", "timelimit=0")

    def jobs(self) -> list[Job]:
        """Every job that was ever submitted, by id, from the accounting; a requeued one once, as it is now.

        Raises:
            AssertionError: the accounting does not answer.
        """
        last = int(
            self.command(*self._client(), "--execute=select coalesce(max(id_job), 0) from slurm_acct_db.test_job_table")
        )
        ids = ",".join(map(str, range(1, last + 1)))  # by time, sacct leaves out jobs that never could start
        argv = (
            "sacct",
            "--allusers",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--duplicates",
            f"--jobs={ids or 1}",
        )
        out = self.command(*argv, "--format=JobIDRaw,JobName,State,ExitCode,Reason,NodeList,Partition")
        found: dict[tuple[int, str], Job] = {}
        for job in map(_job, out.splitlines()):  # each attempt is a line of its own, in order
            key = job.id, job.name  # a controller that was killed may give an id again
            found[key] = replace(job, attempts=found[key].attempts + 1) if key in found else job
        return [found[key] for key in sorted(found)]

    def job(self, job_id: int) -> Job | None:
        """One job, if the accounting knows it: that lags the submission by a second or two."""
        return next((j for j in self.jobs() if j.id == job_id), None)

    def submitted(self, name: str | None = None) -> int:
        """How many jobs the cluster ever took, of that name. Waits until the accounting knows those in the queue."""
        queue = "squeue", "--noheader", "--format=%i %j"

        def known() -> bool:
            return {int(line.split()[0]) for line in self.command(*queue).splitlines()} <= {j.id for j in self.jobs()}

        wait_until(known, "the accounting knows every job in the queue")
        return sum(name is None or j.name == name for j in self.jobs())

    def wait(self, job_id: int, *states: str, seconds: float = 60) -> Job:
        """The job, once it is in one of ``states``; without any, once it has ended."""
        found: list[Job] = []

        def there() -> bool:
            job = self.job(job_id)
            found[:] = [job] if job else []
            return bool(job) and (job.state in states if states else job.state not in _LIVE)

        try:
            wait_until(there, f"job {job_id} is {' or '.join(states) or 'at its end'}", seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}: {found}") from None
        return found[0]

    # Configuration and daemons

    def _configure(self) -> None:
        base = _free_ports(3 + len(NODES))
        self._ports = {"db": base[0], "dbd": base[1], "ctld": base[2], **dict(zip(NODES, base[3:], strict=True))}
        key = self.root / "munge/key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        (self.root / "munge").chmod(0o700)
        gres = []
        for node in NODES:
            for gpu in range(GPUS):  # Slurm wants character devices that differ by name
                (self.root / f"gpu/{node}_{gpu}").symlink_to(os.devnull)
            gres.append(f"NodeName={node} Name=gpu File={self.root}/gpu/{node}_[0-{GPUS - 1}]")
        (self.root / "etc/gres.conf").write_text("\n".join(gres) + "\n")
        dbd = self.root / "etc/slurmdbd.conf"
        dbd.touch(0o600)
        dbd.write_text(_lines(_dbd(self.root, self._ports)))
        self._write_config()

    def _write_config(self) -> None:
        lines = {**_slurm(self.root, self._ports, self.requeue_seconds), **self.settings}
        ports = "\n".join(
            f"NodeName={n} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={self._ports[n]} CPUs={CPUS}"
            f" RealMemory={MEMORY} Gres=gpu:{GPUS} State=UNKNOWN"
            for n in NODES
        )
        self.config.write_text(f"{_lines(lines)}{ports}\n{_PARTITIONS}")

    def _start_munge(self) -> None:
        m, run = self.root / "munge", self._run
        run.chmod(0o755)
        options = (f"--key-file={m}/key", f"--seed-file={m}/seed", f"--socket={run}/munge.sock", "--num-threads=4")
        self.command(
            "munged", "--force", *options, f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged"
        )

    def _begin_database(self) -> subprocess.Popen[bytes]:
        log = (self.root / "log/mariadb-install").open("wb")
        argv = ["mariadb-install-db", "--no-defaults", f"--user={getpass.getuser()}", f"--datadir={self.root}/db"]
        argv += [f"--tmpdir={self.root}/tmp"]  # it removes the temporary tables of whoever else is there
        argv += ["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-flush-log-at-trx-commit=0"]
        with log:
            env = {**os.environ, **self.env}
            return subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)

    def _finish_database(self, install: subprocess.Popen[bytes]) -> None:
        assert not install.wait(60), (self.root / "log/mariadb-install").read_text()
        sock = f"{self._run}/db.sock"
        options = [
            f"--datadir={self.root}/db",
            f"--port={self._ports['db']}",
            f"--socket={sock}",
            f"--tmpdir={self.root}/tmp",
            "--skip-name-resolve",
        ]
        options += [f"--pid-file={self._run}/mariadbd.pid", "--bind-address=127.0.0.1", f"--user={getpass.getuser()}"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--skip-log-bin"]
        options += ["--innodb-flush-log-at-trx-commit=0", f"--log-error={self.root}/log/mariadbd"]
        self.command(
            "setsid", "--fork", "sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", "mariadbd", "--no-defaults", *options
        )
        client = self._client()
        wait_until(lambda: self._answers(*client, "--execute=select 1"), "mariadbd answers")
        grant = "create database slurm_acct_db; create user slurm@127.0.0.1 identified by 'slurm';"
        self.command(*client, f"--execute={grant} grant all on slurm_acct_db.* to slurm@127.0.0.1")

    def _client(self) -> tuple[str, ...]:
        sock = f"--socket={self._run}/db.sock"
        return "mariadb", "--no-defaults", "--user=root", "--skip-column-names", "--batch", sock

    def _daemon(self, *argv: str) -> None:
        """A daemon of Slurm, which goes to the background by itself."""
        self.command(*argv)

    def _answers(self, *argv: str) -> bool:
        return subprocess.run(argv, env={**os.environ, **self.env}, capture_output=True, check=False).returncode == 0

    def _all_idle(self) -> bool:
        listed = self.command(
            "sinfo", "--noheader", "--Node", "--partition=debug", "--states=idle", "-o", "%N", check=False
        )
        return set(listed.split()) == set(NODES)

    def _pid_file(self, daemon: str) -> Path:
        return self._run / f"{daemon}.pid"

    def _alive(self, daemon: str) -> int | None:
        return processes.from_file(self._pid_file(daemon))

    def _kill(self, daemon: str) -> None:
        pid = self._alive(daemon)
        assert pid, f"{daemon} does not run"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not processes.alive(pid), f"{daemon} has gone")


_LIVE = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "CONFIGURING", "RESIZING")
_PARTITIONS = """\
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 PriorityTier=5 PreemptMode=off State=UP
PartitionName=short Nodes=ALL MaxTime=1 PriorityTier=5 PreemptMode=off State=UP
PartitionName=gpu Nodes=ALL MaxTime=60 PriorityTier=5 PreemptMode=off State=UP
PartitionName=low Nodes=ALL MaxTime=60 PriorityTier=1 PreemptMode=cancel State=UP
PartitionName=lowrequeue Nodes=ALL MaxTime=60 PriorityTier=1 PreemptMode=requeue State=UP
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=9 PreemptMode=off State=UP
"""


def _slurm(root: Path, ports: dict[str, int], requeue_seconds: int) -> dict[str, object]:
    user = getpass.getuser()
    return {
        "ClusterName": "test",
        "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/run/munge.sock,cred_expire={requeue_seconds}",
        "SlurmctldPort": ports["ctld"],
        "SlurmctldPidFile": f"{root}/run/slurmctld.pid",
        "SlurmctldLogFile": f"{root}/log/slurmctld.log",
        "StateSaveLocation": f"{root}/state",
        "SlurmdPidFile": f"{root}/run/slurmd.%n.pid",
        "SlurmdLogFile": f"{root}/log/slurmd.%n.log",
        "SlurmdSpoolDir": f"{root}/spool/%n",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "ProctrackType": "proctrack/linuxproc",  # no cgroups: those of a container are often read-only
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherParams": "OverMemoryKill",
        "JobAcctGatherFrequency": "task=1",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": 500,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "requeue",
        "SchedulerParameters": "sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0",
        "SlurmdParameters": "config_overrides",  # more CPUs and memory than there are
        "ReturnToService": 2,
        "KillWait": 2,
        "MinJobAge": 300,
        "JobRequeue": 1,
        "GresTypes": "gpu",
        "MailProg": "/bin/true",
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": ports["dbd"],
        "AccountingStoragePass": f"{root}/run/munge.sock",
        "AccountingStorageTRES": "gres/gpu",
    }


def _dbd(root: Path, ports: dict[str, int]) -> dict[str, object]:
    return {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/run/munge.sock",
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": ports["dbd"],
        "SlurmUser": getpass.getuser(),
        "LogFile": f"{root}/log/slurmdbd.log",
        "PidFile": f"{root}/run/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": ports["db"],
        "StorageUser": "slurm",
        "StoragePass": "slurm",
        "StorageLoc": "slurm_acct_db",
    }


def _lines(settings: dict[str, object]) -> str:
    return "".join(f"{k}={v}\n" for k, v in settings.items())


def _free_ports(n: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands out to clients."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 500):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == n:
            return found
    raise AssertionError("no free ports between 20000 and 32000")


def _job(line: str) -> Job:
    job_id, name, state, exit_code, reason, nodes, partition = line.split("|")
    return Job(int(job_id), name, re.split(r"[ +]", state)[0], exit_code, reason, nodes, partition)


def _holds(pid: int, file: str) -> bool:
    try:
        return any(os.readlink(fd) == file for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
