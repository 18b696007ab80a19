"""One OpenSSH connection per login, shared by all threads and processes of a user, that comes back by itself.

The connection is a background ``ssh`` with a control socket. Who finds none starts it under a file lock; all else are
clients of it, which can do nothing but use it: so there is never a second connection, and never a prompt.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron_dagster.errors import TargetError

_CONNECT_SECONDS = 15
_START_SECONDS = 60.0
_SOCKET_LIMIT = 104 - 18  # ssh binds a socket with 17 characters more, and renames it
#: Sessions at once from one process: OpenSSH's servers allow ten on a connection.
_SESSIONS = 8
#: Said by a client that got no session and so turned to its ProxyCommand, which leads nowhere: nothing was started.
_NO_SESSION = "exchange_identification"
_NOWHERE = "head -c 1 >/dev/null"  # waits for what ssh says first: writing to nobody, ssh would die without a word
_REFUSED_SESSION = "open refused by peer"


@dataclass(frozen=True)
class Login:
    """Who logs in where, and by which keys; what is not given is the user's ~/.ssh/config's."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    strict_host_key_checking: str = "accept-new"
    known_hosts: str | None = None

    @property
    def where(self) -> str:
        """``user@host:port``, for messages."""
        return (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")

    @property
    def sessions(self) -> threading.BoundedSemaphore:
        """Held while a client runs."""
        with _guard:
            return _semaphores.setdefault(self._name, threading.BoundedSemaphore(_SESSIONS))

    @property
    def _name(self) -> str:
        """Other keys are another connection: a login must not borrow what it was refused itself."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def _socket(self) -> Path:
        return control_directory() / self._name

    def client(self, command: str | None = None) -> list[str]:
        """argv of a client of the connection; the user's own settings were the connection's matter."""
        path = str(self._socket).replace("%", "%%")
        options = ["-F", "none", "-T", "-o", "ControlMaster=no", "-o", f'ControlPath="{path}"', "-o", "BatchMode=yes"]
        options += ["-o", "LogLevel=ERROR", "-o", f"ProxyCommand={_NOWHERE}"]
        return ["ssh", *options, *(["--", "target", command] if command is not None else [])]

    def connect(self) -> None:
        """Have the connection: as it is, or a new one.

        Raises:
            TargetError: the host cannot be reached or does not let us in; the message says what to do.
        """
        if not self.host or self.host.startswith("-"):
            raise TargetError(f"{self.host!r} is no host. Name the login node in the profile.")
        if _answers(self._socket):
            return
        asked = time.monotonic()
        with open(self._socket.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            failed = _failed.get(self._name)
            if failed and failed[0] > asked:  # while we waited; to ask again would only add up the time limits
                raise TargetError(failed[1])
            if _answers(self._socket):
                return
            self._socket.unlink(missing_ok=True)
            try:
                self._start()
            except TargetError as e:
                _failed[self._name] = (time.monotonic(), str(e))
                raise

    def forget(self) -> None:
        """Start a new connection next time: this one does not answer. What runs over it is left alone."""
        self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        """End the connection, and all that runs over it. It would end itself two minutes after its last use."""
        subprocess.run([*self.client(), "-O", "exit", "target"], capture_output=True, check=False, timeout=20)

    def _start(self) -> None:
        if self.identity and not os.access(Path(self.identity).expanduser(), os.R_OK):
            raise TargetError(f"{self.where}: identity {self.identity} cannot be read. Name a private key file.")
        with tempfile.TemporaryFile() as told:  # the background process may keep it open
            try:
                code = subprocess.run(
                    self._master(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    start_new_session=True,
                    env=_without_prompts(os.environ),
                    timeout=_START_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise TargetError(
                    f"{self.where}: no login within {_START_SECONDS:.0f} s. Try `{self._by_hand()}`."
                ) from None
            except FileNotFoundError:
                raise TargetError("ssh is not installed. Install the OpenSSH client, and run again.") from None
            told.seek(0)
            text = told.read().decode(errors="replace")
        if code or not _answers(self._socket):
            raise TargetError(self._why(text))

    def _master(self) -> list[str]:
        path = str(self._socket).replace("%", "%%")
        options = {
            "ControlPath": f'"{path}"',
            "ControlPersist": 120,
            "BatchMode": "yes",
            "ConnectTimeout": _CONNECT_SECONDS,
            "ServerAliveInterval": 10,
            "ServerAliveCountMax": 3,
            "StrictHostKeyChecking": self.strict_host_key_checking,
            "LogLevel": "ERROR",
            "RemoteCommand": "none",
            "PermitLocalCommand": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
        }
        if self.known_hosts:
            options["UserKnownHostsFile"] = f'"{Path(self.known_hosts).expanduser()}"'
        if self.identity:
            options["IdentitiesOnly"] = "yes"
        argv = ["ssh", "-M", "-N", "-f", "-T"]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        return [*argv, *self._address()]

    def _address(self) -> list[str]:
        identity = ["-i", str(Path(self.identity).expanduser())] if self.identity else []
        return [*identity, *(["-p", str(self.port)] if self.port else []), *(["-l", self.user] if self.user else []),
                "--", self.host]  # fmt: skip

    def _by_hand(self) -> str:
        return shlex.join(["ssh", *(a for a in self._address() if a != "--"), "true"])

    def _why(self, text: str) -> str:
        """A message for what ssh said on stderr."""
        lines = [line for line in text.replace("\r", "").splitlines() if line.strip()]
        last = lines[-1].removeprefix("ssh: ").strip() if lines else "ssh said nothing"
        known = self.known_hosts or "~/.ssh/known_hosts"
        named = f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host
        if "IDENTIFICATION HAS CHANGED" in text:
            forget = shlex.join(["ssh-keygen", "-f", known, "-R", named])
            return (
                f"{self.where}: its host key is not the one in {known}. Ask its administrators whether it was"
                f" changed; if so, `{forget}` and run again."
            )
        if "Host key verification failed" in text or "host key is known" in text:
            return (
                f"{self.where}: its host key is not in {known}. Log in once by hand (`{self._by_hand()}`) and compare"
                ' the key, or set strict_host_key_checking = "accept-new".'
            )
        if "Permission denied" in text or "Too many authentication failures" in text:
            key = self.identity or "the SSH agent's"
            return (
                f"{self.where}: the key was refused ({key}). Check user and identity of the profile; a key with a"
                f" passphrase must be in the SSH agent (`ssh-add`). Try `{self._by_hand()}`."
            )
        if "Could not resolve" in text:
            return f"{self.where}: {last}. Check host in the profile, and the network or VPN."
        if any(
            w in text for w in ("refused", "timed out", "No route", "unreachable", "reset by peer", "Connection clos")
        ):
            return f"{self.where}: {last}. Check host and port of the profile, and the network or VPN; then run again."
        return f"{self.where}: {last}. Try `{self._by_hand()}`."


_guard = threading.Lock()
_semaphores: dict[str, threading.BoundedSemaphore] = {}
_failed: dict[str, tuple[float, str]] = {}


def had_no_session(err: bytes) -> bool:
    """Whether a client tells that nothing of its command was started."""
    return _NO_SESSION.encode() in err or too_many_sessions(err)


def too_many_sessions(err: bytes) -> bool:
    """Whether the server only allows no more sessions on the connection at this time."""
    return _REFUSED_SESSION.encode() in err


def client_env() -> dict[str, str]:
    """The environment of clients: nobody is asked anything."""
    return _without_prompts(os.environ)


def control_directory() -> Path:
    """Where control sockets lie: ours alone.

    Raises:
        TargetError: somebody else made it, or others may enter it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime, "nemotron") if runtime else None
    if path is None or not path.parent.is_dir() or len(str(path)) + 17 > _SOCKET_LIMIT or '"' in str(path):
        path = Path(f"/tmp/nemotron-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise TargetError(f"{path}: others could use the SSH connections in it. Remove it, or set XDG_RUNTIME_DIR.")
    return path


def _without_prompts(env: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k not in ("SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY")}


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        try:
            s.connect(str(path))
        except OSError:
            return False
    return True
