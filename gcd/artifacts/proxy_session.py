"""Opens connections to an MLflow server, with the credentials and certificates that MLflow's client uses.

It must never write a credential anywhere, nor follow the server to another host.
"""

from __future__ import annotations

import configparser
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from gcd.errors import BackendError

CONNECT_SECONDS, READ_SECONDS, DELETE_SECONDS = 5, 60, 300
"""The server answers a deletion when all is deleted."""
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN, INSECURE = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_INSECURE_TLS"
TRUSTED, OWN = "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"
UNKNOWN = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
"""Ways of MLflow to sign a request that gcd does not know."""
CREDENTIALS_FILE = "~/.mlflow/credentials"


class Session:
    """Where the server is, and what is said to it in every request."""

    def __init__(self, url: str, environment: Mapping[str, str], requests: int) -> None:
        self.environment = environment
        for name in UNKNOWN:
            if environment.get(name, "").lower() not in ("", "false", "0"):
                hint = "give artifacts_destination, which needs no server"
                raise BackendError(f"{name} is not supported by artifacts_proxy", hint=hint)
        parts = urlsplit(url)
        self.is_encrypted = parts.scheme.lower() == "https"
        self.host = parts.hostname or ""
        self.base = parts.path.rstrip("/")
        self.headers = {"User-Agent": "gcd", "Accept": "application/json", **self._authorization()}
        self._port, self._requests = parts.port, requests
        self.pool = self._pool(parts.port, requests)

    def _pool(self, port: int | None, requests: int) -> HTTPConnectionPool:
        """As many connections as requests; nothing is tried again by itself: gcd knows what may be."""
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        if not self.is_encrypted:
            return HTTPConnectionPool(
                self.host, port, timeout=timeout, maxsize=requests, block=True, retries=False
            )
        if not self.checks_tls:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # doctor warns
        return HTTPSConnectionPool(
            self.host,
            port,
            timeout=timeout,
            maxsize=requests,
            block=True,
            retries=False,
            ssl_context=self._tls(),
            cert_reqs=None if self.checks_tls else "CERT_NONE",
        )

    def close(self) -> None:
        """End the connections; there will be new ones if they are wanted."""
        closed, self.pool = self.pool, self._pool(self._port, self._requests)
        closed.close()

    @property
    def checks_tls(self) -> bool:
        """Whether certificates are looked at."""
        return self.environment.get(INSECURE, "").lower() not in ("true", "1")

    @property
    def credentials(self) -> str | None:
        """What the requests are signed with, for people; None if with nothing."""
        return self.headers.get("authorization", "").partition(" ")[0].lower() or None

    def _authorization(self) -> dict[str, str]:
        """As MLflow: a user with a password, else a token; of its file only where no variable says who."""
        said = any(self.environment.get(name) for name in (USERNAME, PASSWORD, TOKEN))
        of_file = {} if said else self._of_file()
        user = self.environment.get(USERNAME) or of_file.get(USERNAME.lower())
        password = self.environment.get(PASSWORD) or of_file.get(PASSWORD.lower())
        if user and password:
            found = f"{user}:{password}".encode().decode("latin-1")  # its bytes are UTF-8's
            return urllib3.make_headers(basic_auth=found)
        token = self.environment.get(TOKEN)
        if token and not token.isprintable():
            raise BackendError(f"{TOKEN} cannot be sent", hint="is there a line break in it?")
        return {"authorization": f"Bearer {token}"} if token else {}

    @staticmethod
    def _of_file() -> dict[str, str]:
        file = configparser.ConfigParser(interpolation=None)
        try:
            file.read(Path(CREDENTIALS_FILE).expanduser(), encoding="utf-8")
        except (configparser.Error, OSError, ValueError, RuntimeError):
            return {}
        return dict(file["mlflow"]) if "mlflow" in file else {}

    def _tls(self) -> ssl.SSLContext:
        trusted, own = self.environment.get(TRUSTED), self.environment.get(OWN)
        if trusted and not self.checks_tls:
            raise BackendError(f"{INSECURE} and {TRUSTED} contradict each other")
        try:
            is_folder = bool(trusted) and Path(str(trusted)).is_dir()
            context = ssl.create_default_context(
                cafile=None if is_folder else trusted or None, capath=trusted if is_folder else None
            )
            if own:
                context.load_cert_chain(own)
        except (OSError, ValueError) as error:
            hint = f"check {TRUSTED} and {OWN}"
            raise BackendError(f"a certificate cannot be used: {error}", hint=hint) from error
        if not self.checks_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
