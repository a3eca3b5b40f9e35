"""Opens clients for containers in Azure, with the credentials that MLflow would use.

It must never write a credential anywhere, send one to a host that is not Azure's unless a connection
string names it, nor change the process's environment.
"""

from __future__ import annotations

import importlib
import logging
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import (
    CertificateCredential,
    ClientSecretCredential,
    DefaultAzureCredential,
    WorkloadIdentityCredential,
)
from azure.storage.blob import BlobServiceClient, ContainerClient
from azure.storage.filedatalake import DataLakeServiceClient
from requests.adapters import HTTPAdapter

from gcd.errors import BackendError, TransientArtifactError, UnsafeTarget
from gcd.model import Place

# What the SDK has to say comes as an error; its own warnings may hold whole replies.
logging.getLogger("azure").setLevel(logging.ERROR)


class _RequestIds:
    """Ids of requests for the SDK: the system's own generator leaves a file open in each thread."""

    uuid1 = uuid4 = staticmethod(uuid.uuid4)


for _name in (
    "azure.storage.blob._shared.policies",
    "azure.storage.blob._shared.base_client",
    "azure.storage.filedatalake._shared.policies",
    "azure.storage.filedatalake._shared.base_client",
    "azure.core.pipeline.policies._universal",
):
    with suppress(ImportError):  # another release of the SDK may keep it elsewhere
        vars(importlib.import_module(_name))["uuid"] = _RequestIds

C = TypeVar("C", BlobServiceClient, DataLakeServiceClient)

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
KEY = "AZURE_STORAGE_ACCESS_KEY"
SAS = "AZURE_STORAGE_SAS_TOKEN"
TENANT, CLIENT = "AZURE_TENANT_ID", "AZURE_CLIENT_ID"
SECRET = "AZURE_CLIENT_SECRET"
CERTIFICATE = "AZURE_CLIENT_CERTIFICATE_PATH"
PASSWORD = "AZURE_CLIENT_CERTIFICATE_PASSWORD"
FEDERATED = "AZURE_FEDERATED_TOKEN_FILE"
AUTHORITY = "AZURE_AUTHORITY_HOST"
IDENTITY = (TENANT, CLIENT, SECRET, CERTIFICATE, PASSWORD, FEDERATED, AUTHORITY)
KNOWN = frozenset({CONNECTION, KEY, SAS, *IDENTITY})
PROCESS_ONLY = ("AZURE_", "IDENTITY_", "MSI_", "IMDS_")
"""How variables begin that the SDK reads from the process, and nowhere else."""
CONNECT_SECONDS, READ_SECONDS = 5, 60

WASB = re.compile(
    r"([^@]+)@([^.@]+)\.(blob\.core\.(?:windows\.net|chinacloudapi\.cn|usgovcloudapi\.net))"
)
ABFS = re.compile(r"([^@]+)@([^.@]+)\.([a-z0-9.-]+)")
AZURE_HOSTS = (
    ".core.windows.net",
    ".core.chinacloudapi.cn",
    ".core.usgovcloudapi.net",
    ".storage.azure.net",
    ".fabric.microsoft.com",
)
"""Where a token or a signature may be sent: a URI is what any user of MLflow may write."""
CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]{2,62}")


class Address(NamedTuple):
    """A container, and the endpoint of its account for blobs."""

    container: str
    account: str
    host: str
    is_lake: bool
    """Whether MLflow reaches it as a data lake: it looks for other credentials then."""


def address_of(place: Place) -> Address:
    """The container that a place is in. Raises UnsafeTarget where it names none."""
    is_lake = place.scheme.startswith("abfs")
    container, at, host = place.authority.partition("@")
    # The names of hosts have no case, those of containers no capitals.
    found = (ABFS if is_lake else WASB).fullmatch(container + at + host.lower())
    if found is None or not CONTAINER.fullmatch(found[1]):
        raise UnsafeTarget(f"{place.scheme}://{place.authority} names no container of an account")
    container, account, suffix = found.groups()
    if is_lake:
        _refuse_quoted(place)
        suffix = re.sub(r"(^|\.)dfs\.", r"\1blob.", suffix, count=1)
    host = f"{account}.{suffix}"
    if not re.search(r"\.blob\.", host) or not host.endswith(AZURE_HOSTS):
        text = f"{place.scheme}://{place.authority} names no endpoint of Azure's"
        raise UnsafeTarget(text)
    return Address(container, account, host, is_lake)


def _refuse_quoted(place: Place) -> None:
    """What MLflow 3 unquotes in such a path, older ones took as it is: files may be at either."""
    if place.path.startswith("/") or unquote(place.path, errors="surrogateescape") != place.path:
        raise UnsafeTarget(
            f"{place.path!r} is one place to some versions of MLflow and another one to others"
        )


class Session:
    """Credentials and settings of one MLflow store: its own variables over the process's."""

    def __init__(self, environment: Mapping[str, str], requests: int) -> None:
        self.environment = {name: value for name, value in environment.items() if value}
        self.requests = requests
        unknown = sorted(
            name for name in environment if name.startswith(PROCESS_ONLY) and name not in KNOWN
        )
        if unknown:
            hint = "set it for the process"
            raise BackendError(f"a store cannot have {', '.join(unknown)} for itself", hint=hint)
        self.principal = self._principal()
        self._opened: list[Any] = []

    @property
    def verify(self) -> bool | str:
        """Whether certificates are looked at, or the file of those to trust, as MLflow has it."""
        if self.environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
            return False
        return self.environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True

    def credentials_source(self, address: Address) -> str:
        """Where the credentials come from: a variable, or a kind of identity."""
        given = [name for name in (CONNECTION, KEY) if name in self.environment]
        if address.is_lake:
            if SAS in self.environment:
                return SAS
            # MLflow takes neither for a data lake: what is another account's is left alone.
            if self.principal or (given == [CONNECTION] and self._is_of_another(address)):
                given = []
        if given:
            return given[0]
        return type(self.principal).__name__ if self.principal else "DefaultAzureCredential"

    # -- clients -----------------------------------------------------------------------------------

    def container(self, address: Address) -> ContainerClient:
        """A client for a container; errors as those of `service`."""
        return self.service(address).get_container_client(address.container)

    def service(self, address: Address) -> BlobServiceClient:
        """A client for the account of a container. It never tries again by itself: gcd does.

        Raises TransientArtifactError where the credentials are not for this account.
        """
        return self._open(BlobServiceClient, address, address.host)

    def lake(self, address: Address) -> DataLakeServiceClient:
        """A client for the same account as a data lake, which knows folders; errors as of `service`."""
        host = address.host.replace(".blob.", ".dfs.", 1)
        return self._open(DataLakeServiceClient, address, host)

    def _open(self, client: type[C], address: Address, host: str) -> C:
        source, settings = self.credentials_source(address), self._settings()
        if source == CONNECTION:
            self._refuse_other_account(address)
            text = self.environment[CONNECTION]
            return client.from_connection_string(text, **settings)
        credential: Any = self.environment.get(source) or self._token_credential()
        if source == KEY and "sig=" not in credential:  # MLflow takes a SAS token there too
            credential = {"account_name": address.account, "account_key": credential}
        return client(f"https://{host}", credential=credential, **settings)

    def _settings(self) -> dict[str, Any]:
        session = requests.Session()
        self._opened.append(session)
        session.mount("https://", HTTPAdapter(pool_maxsize=self.requests + 2, max_retries=0))
        session.mount("http://", HTTPAdapter(pool_maxsize=self.requests + 2, max_retries=0))
        transport = RequestsTransport(
            session=session,
            session_owner=False,
            connection_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            connection_verify=self.verify,
        )
        return {
            "transport": transport,
            "retry_total": 0,
            "redirect_max": 0,
            "permit_redirects": False,
            "user_agent": "gcd",
        }

    def close(self) -> None:
        """End the connections of all clients."""
        while self._opened:
            self._opened.pop().close()

    def _is_of_another(self, address: Address) -> bool:
        """Whether the connection string names another account and no endpoint."""
        parts = connection_parts(self.environment[CONNECTION])
        account = parts.get("accountname", "")
        is_explicit = "blobendpoint" in parts or "usedevelopmentstorage" in parts
        return not is_explicit and account.lower() != address.account.lower()

    def _refuse_other_account(self, address: Address) -> None:
        if self._is_of_another(address):
            account = connection_parts(self.environment[CONNECTION]).get("accountname", "")
            raise TransientArtifactError(
                f"container {address.container}: {CONNECTION} is of the account {account!r}, "
                f"the URI is of {address.account!r}",
                hint="give the credentials of that account, or a connection string with BlobEndpoint",
            )

    # -- identities --------------------------------------------------------------------------------

    def _principal(self) -> Any:
        """The identity that a store has for itself, None if it is the process's."""
        own = {name: self.environment[name] for name in IDENTITY if name in self.environment}
        if not own:
            return None
        names = ", ".join(own)
        try:
            found = _credential(own)
        except (ValueError, OSError) as error:  # its text may hold what it could not read
            text = f"the credentials cannot be used: {type(error).__name__}"
            raise BackendError(text, hint=f"check {names}") from None
        if found is None:
            raise BackendError(
                f"the credentials cannot be used: {names} alone",
                hint=f"a store has {TENANT}, {CLIENT} and one of {SECRET}, {CERTIFICATE}, {FEDERATED}",
            )
        return found

    def _token_credential(self) -> Any:
        if self.principal is None:
            self.principal = DefaultAzureCredential()
        return self.principal


def _credential(own: Mapping[str, str]) -> Any:
    """What DefaultAzureCredential would make of these variables, None if it is nothing."""
    others = {"authority": own[AUTHORITY]} if AUTHORITY in own else {}
    if set(own) <= {CLIENT, AUTHORITY}:
        return DefaultAzureCredential(managed_identity_client_id=own.get(CLIENT), **others)
    if TENANT not in own or CLIENT not in own:
        return None
    tenant, client = own[TENANT], own[CLIENT]
    if SECRET in own:
        return ClientSecretCredential(tenant, client, own[SECRET], **others)
    if CERTIFICATE in own:
        password = own.get(PASSWORD)
        return CertificateCredential(tenant, client, own[CERTIFICATE], password=password, **others)
    if FEDERATED in own:
        path = own[FEDERATED]
        return WorkloadIdentityCredential(
            tenant_id=tenant, client_id=client, token_file_path=path, **others
        )
    return None


def connection_parts(text: str) -> dict[str, str]:
    """What a connection string says, by names in lower case."""
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return {name.strip().lower(): value for name, _, value in pairs}


def endpoint_name(client: BlobServiceClient) -> str:
    """Host, port and path of the account that a client talks to."""
    parts = urlsplit(client.url)
    return parts.netloc + parts.path.rstrip("/")
