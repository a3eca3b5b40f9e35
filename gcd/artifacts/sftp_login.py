"""Logs in to an SFTP server as MLflow's users do: URI, ~/.ssh/config, keys, agent, known hosts.

It must never accept a host key that nobody knows, nor give a name to a shell unchecked.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import paramiko

from gcd.artifacts.logins import Address
from gcd.artifacts.sftp_client import Client
from gcd.artifacts.sftp_errors import FOREIGN, UnknownHostKey, not_connected
from gcd.errors import BackendError

KEY_FILE, KNOWN_HOSTS, PASSWORD = "SFTP_KEY_FILE", "SFTP_KNOWN_HOSTS", "SFTP_PASSWORD"
"""Variables that an MLflow store may have for itself."""
CONFIG = "~/.ssh/config"
SYSTEM_HOSTS = "/etc/ssh/ssh_known_hosts"
CONNECT_SECONDS, LOGIN_SECONDS, READ_SECONDS = 10, 20, 60
ALIVE_SECONDS = 15
LOG = "gcd.artifacts.paramiko"

logging.getLogger(LOG).setLevel(logging.CRITICAL)  # what goes wrong there is raised here


class Login(NamedTuple):
    """How to log in somewhere."""

    host: str
    port: int
    user: str
    passwords: tuple[str, ...] = ()
    key_files: tuple[str, ...] = ()
    is_key_given: bool = False
    """Whether the store has a key of its own: no other is tried."""
    known_hosts: str | None = None
    proxy_command: str | None = None

    @property
    def where(self) -> str:
        """Whom it is, for people."""
        port = "" if self.port == 22 else f":{self.port}"
        return f"{self.user}@{self.host}{port}"

    def __repr__(self) -> str:
        return f"<login {self.where}>"


def login_to(address: Address, passwords: Sequence[str], environment: Mapping[str, str]) -> Login:
    """How to log in at an address: the URI over ~/.ssh/config, as MLflow has it.

    Raises BackendError where that file cannot be used.
    """
    written = _configured(address.host)
    own_password = environment.get(PASSWORD)
    own_key = environment.get(KEY_FILE)
    identities = written.get("identityfile", [])
    proxy = written.get("proxycommand")
    if proxy is None and written.get("proxyjump", "none") != "none":
        hint = f"ProxyCommand ssh -W %h:%p {written['proxyjump']}"
        raise BackendError(f"{CONFIG}: ProxyJump is not understood here", hint=hint)
    return Login(
        host=str(written.get("hostname", address.host)),
        port=address.port or int(written.get("port", 22)),
        user=address.user or str(written.get("user") or getpass.getuser()),
        passwords=(*passwords, *([own_password] if own_password else ())),
        key_files=(own_key,) if own_key else tuple(map(str, identities)),
        is_key_given=bool(own_key),
        known_hosts=environment.get(KNOWN_HOSTS) or None,
        proxy_command=None if proxy in (None, "none") else str(proxy),
    )


def _configured(host: str) -> Mapping[str, Any]:
    path = Path(CONFIG).expanduser()
    if not path.exists():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    except (*FOREIGN, paramiko.ConfigParseError, ImportError) as error:
        raise BackendError(f"{path} cannot be used: {error}", hint="correct it") from error


class _Refuse(paramiko.MissingHostKeyPolicy):
    """A host that is not known is none of ours."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:  # noqa: ARG002
        raise UnknownHostKey(key.get_name(), key.fingerprint)


class Session(NamedTuple):
    """A login that was let in, and its SFTP channel."""

    ssh: paramiko.SSHClient
    client: Client
    fingerprint: str
    """Of the server's key."""

    def close(self) -> None:
        """End both."""
        with suppress(*FOREIGN):
            self.client.close()
        self.ssh.close()


def open_session(login: Login) -> Session:
    """Log in. Raises Lost, which says what mends it."""
    refused: Exception | None = None
    for way in _ways(login):
        ssh = paramiko.SSHClient()
        try:
            return _opened(ssh, login, way)
        except paramiko.AuthenticationException as error:
            ssh.close()
            refused = refused or error
        except FOREIGN as error:
            ssh.close()
            raise not_connected(error, login.where, login.host, login.port) from error
    assert refused is not None  # there is always a way to try
    raise not_connected(refused, login.where, login.host, login.port) from refused


def _ways(login: Login) -> Iterator[dict[str, Any]]:
    """Each password by itself, as MLflow tries it, then the keys: a server counts what it refuses."""
    for password in login.passwords:
        yield {"password": password, "allow_agent": False, "look_for_keys": False}
    keys = [str(Path(each).expanduser()) for each in login.key_files]
    if login.is_key_given:
        yield {"key_filename": keys, "allow_agent": False, "look_for_keys": False}
    else:
        yield {"key_filename": [each for each in keys if Path(each).exists()]}


def _opened(ssh: paramiko.SSHClient, login: Login, way: Mapping[str, Any]) -> Session:
    _load_known_hosts(ssh, login)
    ssh.set_missing_host_key_policy(_Refuse())
    ssh.set_log_channel(LOG)
    command = login.proxy_command
    ssh.connect(
        login.host,
        login.port,
        login.user,
        sock=paramiko.ProxyCommand(command) if command else None,
        timeout=CONNECT_SECONDS,
        banner_timeout=LOGIN_SECONDS,
        auth_timeout=LOGIN_SECONDS,
        channel_timeout=LOGIN_SECONDS,
        **way,
    )
    transport = ssh.get_transport()
    client = transport and Client.from_transport(transport)
    if transport is None or client is None:
        raise paramiko.SSHException("the server offers no SFTP")
    transport.set_keepalive(ALIVE_SECONDS)
    channel = client.get_channel()
    if channel is not None:
        channel.settimeout(READ_SECONDS)
    return Session(ssh, client, transport.get_remote_server_key().fingerprint)


def _load_known_hosts(ssh: paramiko.SSHClient, login: Login) -> None:
    if login.known_hosts:
        ssh.load_system_host_keys(str(Path(login.known_hosts).expanduser()))
        return
    ssh.load_system_host_keys()
    if Path(SYSTEM_HOSTS).exists():
        ssh.load_system_host_keys(SYSTEM_HOSTS)


def trusts(login: Login) -> str:
    """Which file of known hosts is asked, for people."""
    return login.known_hosts or "~/.ssh/known_hosts"
