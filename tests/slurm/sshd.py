"""An OpenSSH server on loopback with keys of its own, as a login node."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import processes
from processes import wait_until

_PROGRAM = "/usr/sbin/sshd"  # it insists on its whole path


class Sshd:
    """A key-only server below ``root``; ``env`` is what its sessions have in their environment.

    ``identity`` is let in, ``stranger`` is not. ``known_hosts`` names the server's key.
    """

    def __init__(self, root: Path, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.host = "127.0.0.1"
        self.user = getpass.getuser()
        self.port = 0
        self.identity = root / "id"
        self.stranger = root / "stranger"
        self.known_hosts = root / "known_hosts"
        self._env = dict(env or {})
        self._log = root / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: object) -> None:
        """Start it, again, on the port that it had. ``settings`` come before ours in sshd_config.

        Raises:
            AssertionError: it does not come up.
        """
        assert not self._process, "sshd runs already"
        assert os.access(_PROGRAM, os.X_OK), f"{_PROGRAM}: not installed. Run .ci/run, which installs what tests need."
        self.root.mkdir(parents=True, exist_ok=True)
        for key in ("host", "id", "stranger"):
            if not (self.root / key).exists():
                self._new_key(key)
        self.port = self.port or _free_port()
        self._know_host()
        (self.root / "authorized_keys").write_bytes((self.root / "id.pub").read_bytes())
        (self.root / "authorized_keys").chmod(0o600)
        config = self.root / "sshd_config"
        config.write_text("".join(f"{k} {v}\n" for k, v in {**settings, **self._settings()}.items() if v is not None))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # compiled in; empty, for its unprivileged half
        argv = [_PROGRAM, "-D", "-f", str(config), "-E", str(self._log)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        wait_until(self._listens, f"{self._log}: sshd listens")

    def stop(self) -> None:
        """End it with all its connections, as an outage does. Returns when all have gone."""
        if self._process:
            processes.end([self._process.pid, *processes.descendants(self._process.pid)], grace=0)
            self._process.wait()
            self._process = None

    def change_host_key(self) -> None:
        """Give a stopped server another key than the one in ``known_hosts``."""
        assert not self._process
        known = self.known_hosts.read_text()
        for old in ("host", "host.pub"):
            (self.root / old).unlink()
        self._new_key("host")
        self.known_hosts.write_text(known)

    def connections(self) -> int:
        """How many connections were ever let in; many sessions may share one."""
        return self._log.read_text().count("Accepted publickey")

    def sessions(self) -> int:
        """How many commands were ever started."""
        return self._log.read_text().count("Starting session: command")

    def _settings(self) -> dict[str, object]:
        sessions = " ".join(f'"{name}={value}"' for name, value in self._env.items())
        return {
            "Port": self.port,
            "ListenAddress": self.host,
            "HostKey": self.root / "host",
            "AuthorizedKeysFile": self.root / "authorized_keys",
            "PidFile": "none",
            "LogLevel": "VERBOSE",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "UseDNS": "no",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "Subsystem": "sftp internal-sftp",
            "SetEnv": sessions or None,
        }

    def _new_key(self, name: str) -> None:
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.root / name)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    def _know_host(self) -> None:
        if not self.known_hosts.exists():
            key = " ".join((self.root / "host.pub").read_text().split()[:2])
            self.known_hosts.write_text(f"[{self.host}]:{self.port} {key}\n")

    def _listens(self) -> bool:
        assert self._process and self._process.poll() is None, self._log.read_text()
        with socket.socket() as s:
            return s.connect_ex((self.host, self.port)) == 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
