"""Jobs of a real Slurm, from its login node and over SSH: how each ends, its log, its files, its options."""

from __future__ import annotations

import getpass
import json
import os
import re
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from places import Place, read_all
from processes import wait_until

from nemotron_dagster.errors import ProfileError, TargetError
from nemotron_dagster.jobs import slurm_files
from nemotron_dagster.jobs.target import JobHandle, State

EATS = f"exec {sys.executable} -c 'import time; x = bytearray(300 << 20); time.sleep(60)'"


def test_every_way_of_ending_is_told_apart_in_one_call(place: Place) -> None:
    go = place.submit
    handles = {
        "ok": go("ok", "sleep 3"),
        "code": go("code", "exit 7"),
        "sixteen": go("sixteen", "exit 15"),
        "segv": go("segv", "kill -SEGV $$"),
        "rank": go("rank", '[ "$NODE_RANK" = 1 ] && exit 5; sleep 100', nodes=2),
        "memory": go("memory", EATS, {"mem": "100"}),
        "time": go("time", "sleep 200", {"time": "00:00:05"}),
        "gone": go("gone", "sleep 200"),
        "wide": go("wide", "true", nodes=9),
        "long": go("long", "true", {"partition": "short", "time": "00:30:00"}),
        "held": go("held", "true", {"additional_parameters": {"hold": True}}),
    }
    after = go("after", "true", {"dependency": f"afterok:{handles['code'].id}"})
    place.until(handles["gone"], lambda s: s.state is State.RUNNING)
    place.cluster.command("scancel", handles["gone"].id)
    waiting = ("wide", "long", "held")
    for key, handle in handles.items():
        if key not in waiting:
            place.ended(handle, 180)
    place.until(after, lambda s: s.hopeless)
    found = place.target().statuses([*handles.values(), after])
    assert {k: (s.state, s.exit_code) for k, s in found.items()} == {
        "ok": (State.SUCCEEDED, 0),
        "code": (State.FAILED, 7),
        "sixteen": (State.FAILED, 15),
        "segv": (State.FAILED, -11),
        "rank": (State.FAILED, 5),
        "memory": (State.OUT_OF_MEMORY, -9),
        "time": (State.TIMEOUT, None),
        "gone": (State.CANCELLED, None),
        "wide": (State.PENDING, None),
        "long": (State.PENDING, None),
        "held": (State.PENDING, None),
        "after": (State.PENDING, None),
    }
    assert {k: s.hopeless for k, s in found.items() if not s.state.final} == {
        "wide": True,
        "long": True,
        "held": False,
        "after": True,
    }
    said = {k: s.reason for k, s in found.items()}
    assert "killed by SIGSEGV" in said["segv"] and "task 1 on" in said["rank"]
    assert said["gone"] == f"by {getpass.getuser()}" and "time limit" in said["time"]
    assert "PartitionTimeLimit" in said["long"] and "held" in said["held"]
    assert "did not end as it should" in said["after"]
    ok = found["ok"]
    assert ok.started and ok.ended and ok.submitted and ok.submitted <= ok.started <= ok.ended
    assert abs(ok.ended - time.time()) < 3600, "seconds since the epoch, whatever the time zone"
    assert ok.nodes and 0 <= ok.figures["cpu_efficiency"] <= 1 and ok.raw == "COMPLETED"
    for key in (*waiting, "after"):
        place.target().cancel(handles.get(key, after))
    assert place.ended(handles["wide"]).state is State.CANCELLED


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns"])
def test_times_do_not_depend_on_the_time_zone(local_place: Place, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    handle = local_place.submit("k", "true", gpus_per_node=2)
    status = local_place.ended(handle)
    assert status.submitted and abs(status.submitted - time.time()) < 600 and status.gpus == 2


def test_a_log_is_read_byte_by_byte_once_while_it_grows(place: Place) -> None:
    writes = (
        "import os, sys, time\n"
        "for i in range(40):\n"
        "    os.write(1, ('%03d ' % i + 'ß€\\x00\\r' * 20000 + '\\n').encode())\n"
        "    time.sleep(0.02)\n"
        "os.write(1, b'no newline \\xff')\n"
    )
    handle = place.submit("k", f'exec {sys.executable} -c "$SCRIPT"', env={"SCRIPT": writes})
    wanted = b"".join((f"{i:03} " + "ß€\x00\r" * 20000 + "\n").encode() for i in range(40)) + b"no newline \xff"
    log, cursor, looks = b"", {}, 0
    while True:
        final = place.target().statuses([handle])[handle.key].state.final
        chunk = place.target().read(handle, cursor)
        assert len(chunk.log) <= slurm_files.LIMIT
        log, cursor, looks = log + chunk.log, json.loads(json.dumps(dict(chunk.cursor))), looks + bool(chunk.log)
        if final and not chunk.log:
            break
    assert log.replace(b"job exited with code 0\n", b"") == wanted
    assert looks > len(wanted) // slurm_files.LIMIT
    assert place.target().read(handle, cursor).ended
    assert read_all(place.target(), handle, {})[0].replace(b"job exited with code 0\n", b"") == wanted


def test_a_requeued_job_goes_on_with_its_log(place: Place) -> None:
    """Both starts are read, in order; the end mark of the first is gone when the second begins."""
    handle = place.submit("k", 'echo "start ${SLURM_RESTART_COUNT:-0}"; [ "$SLURM_RESTART_COUNT" ]', {"retries": 1})
    again = place.until(handle, lambda s: s.restarts == 1)
    assert not again.state.final
    log, cursor = read_all(place.target(), handle, {})
    assert b"start 0\n" in log
    status = place.ended(handle, 120)
    assert (status.state, status.exit_code, status.restarts) == (State.SUCCEEDED, 0, 1)
    more, _ = read_all(place.target(), handle, cursor)
    assert b"start 0\n" not in more and (log + more).count(b"start 1\n") == 1
    assert place.log(handle).index("start 0") < place.log(handle).index("start 1")
    assert place.names("k") == 1


REFUSED = [
    ({"partition": "nowhere"}, "Invalid partition name specified. Change in the profile: partition"),
    ({"mem": "999999999"}, "Memory specification can not be satisfied.*Change in the profile: mem"),
    ({"gres": "unicorn:1"}, "Change in the profile: gres"),
    ({"constraint": "purple"}, "Invalid feature specification. Change in the profile: constraint"),
    ({"reservation": "none"}, "Change in the profile: reservation"),
    ({"nodelist": "n77"}, "Invalid node name specified. Change in the profile: nodelist"),
    ({"additional_parameters": {"bogus": "1"}}, "unrecognized option '--bogus=1'.*additional_parameters"),
]


@pytest.mark.parametrize("settings, message", REFUSED, ids=[next(iter(s)) for s, _ in REFUSED])
def test_what_sbatch_refuses_is_told_with_what_to_change(
    local_place: Place, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(TargetError, match=f"(?s){message}") as e:
        local_place.submit("k", "true", settings, secrets={"X_TOKEN": "planted"})
    assert getattr(e.value, "refused", False)
    assert local_place.target().find("k") is None
    assert not list(Path(local_place.profile["remote_job_dir"]).rglob("*.env")), "its secrets are gone"
    handle = local_place.submit("k", "true")
    assert local_place.ended(handle).state is State.SUCCEEDED, "once mended it can be submitted"


def test_everything_in_the_profile_reaches_the_job(place: Place, request: pytest.FixtureRequest) -> None:
    cluster = place.cluster
    nodes = "nodename=n[1-4]"
    cluster.command("scontrol", "update", nodes, "availablefeatures=fast,slow", "activefeatures=fast,slow")
    request.addfinalizer(lambda: cluster.command("scontrol", "update", nodes, "availablefeatures=", "activefeatures="))
    name = f"later-{place.tunnel}"
    options = ("starttime=now+10hours", "duration=60", f"user={getpass.getuser()}", "nodecnt=1", "flags=overlap")
    cluster.command("scontrol", "create", "reservation", f"reservationname={name}", *options)

    def delete() -> bool:  # once the jobs that use it have gone
        cluster.command("scontrol", "delete", f"reservationname={name}", check=False)
        return name not in cluster.command("scontrol", "show", "reservation")

    request.addfinalizer(lambda: wait_until(delete, "the reservation is deleted"))
    account = f"team_{place.tunnel}"
    cluster.command("sacctmgr", "-i", "add", "account", account)
    request.addfinalizer(lambda: cluster.command("sacctmgr", "-i", "delete", "account", account))
    cluster.command("sacctmgr", "-i", "add", "user", getpass.getuser(), f"account={account}")
    request.addfinalizer(lambda: cluster.command("scancel", f"--account={account}"))
    first = place.submit("first", "sleep 60", {"account": account})
    settings = {
        "account": account,
        "qos": "normal",
        "constraint": "fast&slow",
        "gres": "gpu:1",
        "dependency": f"afterok:{first.id}",
        "exclude": "n1",
        "nodelist": "n2",
        "signal": "B:USR1@30",
        "requeue": False,
        "reservation": name,
        "mail_user": "a@b.c",
        "mail_type": "END,FAIL",
        "comment": "it's $HOME `id`",
        "time": "00:07:00",
        "mem": "64M",
        "cpus_per_task": 2,
        "exclusive": "user",
        "additional_parameters": {"nice": 7, "hold": True},
    }
    handle = place.submit("k", "true", settings)
    shown = cluster.command("scontrol", "show", "job", "-d", handle.id)
    wanted = {
        "Account": account,
        "Partition": "debug",
        "QOS": "normal",
        "Features": "fast&slow",
        "TresPerNode": "gres:gpu:1",
        "Dependency": f"afterok:{first.id}(unfulfilled)",
        "ExcNodeList": "n1",
        "ReqNodeList": "n2",
        "Requeue": "0",
        "Reservation": name,
        "MailUser": "a@b.c",
        "MailType": "END,FAIL",
        "Comment": "it's $HOME `id`",
        "TimeLimit": "00:07:00",
        "MinMemoryNode": "64M",
        "NumNodes": "1-1",
        "CPUs/Task": "2",
        "Nice": "7",
        "Priority": "0",
        "JobName": f"{place.profile['job_name']}.k",
    }
    for option, value in wanted.items():
        found = re.search(rf"(?:^|\s){re.escape(option)}=(.*?)(?= [A-Z][A-Za-z/:]*=|$)", shown, re.M)
        assert found and found[1].rstrip() == value, f"{option}: {found and found[1]!r}\n{shown}"
    assert "OverSubscribe=USER" in shown and "Command=" in shown
    kept = cluster.command("scontrol", "write", "batch_script", handle.id, "-")
    assert "#SBATCH --signal=B:USR1@30" in kept
    previewed = place.target(**settings).preview(place.job("k", "true")).script
    assert kept.strip() == (previewed or "").strip(), "the preview is what was submitted"


def test_what_the_login_environment_says_does_not_win_over_the_profile(
    local_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PARTITION": "short", "JOB_NAME": "x", "ARRAY_INX": "0-3", "TIMELIMIT": "1"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    handle = local_place.submit("k", "echo in $SLURM_JOB_PARTITION as ${SLURM_ARRAY_TASK_ID:-one}")
    assert local_place.ended(handle).state is State.SUCCEEDED
    assert "in debug as one" in local_place.log(handle)


NASTY = {
    "SPACES": "a  b",
    "DOLLAR": "$HOME $(id) `id`",
    "QUOTES": """it's "quoted" \\ back""",
    "NEWLINE": "one\ntwo\n",
    "lower_Case": "kept",
    "STAR": "*.parquet",
    "EMPTY": "",
}


def test_environment_and_words_arrive_exactly(place: Place, tmp_path: Path) -> None:
    words = ["a b", "$HOME", "it's", '"', "x\ny", "*", "--flag=;id"]
    told = tmp_path / "told with spaces.json"
    dump = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open(os.environ['TOLD'], 'w'))"
    job = place.job("k", "", env={**NASTY, "TOLD": str(told)}, secrets={"A_TOKEN": "it's $A\nsecret"})
    handle = place.target().submit(replace(job, argv=(sys.executable, "-c", dump, *words)))
    assert place.ended(handle).state is State.SUCCEEDED, place.log(handle)
    argv, env = json.loads(told.read_text())
    assert argv == words
    assert {k: env.get(k) for k in (*NASTY, "A_TOKEN")} == {**NASTY, "A_TOKEN": "it's $A\nsecret"}


PLANTED = "planted-0f7c1e-secret"
WAYS = {
    "ok": ("true", {}),
    "once": ("true", {"requeue": False}),
    "code": ("exit 3", {}),
    "time": ("sleep 100", {"time": "00:00:03"}),
    "gone": ("sleep 100", {}),
    "waiting": ("true", {"additional_parameters": {"hold": True}}),
}


def test_a_secret_is_in_one_private_file_and_gone_in_every_way_of_ending(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "SAME_VALUE_OF_ANOTHER_NAME"):
        monkeypatch.setenv(name, PLANTED)
    secrets = {"HF_TOKEN": PLANTED, "OTHER_TOKEN": f"x{PLANTED}"}
    checks = (
        f'[ "$HF_TOKEN" = {PLANTED[:8]}*{PLANTED[-6:]} ] || [[ $HF_TOKEN == {PLANTED[:8]}*{PLANTED[-6:]} ]] || exit 9; '
    )
    handles = {
        key: place.submit(key, checks + script, settings, secrets=secrets) for key, (script, settings) in WAYS.items()
    }
    jobs = Path(place.profile["remote_job_dir"])
    files = _holding(PLANTED, tmp_path, place.cluster.root)
    assert all(f.parent == jobs / ".nemotron-secrets" for f in files), files
    assert stat.S_IMODE((jobs / ".nemotron-secrets" / "waiting.env").stat().st_mode) == 0o600
    assert jobs / ".nemotron-secrets" / "waiting.env" in files
    place.until(handles["gone"], lambda s: s.state is State.RUNNING)
    for listed in (subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout.decode(),):
        assert PLANTED not in listed
    for handle in handles.values():
        shown = place.cluster.command("scontrol", "show", "job", "-d", handle.id, check=False)
        kept = place.cluster.command("scontrol", "write", "batch_script", handle.id, "-", check=False)
        assert PLANTED not in shown + kept
    place.target().cancel(handles["gone"])
    place.target().cancel(handles["waiting"])
    states = {key: place.ended(h).state for key, h in handles.items()}
    ends = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.TIMEOUT, State.CANCELLED, State.CANCELLED)
    assert states == dict(zip(WAYS, ends, strict=True))
    assert place.target().statuses([handles["code"]])["code"].exit_code == 3, "the job saw its secret"
    left = {f.name for f in _holding(PLANTED, tmp_path, place.cluster.root)}
    assert left <= {"time.env"}, "what may be started again keeps it"
    for handle in handles.values():
        place.target().release(handle)
        assert PLANTED not in place.log(handle)
    assert _holding(PLANTED, tmp_path, place.cluster.root) == []


def _holding(text: str, *roots: Path) -> list[Path]:
    found = []
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                file = Path(folder, name)
                try:
                    if stat.S_ISREG(file.lstat().st_mode) and text.encode() in file.read_bytes():
                        found.append(file)
                except OSError:
                    continue
    return found


def test_cancelling_is_safe_at_any_time(place: Place) -> None:
    target = place.target()
    handle = place.submit("k", "sleep 100")
    target.cancel(replace(handle, id=""))
    assert place.ended(handle).state is State.CANCELLED
    target.cancel(handle)
    target.cancel(JobHandle("slurm", "never", target.job_directory("never")))
    target.cancel(replace(handle, id="999999"))
    assert target.find("never") is None and target.find("k") == handle


def test_an_id_that_slurm_gave_to_another_job_is_not_taken_for_ours(local_place: Place) -> None:
    """A controller that lost its last seconds gives ids again."""
    other = local_place.submit("other", "sleep 100")
    ours = replace(local_place.submit("ours", "true"), id=other.id)
    assert local_place.ended(local_place.submit("ours", "true")).state is State.SUCCEEDED
    local_place.target().cancel(ours)
    status = local_place.target().statuses([ours])["ours"]
    assert status.state is State.SUCCEEDED, "by the claim of the job itself"
    assert local_place.target().statuses([other])["other"].state in (State.PENDING, State.RUNNING)
    local_place.target().cancel(other)


def test_a_job_that_nobody_knows_is_waited_for_and_then_lost(local_place: Place) -> None:
    target = local_place.target()
    Path(target.job_directory("k")).mkdir(parents=True)
    ghost = JobHandle("slurm", "k", target.job_directory("k"), "888888")
    assert target.statuses([ghost])["k"].state is State.PENDING
    since = int(time.time()) - 600
    Path(ghost.directory, "missing").write_text(f"{since} {int(time.time())}\n")
    assert target.statuses([ghost])["k"].state is State.LOST
    Path(ghost.directory, "missing").write_text(f"{since} {since - 600}\n")
    assert target.statuses([ghost])["k"].state is State.PENDING, "nobody asked in between: it counts anew"


def test_500_jobs_are_asked_for_in_one_call(
    local_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = local_place.cluster
    loop = "for i in $(seq 0 499); do sbatch --parsable --hold -J x.k$i -o /dev/null --wrap true; done"
    ids = cluster.command("sh", "-c", loop, timeout=300).split()
    try:
        counted, tools = tmp_path / "count", tmp_path / "bin"
        tools.mkdir()
        for name in ("squeue", "sacct", "scontrol", "sinfo"):
            real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
            (tools / name).write_text(f'#!/bin/sh\necho {name} >>{counted}\nexec {real} "$@"\n')
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        target = local_place.target()
        handles = [JobHandle("slurm", f"k{i}", str(tmp_path / f"k{i}"), n) for i, n in enumerate(ids)]
        found = target.statuses(handles)
        assert len(found) == 500 and {s.state for s in found.values()} == {State.PENDING}
        assert counted.read_text().split() == ["squeue"]
    finally:
        cluster.command("scancel", *ids, timeout=120)


def test_the_partition_says_what_a_job_can_have(place: Place) -> None:
    offered = place.target().hardware()
    assert offered and (offered.gpus_per_node, offered.nodes, offered.minutes) == (2, 4, 60)
    assert "partition debug" in offered.where
    assert place.target(partition="nowhere").hardware() is None


def test_inputs_and_outputs_are_copied_once_over_ssh(place: Place, tmp_path: Path) -> None:
    data, row = tmp_path / "my data", tmp_path / "row.jsonl"
    data.mkdir()
    (data / "a b.txt").write_text("eins")
    row.write_text("{}")
    target = place.target()
    sent = target.send({data: "sha256:" + "a" * 64, row: "b" * 64})
    if place.tunnel == "local":
        assert sent == {} and target.shares_files
        return
    assert Path(sent[str(data)], "a b.txt").read_text() == "eins" and Path(sent[str(row)]).read_text() == "{}"
    (data / "a b.txt").write_text("zwei")
    assert target.send({data: "sha256:" + "a" * 64}) == {str(data): sent[str(data)]}
    assert Path(sent[str(data)], "a b.txt").read_text() == "eins", "the same content is not sent again"
    run = target.job_directory("k")
    script = f'mkdir -p "{run}/output/deep"; echo out >"{run}/output/deep/x"; echo "{{}}" >>"{run}/messages.jsonl"'
    handle = place.submit("k", script)
    assert place.ended(handle).state is State.SUCCEEDED
    assert target.read(handle, {}).messages == b"{}\n"
    target.collect(handle, tmp_path / "output")
    assert (tmp_path / "output" / "deep" / "x").read_text() == "out\n"


def test_a_follow_up_job_continues_in_the_directory_of_the_first(place: Place) -> None:
    key = "0123456789abcdef0123"
    script = 'echo "{}" >>"$HERE/messages.jsonl"; cat "$HERE/output/at" 2>/dev/null; echo 1 >>"$HERE/output/at"'
    run = place.target().job_directory(key)
    job = place.job(key, script, env={"HERE": run})
    first = place.target().submit(job)
    assert place.ended(first).state is State.SUCCEEDED
    second = place.target().submit(replace(job, key=f"{key}-2"))
    assert second.id != first.id and second.directory != first.directory
    assert place.ended(second).state is State.SUCCEEDED, place.log(second)
    assert place.log(second).startswith("1\n")
    if place.tunnel == "ssh":
        assert place.target().read(second, {}).messages == b"{}\n", "what the first said is not said again"


@pytest.mark.parametrize("option", ["array", "job_name", "output", "wait"])
def test_options_with_which_a_job_would_be_lost_are_refused(local_place: Place, option: str) -> None:
    with pytest.raises(ProfileError, match=f"'{option}' is set for every job"):
        local_place.target(additional_parameters={option: "1"})


def test_two_clusters_are_not_taken_for_one(local_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = local_place.target().cluster
    monkeypatch.setenv("SLURM_CONF", "/somewhere/else")
    names = {one, local_place.target().cluster}
    names |= {local_place.target(tunnel="ssh", host="a", **more).cluster for more in ({}, {"port": 1}, {"user": "u"})}
    assert len(names) == 5


def test_what_cannot_work_is_refused_without_asking_the_cluster(
    local_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProfileError, match="remote_job_dir required"):
        local_place.target(remote_job_dir="").check()
    local_place.target().check()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(TargetError, match=r"no sbatch\. Set host"):
        local_place.target().check()
    with pytest.raises(TargetError, match="no ssh on this machine"):
        local_place.target(tunnel="ssh", host="login").check()
