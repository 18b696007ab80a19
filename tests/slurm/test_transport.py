"""Commands and files over a real SSH server, and on this machine: exact, shared, and truthful when it breaks."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import processes
import pytest
from sshd import Sshd

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.transport import LocalTransport, RemoteFailure, SshTransport, Transport

HOSTILE = "a'b\"c`id`$(id)$HOME \\ \n;|&*?!~#{x}[y]\t-é"
ODD_NAMES = ["with space", "new\nline", "quo'te\"", "-rf", "$(id)", "ünïcode", "back\\slash", "x" * 150, "a:b", "*"]


@pytest.fixture(autouse=True)
def _own_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Control sockets of the test alone, at a path that is short enough for them."""
    with tempfile.TemporaryDirectory(prefix="nemo", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield
        processes.end(_masters(Path(folder)))


@pytest.fixture
def over_ssh(sshd: Sshd) -> SshTransport:
    return SshTransport(sshd.host, sshd.user, sshd.port, str(sshd.identity), "yes", str(sshd.known_hosts))


@pytest.fixture(params=["local", "ssh"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return LocalTransport() if request.param == "local" else request.getfixturevalue("over_ssh")


@pytest.fixture(params=["rsync", "tar"])
def copying(request: pytest.FixtureRequest, transport: LocalTransport | SshTransport) -> Transport:
    return replace(transport, rsync=request.param == "rsync")


def _masters(folder: Path | None = None) -> list[int]:
    """The background connections whose socket lies in our folder."""
    folder = folder or Path(os.environ["XDG_RUNTIME_DIR"])
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and processes.alive(int(entry.name)):
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ssh\0-M\0") and os.fsencode(folder) in title:
                found.append(int(entry.name))
    return found


def test_a_script_is_run_as_it_is_written(transport: Transport) -> None:
    done = transport.run(f"printf %s {shlex.quote(HOSTILE)}; printf err >&2; exit 7", check=False)
    assert (done.code, done.out, done.err) == (7, HOSTILE.encode(), b"err")


def test_stdin_of_any_size_and_bytes_arrives_whole(transport: Transport) -> None:
    data = os.urandom(1 << 20) * 20
    assert transport.run("cat", data).out == data
    assert transport.run("head -c 3", data).out == data[:3]
    assert transport.run("cat").out == b""


@pytest.mark.parametrize("code", [1, 127, 255])
def test_the_exit_code_is_the_commands_own_even_where_it_is_sshs(transport: Transport, code: int) -> None:
    assert transport.run(f"exit {code}", check=False).code == code
    with pytest.raises(RemoteFailure, match=f"exit code {code}.*it broke.*run again") as e:
        transport.run(f"echo it broke >&2; exit {code}")
    assert (e.value.code, e.value.stderr) == (code, "it broke")


def test_a_script_that_is_killed_is_told_by_its_signal(transport: Transport) -> None:
    assert transport.run("sh -c 'kill -9 $$'", check=False).code == 128 + signal.SIGKILL


def test_a_script_that_takes_too_long_is_an_unreachable_target(transport: Transport) -> None:
    with pytest.raises(TargetError, match=r"no answer within 1 s.*run again"):
        transport.run("sleep 60", timeout=1)
    assert transport.run("echo there").out == b"there\n"


def test_a_secret_in_a_script_is_in_no_process_list(transport: Transport) -> None:
    listed = transport.run("SECRET=planted-secret; export SECRET; cat /proc/[0-9]*/cmdline 2>/dev/null || true").out
    assert b"nemotron-" in listed
    assert b"planted-secret" not in listed


def test_what_a_login_shell_writes_is_not_in_the_answer(sshd: Sshd, over_ssh: SshTransport) -> None:
    sshd.stop()
    noisy = sshd.root / "noisy"
    noisy.write_text('#!/bin/sh\necho Welcome!\necho motd >&2\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    noisy.chmod(0o755)
    sshd.start(ForceCommand=noisy)
    done = over_ssh.run("echo out; echo err >&2")
    assert (done.out, done.err) == (b"out\n", b"err\n")


def test_files_come_back_as_they_were_put(copying: Transport, tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = {name: os.urandom(100) for name in ODD_NAMES}
    for name, content in files.items():
        (source / "deep" / name).mkdir(parents=True)
        (source / "deep" / name / name).write_bytes(content)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "empty").mkdir()
    (source / "link").symlink_to("deep/with space")
    (source / "outside").symlink_to(Path(__file__))
    (source / os.fsdecode(b"\xff\xfe")).write_bytes(b"no utf-8")
    remote = tmp_path / "there" / HOSTILE.replace("/", "_")
    copying.put({"tree": source, "a b/c.txt": b"text", "big": b"x" * 3_000_000}, str(remote))
    assert not list(remote.glob(".put*"))

    back = tmp_path / "back"
    copying.get(str(remote), back)
    for name, content in files.items():
        assert (back / "tree/deep" / name / name).read_bytes() == content
    assert (back / "a b/c.txt").read_bytes() == b"text"
    assert (back / "big").stat().st_size == 3_000_000
    assert (back / "tree" / os.fsdecode(b"\xff\xfe")).read_bytes() == b"no utf-8"
    assert os.access(back / "tree/run.sh", os.X_OK)
    assert (back / "tree/empty").is_dir()
    assert os.readlink(back / "tree/link") == "deep/with space"
    assert (back / "tree/outside").read_bytes() == Path(__file__).read_bytes()
    assert sorted(p.name for p in back.iterdir()) == ["a b", "big", "tree"]


def test_put_replaces_files_and_leaves_others(transport: Transport, tmp_path: Path) -> None:
    transport.put({"a": b"1", "b": b"2"}, str(tmp_path))
    transport.put({"a": b"3"}, str(tmp_path))
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"3", b"2")


def test_put_refuses_what_is_not_there_or_leaves_the_directory(transport: Transport, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(TargetError, match="gone"):
        transport.put({"first": b"1", "x": tmp_path / "gone"}, str(target))
    for name in ("../x", "/x", ""):
        with pytest.raises(TargetError, match="not a name within"):
            transport.put({"first": b"1", name: b""}, str(target))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TargetError, match="neither a file nor"):
        transport.put({"first": b"1", "folder": tmp_path / "fifo"}, str(target))
    assert list(target.iterdir()) == []


def test_put_says_why_it_cannot_write(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RemoteFailure, match=r"could not be written.*file"):
        transport.put({"x": b""}, str(tmp_path / "file"))


def test_a_secret_is_its_owners_alone_from_its_first_byte(transport: Transport, tmp_path: Path) -> None:
    target = tmp_path / "target"
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError):  # it is renamed meanwhile
                seen.update(path.stat().st_mode & 0o777 for path in target.rglob("secret"))

    target.mkdir()
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        transport.put({"secret": b"s" * (64 << 20), "public": b""}, str(target), modes={"secret": 0o600})
    finally:
        done.set()
        watcher.join()
    assert seen == {0o600}
    assert (target / "public").stat().st_mode & 0o777 == 0o644


def test_get_leaves_out_what_it_is_told_to(copying: Transport, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("keep/a", "keep/drop.tmp", "top/x", "keep/top/y", "deep/cache/z"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    copying.get(str(source), tmp_path / "back", exclude=["*.tmp", "/top", "cache"])
    found = sorted(str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*") if p.is_file())
    assert found == ["keep/a", "keep/top/y"]


def test_get_follows_no_link_out_of_the_tree(copying: Transport, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "absolute").symlink_to(tmp_path / "outside")
    (source / "relative").symlink_to("../outside")
    (source / "file").symlink_to("../outside/secret")
    (source / "inside").symlink_to("real")
    (source / "real").write_text("real")
    copying.get(str(source), tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["inside", "real"]
    assert (tmp_path / "back/inside").read_text() == "real"


def test_get_writes_through_no_link_that_is_here_already(copying: Transport, tmp_path: Path) -> None:
    (tmp_path / "source/folder").mkdir(parents=True)
    (tmp_path / "source/folder/file").write_text("new")
    (tmp_path / "outside").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back/folder").symlink_to(tmp_path / "outside")
    copying.get(str(tmp_path / "source"), tmp_path / "back")
    assert list((tmp_path / "outside").iterdir()) == []
    assert (tmp_path / "back/folder/file").read_text() == "new"


def test_get_of_what_is_no_directory_says_so(copying: Transport, tmp_path: Path) -> None:
    with pytest.raises(RemoteFailure, match="no directory"):
        copying.get(str(tmp_path / "nothing"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_copy_that_broke_is_continued_and_holds_no_half_file(
    sshd: Sshd, over_ssh: SshTransport, tmp_path: Path
) -> None:
    """The connection is cut while the second, large file is on its way, of both ways to copy."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("small")
    with (source / "b").open("wb") as f:
        for _ in range(150):
            f.write(os.urandom(1 << 20))
    for rsync in (True, False):
        back = tmp_path / f"back-{rsync}"
        failed: list[Exception] = []

        def copy(way: SshTransport, back: Path, failed: list[Exception]) -> None:
            try:
                way.get(str(source), back)
            except TargetError as e:
                failed.append(e)

        copier = threading.Thread(target=copy, args=(replace(over_ssh, rsync=rsync), back, failed))
        copier.start()

        def under_way(back: Path = back) -> bool:
            return any(p.stat().st_size > 1 << 20 for p in back.rglob("*") if p.is_file())

        processes.wait_until(under_way, "the copy is under way")
        sshd.stop()
        copier.join()
        sshd.start()
        assert failed and "b" not in [p.name for p in back.iterdir()]
        replace(over_ssh, rsync=rsync).get(str(source), back)
        assert (back / "b").read_bytes() == (source / "b").read_bytes()
        assert sorted(p.name for p in back.iterdir()) == ["a", "b"]
        shutil.rmtree(back)


def test_twenty_threads_and_other_processes_use_one_connection(sshd: Sshd, over_ssh: SshTransport) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: over_ssh.run(f"sleep 0.2; echo {i}").out, range(20)))
    assert answers == [f"{i}\n".encode() for i in range(20)]
    code = f"from nemotron_dagster.jobs.transport import SshTransport\nprint({over_ssh!r}.run('echo hi').out)"
    others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    assert [p.communicate()[0] for p in others] == [b"b'hi\\n'\n"] * 3
    assert (sshd.connections(), len(_masters())) == (1, 1)
    assert sshd.sessions() == 23


def test_a_server_that_allows_few_sessions_is_waited_for(sshd: Sshd, over_ssh: SshTransport) -> None:
    sshd.stop()
    sshd.start(MaxSessions=2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: over_ssh.run(f"sleep 0.3; echo {i}").out, range(8)))
    assert answers == [f"{i}\n".encode() for i in range(8)]
    assert sshd.connections() == 1


def test_a_server_that_is_down_is_unreachable_and_used_again_when_it_is_back(
    sshd: Sshd, over_ssh: SshTransport
) -> None:
    assert over_ssh.run("echo 1").out == b"1\n"
    sshd.stop()
    with pytest.raises(TargetError, match=rf"{sshd.port}.*refused.*run again") as e:
        over_ssh.run("echo 2")
    assert not isinstance(e.value, RemoteFailure)
    sshd.start()
    assert over_ssh.run("echo 3").out == b"3\n"


def test_a_connection_lost_while_a_command_runs_is_told_as_that(
    sshd: Sshd, over_ssh: SshTransport, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(over_ssh.run, f"touch {tmp_path}/began; sleep 60")
        processes.wait_until((tmp_path / "began").exists, "the command runs")
        sshd.stop()
        with pytest.raises(TargetError, match="connection was lost"):
            running.result(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_master_that_was_killed_is_replaced(sshd: Sshd, over_ssh: SshTransport, number: int) -> None:
    over_ssh.run("true")
    (master,) = _masters()
    os.kill(master, number)
    processes.wait_until(lambda: not processes.alive(master), "the master has gone")
    assert over_ssh.run("echo back").out == b"back\n"
    assert sshd.connections() == 2


def test_a_master_that_hangs_is_given_up(sshd: Sshd, over_ssh: SshTransport) -> None:
    over_ssh.run("true")
    (master,) = _masters()
    os.kill(master, signal.SIGSTOP)
    try:
        with pytest.raises(TargetError, match="no answer"):
            over_ssh.run("echo", timeout=2)
        assert over_ssh.run("echo back").out == b"back\n"
    finally:
        os.kill(master, signal.SIGKILL)


def test_a_socket_that_nobody_serves_is_replaced(over_ssh: SshTransport) -> None:
    over_ssh.run("true")
    (socket,) = [p for p in Path(os.environ["XDG_RUNTIME_DIR"], "nemotron").iterdir() if p.suffix != ".lock"]
    over_ssh.close()
    processes.wait_until(lambda: not _masters(), "the master has ended")
    socket.write_text("")
    assert over_ssh.run("echo back").out == b"back\n"


def _stranger(sshd: Sshd) -> dict[str, object]:
    return {"identity": str(sshd.stranger)}


def _missing(sshd: Sshd) -> dict[str, object]:
    return {"identity": str(sshd.root / "none")}


def _unknown(sshd: Sshd) -> dict[str, object]:
    return {"known_hosts": str(sshd.root / "empty"), "strict_host_key_checking": "yes"}


def _changed(sshd: Sshd) -> dict[str, object]:
    sshd.stop()
    sshd.change_host_key()
    sshd.start()
    return {"strict_host_key_checking": "accept-new"}


def _no_host(_: Sshd) -> dict[str, object]:
    return {"host": "no-such-host.invalid"}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (_stranger, r"key was refused \(.*stranger\).*ssh-add"),
        (_missing, r"identity .*none cannot be read"),
        (_unknown, r"host key is not in .*empty.*accept-new"),
        (_changed, r"host key is not the one in .*ssh-keygen -f .* -R '\[127.0.0.1\]:\d+'"),
        (_no_host, r"no-such-host.*Check host"),
    ],
)
def test_who_is_not_let_in_is_told_why_and_what_to_do(
    sshd: Sshd, over_ssh: SshTransport, how: Callable[[Sshd], dict[str, object]], told: str
) -> None:
    """None of them asks for anything, and none borrows the connection of a login that was let in."""
    over_ssh.run("true")
    refused = replace(over_ssh, **how(sshd))
    for _ in range(2):
        with pytest.raises(TargetError, match=told) as e:
            refused.run("true")
        assert "\n" not in str(e.value)


def test_a_host_is_accepted_once_without_a_file_of_known_ones(sshd: Sshd, over_ssh: SshTransport) -> None:
    known = sshd.root / "new known hosts"
    new = replace(over_ssh, known_hosts=str(known), strict_host_key_checking="accept-new")
    assert new.run("echo 1").out == b"1\n"
    assert known.read_text().split()[-1] in (sshd.root / "host.pub").read_text()
    new.close()
    assert replace(new, strict_host_key_checking="yes").run("echo 2").out == b"2\n"


def test_a_folder_of_sockets_that_others_can_enter_is_refused(over_ssh: SshTransport) -> None:
    folder = Path(os.environ["XDG_RUNTIME_DIR"], "nemotron")
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(TargetError, match="others could use"):
        over_ssh.run("true")
