"""How commands run on a login node, and how files get there and back: on this machine, or over SSH.

"Unreachable" is a TargetError, never a state: whoever asks again later gets the answer.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs import ssh, transfer
from nemotron_dagster.jobs.shell import Ended, Feed, TimedOut, run_script

_LAST_LINES = 3
_IO_TIMEOUT = 120
_PATIENCE = 600  # with a server that allows no more sessions at this time
_RECONNECTS = 3
#: rsync could not talk to the one on the other side, or there is none after all: plain tar does it.
_RSYNC_CANNOT = (1, 2, 4, 12, 14, 127)


@dataclass(frozen=True)
class Done:
    """A command that ran to its end, and what it wrote."""

    code: int
    out: bytes
    err: bytes


class RemoteFailure(TargetError):
    """The target was reached, and the command failed there."""

    def __init__(self, message: str, code: int, stderr: str) -> None:
        super().__init__(message)
        self.code = code
        self.stderr = stderr


class Transport(Protocol):
    """Where a target's commands run. Safe to use from several threads and processes at once."""

    @property
    def where(self) -> str:
        """``on this machine``, or ``user@host:port``: for messages."""
        ...

    def run(self, script: str, stdin: bytes = b"", timeout: float = 60, check: bool = True) -> Done:
        """Run a POSIX shell script; it is in no process list. What a login shell writes first is not in the answer.

        When the connection is lost the script sees the end of its stdin: one that must not act on half of it
        (``sbatch``) reads a file that ``put`` brought.

        Raises:
            TargetError: the target cannot be reached, the connection was lost, or the script took too long; in the
                latter two it may have run all the same.
            RemoteFailure: with ``check``, its exit code is not 0.
        """
        ...

    def put(self, files: Mapping[str, bytes | Path], directory: str, modes: Mapping[str, int] | None = None) -> None:
        """Write files and whole folders into a directory, which is made. Each file appears whole, by a rename.

        ``modes`` are by name, ``folder/file`` for one in a folder, and hold from the first byte on; default: the
        file's own, 0644 for bytes, less the umask of the other side.

        Raises:
            TargetError: the target cannot be reached, or a file to send is not there.
            RemoteFailure: it cannot be written there.
        """
        ...

    def get(self, remote: str, local: Path, exclude: Sequence[str] = ()) -> None:
        """Copy a directory tree; what is here already is not copied again, so that a broken copy is continued.

        Files appear whole. Links that leave the tree are left out. ``exclude`` are patterns as rsync has them:
        ``/a/b`` counts from the top of the tree, ``*.tmp`` at any depth.

        Raises:
            TargetError: the target cannot be reached, or files change meanwhile.
            RemoteFailure: it is no directory, or cannot be read.
        """
        ...


class _Shell:
    """What both ways have in common: all they differ in is how a script is started."""

    rsync: bool

    @property
    def where(self) -> str:
        raise NotImplementedError

    def _execute(self, script: str, feed: Feed | None, timeout: float | None) -> Ended:
        raise NotImplementedError

    def _rsync_source(self, path: str) -> tuple[list[str], str, dict[str, str] | None]:
        raise NotImplementedError

    def run(self, script: str, stdin: bytes = b"", timeout: float = 60, check: bool = True) -> Done:
        done = self._done(script, _feed(stdin) if stdin else None, timeout)
        if check and done.code:
            raise self._failure("a command failed there", done)
        return done

    def put(self, files: Mapping[str, bytes | Path], directory: str, modes: Mapping[str, int] | None = None) -> None:
        if not files:
            return
        transfer.check(files)
        try:
            done = self._done(
                transfer.unpack_script(directory), lambda pipe: transfer.pack(files, modes or {}, pipe), None
            )
        except OSError as e:
            raise TargetError(f"{e.filename or directory}: {e.strerror or e}. Nothing was sent; run again.") from e
        if done.code:
            raise self._failure(f"files could not be written to {directory}", done)

    def get(self, remote: str, local: Path, exclude: Sequence[str] = ()) -> None:
        asked = f"[ -d {shlex.quote(remote)} ] || exit 44; command -v rsync >/dev/null || exit 45"
        done = self.run(asked, check=False)
        if done.code == 44:
            raise self._failure(f"{remote} is no directory there", done)
        local.mkdir(parents=True, exist_ok=True)
        if not (self.rsync and done.code == 0 and shutil.which("rsync") and self._by_rsync(remote, local, exclude)):
            self._by_tar(remote, local, exclude)

    def _done(self, script: str, feed: Feed | None, timeout: float | None) -> Done:
        try:
            ended = self._execute(script, feed, timeout)
        except TimedOut:
            raise TargetError(
                f"{self.where}: no answer within {timeout:.0f} s. Whether the command ran to its end is not known;"
                " see that the machine is well, and run again."
            ) from None
        if ended.code is None:
            raise TargetError(
                f"{self.where}: the connection was lost while a command ran, which may have run to its end. Run again."
            )
        return Done(ended.code, ended.out, ended.err)

    def _failure(self, what: str, done: Done) -> RemoteFailure:
        text = done.err.decode(errors="replace").strip()
        last = " | ".join(text.splitlines()[-_LAST_LINES:]) or "it wrote nothing on stderr"
        message = f"{self.where}: {what} (exit code {done.code}): {last.rstrip('.')}. Mend that, and run again."
        return RemoteFailure(message, done.code, text)

    def _by_rsync(self, remote: str, local: Path, exclude: Sequence[str]) -> bool:
        """False where rsync does not work between the two sides."""
        options, source, env = self._rsync_source(f"{remote.rstrip('/')}/")
        argv = ["rsync", "-rlpt", "--safe-links", "--chmod=u+rw", "--protect-args", f"--partial-dir={transfer.PARTIAL}"]
        argv += [f"--timeout={_IO_TIMEOUT}", *(f"--exclude={p}" for p in exclude), *options]
        done = subprocess.run(
            [*argv, "--", source, f"{os.path.abspath(local)}/"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
            check=False,
        )
        if not done.returncode:
            return True
        if done.returncode in _RSYNC_CANNOT or ssh.had_no_session(done.stderr):
            return False
        if done.returncode in (10, 30, 35, 255):
            raise TargetError(f"{self.where}: the connection was lost while {remote} was copied. Run again to go on.")
        raise self._failure(f"{remote} could not be copied", Done(done.returncode, b"", done.stderr))

    def _by_tar(self, remote: str, local: Path, exclude: Sequence[str]) -> None:
        listed = self.run(transfer.list_script(remote), timeout=600)
        tree = transfer.entries(listed.out, exclude)
        transfer.make_folders_and_links(local, tree)
        files = [e for e in tree if e.kind == "f" and not transfer.have(local, e)]
        for batch in transfer.batches(files):
            if transfer.is_large(batch):
                self._large(remote, local, batch[0])
                continue
            names = b"\0".join(os.fsencode(e.path) for e in batch) + b"\0"
            done = self.run(transfer.tar_script(remote), names, timeout=600)
            transfer.unpack(local, batch, done.out)
        shutil.rmtree(local / transfer.PARTIAL, ignore_errors=True)

    def _large(self, remote: str, local: Path, entry: transfer.Entry) -> None:
        """A file piece by piece; its beginning is kept under a name that says of which state of the file it is."""
        part = local / transfer.PARTIAL / entry.digest
        part.parent.mkdir(exist_ok=True)
        with part.open("ab") as file:
            while file.tell() < entry.size:
                piece = self.run(transfer.piece_script(remote, entry.path, file.tell()), timeout=600).out
                if not piece:
                    break
                file.write(piece)
                file.flush()
        after = self.run(
            f"cd -- {shlex.quote(remote)} && stat -c '%s %Y %a' {shlex.quote(f'./{entry.path}')}"
        ).out.split()
        if part.stat().st_size != entry.size or [int(v) for v in after[:2]] != [entry.size, int(entry.changed)]:
            part.unlink()
            raise TargetError(f"{entry.path}: changed while copied. Run again when nobody writes there.")
        transfer.place(local, entry, int(after[2], 8), part)


def _feed(data: bytes) -> Feed:
    def feed(pipe: BinaryIO) -> None:
        pipe.write(data)

    return feed


@dataclass(frozen=True)
class LocalTransport(_Shell):
    """This machine is the login node. Commands have our environment."""

    rsync: bool = True

    @property
    def where(self) -> str:
        return "on this machine"

    def _execute(self, script: str, feed: Feed | None, timeout: float | None) -> Ended:
        ended = run_script(lambda line: ["/bin/sh", "-c", line], script, feed, timeout)
        if not ended.started:
            raise TargetError(f"/bin/sh: {_text(ended.err)}. Mend that, and run again.")
        return ended

    def _rsync_source(self, path: str) -> tuple[list[str], str, dict[str, str] | None]:
        return [], os.path.abspath(path) + "/", None


@dataclass(frozen=True)
class SshTransport(_Shell):
    """A login node over OpenSSH; what is not given is as in ~/.ssh/config. Never asks for anything."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    strict_host_key_checking: str = "accept-new"
    known_hosts: str | None = None
    rsync: bool = True

    @property
    def login(self) -> ssh.Login:
        """The connection, which others share."""
        keys = self.strict_host_key_checking, self.known_hosts
        return ssh.Login(self.host, self.user or None, self.port or None, self.identity or None, *keys)

    @property
    def where(self) -> str:
        return self.login.where

    def close(self) -> None:
        """End the connection now, for everybody. Nobody has to: it ends two minutes after its last use."""
        self.login.close()

    def _execute(self, script: str, feed: Feed | None, timeout: float | None) -> Ended:
        until = time.monotonic() + (timeout or _PATIENCE)
        pause, attempts = 0.05, 0
        while True:
            self.login.connect()
            with self.login.sessions:
                try:
                    ended = run_script(self.login.client, script, feed, timeout, ssh.client_env())
                except TimedOut as e:
                    if not e.started:
                        self.login.forget()
                    raise
            if ended.started:
                return ended
            if not ssh.had_no_session(ended.err):
                # Perhaps the answer alone was lost: to run it again is for those to decide who know what it does.
                raise TargetError(f"{self.where}: no shell answered: {_text(ended.err)}. Run again.")
            attempts += not ssh.too_many_sessions(ended.err)
            if attempts > _RECONNECTS or time.monotonic() > until:
                raise TargetError(f"{self.where}: no session on the connection: {_text(ended.err)}. Run again.")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _rsync_source(self, path: str) -> tuple[list[str], str, dict[str, str] | None]:
        return ["-e", shlex.join(self.login.client())], f"target:{path}", ssh.client_env()


def _text(err: bytes) -> str:
    lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:]).rstrip(".") or "nothing on stderr"
