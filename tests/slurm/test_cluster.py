"""The Slurm of the tests is a real one: what happens to jobs happens here, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from cluster import Cluster
from sshd import Sshd


def test_jobs_end_in_the_states_that_slurm_knows(slurm: Cluster) -> None:
    submit = slurm.submit
    wanted = {
        submit("true"): ("COMPLETED", "0:0"),
        submit("exit 7"): ("FAILED", "7:0"),
        submit("kill -SEGV $$"): ("FAILED", "0:11"),
        submit("srun -n2 sh -c 'exit $((SLURM_PROCID * 5))'", "-n2"): ("FAILED", "5:0"),
        (late := submit("sleep 300")): ("TIMEOUT", "0:0"),
        submit("sleep 300", "--job-name=cancelled"): ("CANCELLED", "0:0"),
    }
    succeeds = next(iter(wanted))
    refused = submit("true", "--nodes=9")
    never = submit("true", f"--dependency=afternotok:{succeeds}", "--kill-on-invalid-dep=yes")
    slurm.command("scancel", "--name=cancelled")
    slurm.wait(late, "RUNNING")
    slurm.expire(late)
    assert {i: (j.state, j.exit_code) for i in wanted for j in [slurm.wait(i, seconds=200)]} == wanted
    assert slurm.wait(never).state == "CANCELLED"
    assert slurm.wait(refused, "PENDING").reason == "PartitionNodeLimit"
    slurm.command("scancel", str(refused))


def test_a_job_that_needs_more_memory_than_it_asked_for_is_killed(slurm: Cluster) -> None:
    eats = f"{sys.executable} -c 'import time; x = bytearray(300 << 20); time.sleep(60)'"
    job = slurm.wait(slurm.submit(eats, "--mem=100"))
    assert (job.state, job.exit_code) in [("FAILED", "0:9"), ("OUT_OF_MEMORY", "0:125")]
    assert "exceeded memory limit" in (slurm.root / f"log/job-{job.id}.out").read_text()


def test_gpus_are_dealt_out_by_node(slurm: Cluster) -> None:
    job = slurm.submit("srun sh -c 'echo $SLURM_NODEID:$CUDA_VISIBLE_DEVICES'", "--gpus-per-node=2", "--nodes=2")
    assert slurm.wait(job).state == "COMPLETED"
    assert sorted((slurm.root / f"log/job-{job}.out").read_text().split()) == ["0:0,1", "1:0,1"]


def test_a_requeued_job_runs_again_under_its_id(slurm: Cluster) -> None:
    job = slurm.submit('[ "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }')
    assert slurm.wait(job, "COMPLETED", seconds=200).attempts == 2


def test_over_ssh_slurms_commands_are_there(login: Sshd) -> None:
    options = ("-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(login.identity))
    known = ("-o", f"UserKnownHostsFile={login.known_hosts}", "-p", str(login.port))
    argv = ["ssh", *options, *known, login.host, "sinfo --noheader -o %R"]
    assert "debug" in subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


def test_nodes_preemption_and_outages_of_the_daemons(own: Path) -> None:
    slurm = Cluster(own / "slurm")
    slurm.start()
    try:
        low = slurm.submit("sleep 300", "--partition=low", "--exclusive", "--nodes=4")
        slurm.wait(low, "RUNNING")
        high = slurm.submit("true", "--partition=high", "--exclusive", "--nodes=4")
        assert slurm.wait(low).state == "PREEMPTED"
        assert slurm.wait(high).state == "COMPLETED"

        on_n2 = slurm.submit("sleep 300", "--nodelist=n2", "--no-requeue")
        slurm.wait(on_n2, "RUNNING")
        slurm.kill_node("n2")
        assert slurm.wait(on_n2).state == "NODE_FAIL"
        slurm.resume_node("n2")

        survivor = slurm.submit("sleep 8")
        slurm.wait(survivor, "RUNNING")
        slurm.stop_controller()
        assert not slurm.command("squeue", "--noheader", check=False)
        slurm.start_controller()
        assert slurm.wait(survivor).state == "COMPLETED"

        slurm.kill_dbd()
        unseen = slurm.submit("true")
        with pytest.raises(AssertionError, match="sacct"):
            slurm.jobs()
        slurm.start_dbd()
        assert slurm.wait(unseen).state == "COMPLETED"
        assert slurm.submitted() == 5
    finally:
        slurm.stop()
    assert processes.of_cluster(slurm.root) == []


def test_the_cluster_of_a_test_run_that_was_killed_is_stopped(own: Path) -> None:
    suite = own / "test_it.py"
    suite.write_text(
        "def test_it(slurm):\n    print('\\nup', slurm.root, flush=True)\n    __import__('time').sleep(600)\n"
    )
    (own / "conftest.py").write_text("from slurm_fixtures import *\n")
    here = Path(__file__).parent
    (own / "slurm_fixtures.py").write_text(
        (here / "conftest.py").read_text().replace("__file__", repr(str(here / "x")))
    )
    argv = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", f"--basetemp={own}/t", str(suite)]
    env = {**os.environ, "PYTHONPATH": f"{own}:{here}"}
    with subprocess.Popen(argv, cwd=own, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout
        root = next(Path(line.split()[1]) for line in run.stdout if line.startswith("up "))
        assert len(processes.of_cluster(root)) > 5
        os.killpg(run.pid, signal.SIGKILL)
    processes.wait_until(lambda: not processes.of_cluster(root), "the keeper ends the cluster", 60)
    processes.wait_until(lambda: not (root / "db").exists(), "the keeper removes the cluster", 60)
