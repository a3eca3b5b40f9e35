"""Chooses the store to work on, from the command line, the configuration and MLflow's environment.

It must never guess between two databases: what contradicts itself is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from gcd.config.sections import Store
from gcd.config.values import SERVER, is_server
from gcd.errors import ConfigError

BACKEND = "MLFLOW_BACKEND_STORE_URI"
TRACKING = "MLFLOW_TRACKING_URI"
DESTINATION = "MLFLOW_ARTIFACTS_DESTINATION"
REGISTRY = ("MLFLOW_REGISTRY_STORE_URI", "MLFLOW_REGISTRY_URI")
"""What names the model registry: the server's variable, then its clients'."""
STORAGE = (
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS",
    "MLFLOW_S3_EXPECTED_BUCKET_OWNER",
    "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
    "MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_KERBEROS_TICKET_CACHE",
    "MLFLOW_KERBEROS_USER",
    "MLFLOW_PYARROW_EXTRA_CONF",
    "SFTP_KEY_FILE",
    "SFTP_KNOWN_HOSTS",
    "SFTP_PASSWORD",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "STORAGE_EMULATOR_HOST",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
"""The process's variables that say how it reaches artifacts."""
CREDENTIALS = re.compile(r"(AZURE_)|(MLFLOW_TRACKING_(?:USERNAME|PASSWORD|TOKEN)$)")
"""Variables that say together who one is, in families: half of one's and half of another's is nobody."""
WORKSPACE = "MLFLOW_WORKSPACE"
DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mssql")
HINT = (
    f"give --backend-store-uri, set {BACKEND}, or write a configuration with `gcd config init`; "
    "it is the database that the tracking server was started with"
)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The store that was chosen. Both URIs may hold secrets: no repr shows them."""

    name: str | None
    """None for a store that no configuration names."""
    backend_store_uri: str = field(repr=False)
    artifacts_destination: str | None = field(default=None, repr=False)
    registry_store_uri: str | None = field(default=None, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables for the artifact stores: the store's own over MLflow's."""
    artifacts_proxy: str | None = None
    registry_variable: str | None = None
    """The variable of MLflow's that names the registry, where nothing else does."""

    @property
    def unread_registry(self) -> str | None:
        """The variable that names a registry which is not a database that gcd can open."""
        return None if self.registry_store_uri else self.registry_variable


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of the store."""

    backend_store_uri: str | None = field(default=None, repr=False)
    artifacts_destination: str | None = field(default=None, repr=False)
    tracking_uri: str | None = field(default=None, repr=False)
    registry_store_uri: str | None = field(default=None, repr=False)
    artifacts_proxy: str | None = None


def choose(
    stores: Mapping[str, Store], name: str | None, given: Given, mlflow: Mapping[str, str]
) -> StoreConfig:
    """The store to work on: flags over the configuration over MLflow's environment.

    A URI on the command line, without a name, is a store of its own: what is configured for
    another database says nothing of where its artifacts are. Raises ConfigError.
    """
    _check(given, mlflow)
    uri = given.backend_store_uri or _database(given.tracking_uri)
    name = name if name is not None else _only(stores, uri)
    chosen = _named(stores, name) if name is not None else Store()
    # The environment describes one store: it must not fill a gap in one of several.
    fallback = mlflow if name is None or len(stores) == 1 else {}
    uri = uri or chosen.backend_store_uri or _environment_uri(fallback)
    if uri is None:
        raise _missing(name, fallback)
    destination = given.artifacts_destination or chosen.artifacts_destination
    registry = given.registry_store_uri or chosen.registry_store_uri
    variable = None if registry else registry_variable(fallback)
    return StoreConfig(
        name,
        uri,
        destination or fallback.get(DESTINATION) or None,
        registry or (_database(fallback[variable].strip()) if variable else None),
        _merged(_storage(mlflow), _own(chosen)),
        given.artifacts_proxy or chosen.artifacts_proxy,
        variable,
    )


def _storage(mlflow: Mapping[str, str]) -> dict[str, str]:
    return {name: mlflow[name] for name in STORAGE if name in mlflow}


def _merged(process: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """A store's own variables over the process's, credentials of a family all or none."""
    families = {found.lastindex for found in map(CREDENTIALS.match, own) if found}
    inherited = {
        name: value
        for name, value in process.items()
        if not ((found := CREDENTIALS.match(name)) and found.lastindex in families)
    }
    return {**inherited, **own}


def _own(store: Store) -> dict[str, str]:
    pairs = (text.partition("=") for text in store.environment or ())
    return {name: value for name, _, value in pairs}


def environment_variable(mlflow: Mapping[str, str]) -> str | None:
    """The variable by which MLflow's environment names a database; it may be empty."""
    if BACKEND in mlflow:
        return BACKEND
    return TRACKING if _database(mlflow.get(TRACKING)) else None


def registry_variable(mlflow: Mapping[str, str]) -> str | None:
    """The variable by which MLflow's environment names a registry apart from the tracking server."""
    tracking = mlflow.get(TRACKING, "").strip().rstrip("/")
    for name in REGISTRY:
        value = mlflow.get(name, "").strip().rstrip("/")
        if value and (value != tracking or _database(value)):
            return name
    return None


def workspace_of_environment(environ: Mapping[str, str] | None = None) -> str | None:
    """The workspace that MLflow's environment names, None if it names none."""
    environ = os.environ if environ is None else environ
    return environ.get(WORKSPACE, "").strip() or None


def _environment_uri(mlflow: Mapping[str, str]) -> str | None:
    variable = environment_variable(mlflow)
    if variable is None:
        return None
    if not mlflow[variable].strip():
        raise ConfigError(f"{variable} is empty", hint="set it to a database's URI, or unset it")
    return mlflow[variable]


def _database(uri: str | None) -> str | None:
    """A tracking URI that names a database; None for a server, a folder or nothing."""
    scheme, colon, _ = (uri or "").partition(":")
    return uri if colon and scheme.lower().partition("+")[0] in DATABASES else None


def _check(given: Given, mlflow: Mapping[str, str]) -> None:
    for name in (
        "backend_store_uri",
        "artifacts_destination",
        "artifacts_proxy",
        "tracking_uri",
        "registry_store_uri",
    ):
        value = getattr(given, name)
        if value is not None and not value.strip():
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is empty", hint="is a shell variable unset?")
    if given.artifacts_proxy is not None and not is_server(given.artifacts_proxy):
        raise ConfigError(f"--artifacts-proxy must be {SERVER}")
    is_named = given.backend_store_uri is None and _database(given.tracking_uri) is not None
    if is_named and mlflow.get(BACKEND, "").strip() not in ("", given.tracking_uri):
        # `mlflow gc` would delete in the one that the variable names.
        raise ConfigError(
            f"--tracking-uri and {BACKEND} name two databases",
            hint="give the one to collect from as --backend-store-uri",
        )


def _only(stores: Mapping[str, Store], uri: str | None) -> str | None:
    """The store that needs no name: the one with the URI that was given, or the only one."""
    if uri is not None:
        return next((n for n, each in stores.items() if each.backend_store_uri == uri), None)
    if len(stores) > 1:
        names = ", ".join(stores)
        raise ConfigError(f"several stores are configured: {names}", hint="name one with --store")
    return next(iter(stores), None)


def _named(stores: Mapping[str, Store], name: str) -> Store:
    if name in stores:
        return stores[name]
    close = get_close_matches(name, stores, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(stores) or "none is"
    raise ConfigError(
        f"no store is named {name!r}{meant}", hint=f"stores in the configuration: {known}"
    )


def _missing(name: str | None, mlflow: Mapping[str, str]) -> ConfigError:
    """No database is named: say whose URI is missing, and what a tracking URI is not."""
    no_database = (
        f"; {TRACKING} names a tracking server or a folder, and gcd needs the server's database"
        if mlflow.get(TRACKING)
        else ""
    )
    if name is None:
        return ConfigError(f"no store is given{no_database}", hint=HINT)
    key = f"stores.{name}.backend_store_uri"
    problem = f"is missing{no_database}"
    return ConfigError(f"{key} {problem}", problems=[(key, problem)], hint=HINT)
