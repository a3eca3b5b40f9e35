"""Opens a client for Google Cloud Storage, with credentials as MLflow finds its own.

It must never write a credential anywhere, nor change the process's environment, nor send a token to an emulator.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import google.auth
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import storage
from requests.adapters import HTTPAdapter

from gcd.errors import BackendError

EMULATOR = "STORAGE_EMULATOR_HOST"
FILE = "GOOGLE_APPLICATION_CREDENTIALS"
FOLDER = "CLOUDSDK_CONFIG"
PAYER = "GOOGLE_CLOUD_QUOTA_PROJECT"
KNOWN = frozenset({EMULATOR, FILE, FOLDER, PAYER, "GOOGLE_CLOUD_PROJECT"})
"""Variables that a store may have for itself; of what project a client is does not matter here."""
READ_BY_LIBRARY = ("GOOGLE_", "CLOUDSDK_", "GCE_", "NO_GCE_", "API_ENDPOINT_", "STORAGE_EMULATOR_")
TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and to wait for the next bytes of a reply."""


class Session:
    """Credentials and endpoint of one MLflow store: its own variables over the process's."""

    def __init__(self, environment: Mapping[str, str], requests: int) -> None:
        self.environment = environment
        self.requests = requests
        self.source = ""
        """Where the credentials come from, once there is a client."""
        self.lack = ""
        """Why there are none, once there is a client."""
        unknown = sorted(
            name for name in environment if name.startswith(READ_BY_LIBRARY) and name not in KNOWN
        )
        if unknown:
            hint = f"set it for the process, or give the store a {FILE}"
            raise BackendError(f"a store cannot have {', '.join(unknown)} for itself", hint=hint)

    @cached_property
    def client(self) -> Any:
        """A client for all buckets; threads may share it. Raises what the libraries raise.

        It asks nobody but, for credentials, Google's metadata server, where nothing else has them.
        """
        emulator = self.environment.get(EMULATOR)
        credentials = AnonymousCredentials() if emulator else self._credentials()
        client = storage.Client(
            project=None,
            credentials=credentials,
            client_options={"api_endpoint": emulator} if emulator else None,
        )
        # Else the SDK asks for each bucket's settings by itself, in a thread and again and again.
        client._bucket_metadata_cache = None
        self._give_room(client._http)
        return client

    def close(self) -> None:
        """End the connections of the client, if there is one."""
        if client := vars(self).pop("client", None):
            client.close()

    def _give_room(self, http: Any) -> None:
        """As many connections as there are requests at once, where a plain adapter is in use."""
        for scheme in ("https://", "http://"):
            if type(http.adapters.get(scheme)) is HTTPAdapter:
                http.mount(scheme, HTTPAdapter(pool_maxsize=self.requests))

    def _credentials(self) -> Any:
        file, payer = self._file(), self.environment.get(PAYER) or None
        wanted = {"scopes": storage.Client.SCOPE, "quota_project_id": payer}
        if file:
            with (
                warnings.catch_warnings()
            ):  # of files that strangers bring: this one is the operator's
                warnings.simplefilter("ignore", DeprecationWarning)
                found, _ = google.auth.load_credentials_from_file(file, **wanted)
            self.source = file
            return found
        try:
            found, _ = google.auth.default(**wanted)
        except DefaultCredentialsError as error:  # as MLflow: without credentials
            self.lack = str(error.args[0] if error.args else error)
            return AnonymousCredentials()
        self.source = _kind(found)
        return found

    def _file(self) -> str | None:
        """The store's own file of credentials."""
        if file := self.environment.get(FILE):
            return file
        folder = self.environment.get(FOLDER)
        return str(Path(folder) / "application_default_credentials.json") if folder else None


def _kind(credentials: Any) -> str:
    """Where the library found credentials, without anything that is in them."""
    told = getattr(credentials, "get_cred_info", lambda: None)() or {}
    module = type(credentials).__module__.removeprefix("google.")
    return str(told.get("credential_source") or module)


def endpoint_name(client: Any) -> str:
    """Host and port that a client talks to; one word for Google's own."""
    host = urlsplit(client.api_endpoint).netloc
    return "gcs" if host.endswith(".googleapis.com") else host
