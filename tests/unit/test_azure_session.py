"""Clients are made as MLflow makes them, from its variables and from a store's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from gcd.artifacts import azure_session
from gcd.artifacts.azure import AzureArtifactStore
from gcd.artifacts.azure_batch import answers
from gcd.artifacts.azure_errors import of_code, of_library
from gcd.artifacts.azure_session import Session, address_of, endpoint_name
from gcd.artifacts.base import Options
from gcd.artifacts.registry import Registry
from gcd.config import load_config
from gcd.config.sections import Store
from gcd.config.stores import Given, choose
from gcd.errors import TransientArtifactError, UnsafeTarget
from gcd.model import Place

KEY = "c2VjcmV0LWtleQ=="
WASBS = Place("wasbs", "box@acct.blob.core.windows.net", "1/")
ABFSS = Place("abfss", "box@acct.dfs.core.windows.net", "1/")
OWN = "AccountName=acct;AccountKey=" + KEY
PRINCIPAL = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hidden"}


def url(place: Place, **environment: str) -> str:
    return str(Session(environment, 4).container(address_of(place)).url)


@pytest.mark.parametrize("domain", ["windows.net", "chinacloudapi.cn", "usgovcloudapi.net"])
def test_every_cloud_is_where_the_uri_says(domain: str) -> None:
    expected = f"https://acct.blob.core.{domain}/box"
    for scheme, service in (("wasb", "blob"), ("wasbs", "blob"), ("abfs", "dfs"), ("abfss", "dfs")):
        place = Place(scheme, f"box@acct.{service}.core.{domain}", "1/")
        assert url(place, AZURE_STORAGE_ACCESS_KEY=KEY) == expected


@pytest.mark.parametrize(
    ("host", "blobs"),
    [
        ("acct.z17.dfs.storage.azure.net", "acct.z17.blob.storage.azure.net"),
        ("acct.privatelink.dfs.core.windows.net", "acct.privatelink.blob.core.windows.net"),
        ("onelake.dfs.fabric.microsoft.com", "onelake.blob.fabric.microsoft.com"),
        ("acct.blob.core.windows.net", "acct.blob.core.windows.net"),
    ],
)
def test_a_lakes_blobs_are_beside_it(host: str, blobs: str) -> None:
    assert address_of(Place("abfss", f"box@{host}", "1/")).host == blobs


@pytest.mark.parametrize(
    "uri",
    [
        "wasbs://box@acct.dfs.core.windows.net",
        "wasbs://box@acct.blob.core.windows.net.evil.example",
        "wasbs://acct.blob.core.windows.net",
        "wasbs://@acct.blob.core.windows.net",
        "wasbs://Box%2F@acct.blob.core.windows.net",
        "wasbs://box@evil@acct.blob.core.windows.net",
        "abfss://box@acct.dfs.evil.example",
        "abfss://box@acct.dfs.core.windows.net:8443",
        "abfss://box@acct.dfs.evil.example?.core.windows.net",
        "abfss://box@acct.core.windows.net",
        "abfss://box",
        "abfss://",
    ],
)
def test_a_place_that_is_none_of_azures_is_refused(uri: str) -> None:
    """No token and no signature may go to a host that a user of MLflow made up."""
    scheme, _, authority = uri.partition("://")
    with pytest.raises(UnsafeTarget, match="names no"):
        AzureArtifactStore().resolve(Place(scheme, authority, "1/run/artifacts/"))


def test_an_account_has_one_name() -> None:
    """What is held under one spelling of a host is held under each."""
    spelt = Place("abfss", "box@Acct.DFS.core.windows.net", "Ml/1/")
    assert AzureArtifactStore().resolve(spelt) == Place("abfss", ABFSS.authority, "Ml/1/")
    assert address_of(spelt).host == "acct.blob.core.windows.net"


@pytest.mark.parametrize("path", ["ml%20flow/1/", "%2e%2e/1/", "/1/", "100%25/"])
def test_a_path_that_versions_of_mlflow_read_differently_is_refused(path: str) -> None:
    with pytest.raises(UnsafeTarget, match="some versions of MLflow"):
        address_of(Place("abfss", ABFSS.authority, path))
    assert address_of(Place("wasbs", WASBS.authority, path))


def test_mlflow_maps_to_the_same_container(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact import azure_data_lake_artifact_repo as lake
    from mlflow.store.artifact.azure_blob_artifact_repo import AzureBlobArtifactRepository

    container, account, path, suffix = AzureBlobArtifactRepository.parse_wasbs_uri(
        "wasbs://box@acct.blob.core.windows.net//a b/%20/1"
    )
    address = address_of(WASBS)
    assert (container, f"{account}.{suffix}") == (address.container, address.host)
    assert path == "/a b/%20/1"
    system, account, domain, path = lake._parse_abfss_uri(
        "abfss://box@acct.dfs.core.windows.net/a b/1"
    )
    assert (system, f"{account}.{domain}") == ("box", "acct.dfs.core.windows.net")
    assert path == "a b/1"


# Credentials ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "environment", "source"),
    [
        (WASBS, {"AZURE_STORAGE_CONNECTION_STRING": OWN, "AZURE_STORAGE_ACCESS_KEY": KEY}, "CONN"),
        (WASBS, {"AZURE_STORAGE_ACCESS_KEY": KEY, **PRINCIPAL}, "ACCESS_KEY"),
        (WASBS, {"AZURE_STORAGE_SAS_TOKEN": "sig=x", **PRINCIPAL}, "ClientSecretCredential"),
        (WASBS, {"AZURE_STORAGE_SAS_TOKEN": "sig=x"}, "DefaultAzureCredential"),
        (ABFSS, {"AZURE_STORAGE_SAS_TOKEN": "sig=x", **PRINCIPAL}, "SAS_TOKEN"),
        (ABFSS, {"AZURE_STORAGE_CONNECTION_STRING": OWN, **PRINCIPAL}, "ClientSecretCredential"),
        (ABFSS, {"AZURE_STORAGE_CONNECTION_STRING": OWN}, "CONN"),
        (ABFSS, {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=x"}, "DefaultAzureCredential"),
        (ABFSS, {"AZURE_STORAGE_ACCESS_KEY": KEY}, "ACCESS_KEY"),
        (ABFSS, {}, "DefaultAzureCredential"),
    ],
)
def test_credentials_are_looked_for_in_mlflows_order(
    place: Place, environment: dict[str, str], source: str
) -> None:
    session = Session(environment, 1)
    assert source in session.credentials_source(address_of(place))
    assert session.container(address_of(place)).url.startswith("https://acct.blob.core.windows.net")


def test_a_connection_string_of_another_account_is_refused() -> None:
    other = "AccountName=other;AccountKey=" + KEY
    with pytest.raises(TransientArtifactError, match="of the account 'other'") as caught:
        url(WASBS, AZURE_STORAGE_CONNECTION_STRING=other)
    assert KEY not in f"{caught.value}{caught.value.hint}"
    explicit = other + ";BlobEndpoint=http://127.0.0.1:10000/acct"
    assert url(WASBS, AZURE_STORAGE_CONNECTION_STRING=explicit) == "http://127.0.0.1:10000/acct/box"
    store = AzureArtifactStore(Options(environment={"AZURE_STORAGE_CONNECTION_STRING": other}))
    assert "other" in str(store.probe(WASBS, ()).problem)


@pytest.mark.parametrize(
    "text", ["nonsense", "", ";;", "AccountKey=x", "AccountName=acct;AccountKey"]
)
def test_a_connection_string_that_is_none_is_one_clear_sentence(text: str) -> None:
    environment = {"AZURE_STORAGE_CONNECTION_STRING": text, "AZURE_STORAGE_ACCESS_KEY": "hidden?"}
    store = AzureArtifactStore(Options(environment=environment))
    if text:
        problem = store.probe(WASBS, ()).problem
        assert problem is not None
        assert "container box" in problem
        assert "hidden" not in problem


def test_the_identity_of_the_endpoint_is_part_of_the_containers() -> None:
    session = Session({"AZURE_STORAGE_ACCESS_KEY": KEY}, 1)
    assert endpoint_name(session.service(address_of(ABFSS))) == "acct.blob.core.windows.net"
    assert endpoint_name(session.service(address_of(WASBS))) == "acct.blob.core.windows.net"
    assert session.lake(address_of(WASBS)).url == "https://acct.dfs.core.windows.net/"


def test_a_store_has_an_identity_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    for name in ("WorkloadIdentityCredential", "DefaultAzureCredential", "CertificateCredential"):

        def made(*args: Any, name: str = name, **options: Any) -> object:
            seen[name] = (args, options)
            return object()

        monkeypatch.setattr(azure_session, name, made)
    Session({"AZURE_CLIENT_ID": "managed"}, 1)
    assert seen["DefaultAzureCredential"] == ((), {"managed_identity_client_id": "managed"})
    pod = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_FEDERATED_TOKEN_FILE": "/f"}
    Session({**pod, "AZURE_AUTHORITY_HOST": "login.example"}, 1)
    expected = {"tenant_id": "t", "client_id": "c", "token_file_path": "/f"}
    assert seen["WorkloadIdentityCredential"][1] == {**expected, "authority": "login.example"}
    certificate = {"AZURE_CLIENT_CERTIFICATE_PATH": "/c", "AZURE_CLIENT_CERTIFICATE_PASSWORD": "p"}
    Session({"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", **certificate}, 1)
    assert seen["CertificateCredential"] == (("t", "c", "/c"), {"password": "p"})


@pytest.mark.parametrize("status", [None, 401])
def test_an_identity_that_gets_no_token_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    class Nobody:
        def get_token(self, *scopes: str, **_: object) -> None:
            refused = ClientAuthenticationError("No identity is here.\nAttempted: all of them")
            refused.response = response if status else None  # type: ignore[assignment]
            raise refused

    response = SimpleNamespace(
        status_code=status,
        headers={"content-type": "application/json"},
        content_type="application/json",
        reason="Unauthorized",
        text=lambda encoding: '{"error": "invalid_client", "error_description": "no"}',
    )

    monkeypatch.setattr(azure_session, "DefaultAzureCredential", Nobody)
    problem = AzureArtifactStore().probe(WASBS, ()).problem
    assert problem is not None
    assert problem.startswith(
        "container box: ClientAuthenticationError: No identity is here.; check"
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"AZURE_TOKEN_CREDENTIALS": "dev"}, "a store cannot have AZURE_TOKEN_CREDENTIALS"),
        ({"IDENTITY_ENDPOINT": "http://x"}, "a store cannot have IDENTITY_ENDPOINT for itself"),
        ({"AZURE_CLIENT_SECRET": "hidden"}, "the credentials cannot be used: AZURE_CLIENT_SECRET"),
        ({**PRINCIPAL, "AZURE_CLIENT_ID": ""}, "the credentials cannot be used"),
        (
            {
                "AZURE_TENANT_ID": "t",
                "AZURE_CLIENT_ID": "c",
                "AZURE_CLIENT_CERTIFICATE_PATH": "/nowhere/hidden",
            },
            "the credentials cannot be used: FileNotFoundError",
        ),
    ],
)
def test_what_cannot_be_used_is_told_once(environment: dict[str, str], sentence: str) -> None:
    problem = Registry(options=Options(environment=environment)).problem("wasbs")
    assert problem is not None
    assert problem.startswith(sentence)
    assert "hidden" not in problem


def test_a_stores_own_credentials_for_azure_are_not_mixed_with_the_processs() -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": OWN, "MLFLOW_TRACKING_INSECURE_TLS": "true"}
    loaded = load_config(environ=environ)._loaded.mlflow
    given = Given(backend_store_uri="sqlite:///x")
    assert choose({}, None, given, loaded).environment == environ
    stores = {
        "a": Store(backend_store_uri="sqlite:///a", environment=["AZURE_STORAGE_ACCESS_KEY=own"]),
        "b": Store(backend_store_uri="sqlite:///b", environment=["AWS_PROFILE=own"]),
    }
    own = choose(stores, "a", Given(), loaded).environment
    assert "AZURE_STORAGE_CONNECTION_STRING" not in own
    assert own["AZURE_STORAGE_ACCESS_KEY"] == "own"
    other = choose(stores, "b", Given(), loaded).environment
    assert other["AZURE_STORAGE_CONNECTION_STRING"] == OWN


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "false"}, True),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "True"}, False),
        ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "/ca"}, "/ca"),
    ],
)
def test_tls_is_checked_as_mlflow_does(environment: dict[str, str], expected: object) -> None:
    assert Session(environment, 1).verify == expected


# Replies ----------------------------------------------------------------------------------------


def test_answers_are_those_of_their_numbers() -> None:
    body = (
        b"--b\r\nContent-Type: application/http\r\nContent-ID: 7\r\n\r\n"
        b"HTTP/1.1 202 Accepted\r\nx-ms-version: 1\r\n\r\n\r\n"
        b"--b\r\nContent-ID: 0\r\nContent-Type: application/http\r\n\r\n"
        b"HTTP/1.1 409 No\r\n\r\n<?xml version='1.0'?><Error><Code>SnapshotsPresent</Code></Error>\r\n"
        b"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 403 Not you\r\n\r\n\r\n--b--"
    )
    found = answers("multipart/mixed; boundary=b", body)
    assert found[7] == (202, "", "Accepted")
    assert found[0] == (409, "SnapshotsPresent", "No")
    assert found[None] == (403, "", "Not you")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>"),
        ("multipart/mixed; boundary=b", b""),
        ("multipart/mixed", b"--b--"),
        ("multipart/mixed; boundary=b", b"--b\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"),
        ("multipart/mixed; boundary=b", b"--b\r\n\r\nnothing\r\n--b--"),
    ],
)
def test_what_is_no_reply_to_a_batch_tells_nothing(kind: str, body: bytes) -> None:
    with pytest.raises(TransientArtifactError, match="the reply to a batch"):
        answers(kind, body)


@pytest.mark.parametrize("status", [302, 404])
def test_a_server_that_knows_no_containers_is_no_verdict(status: int) -> None:
    error = of_code("", "Not Found", "container box", "role", status)
    assert isinstance(error, TransientArtifactError)
    assert "is it Azure's" in str(error.hint)


@pytest.mark.parametrize(
    "text",
    [
        "no https://acct.blob.core.windows.net/box?sv=1&sig=hidden&se=2 there",
        "AccountName=a;AccountKey=hidden==;x",
        "SharedAccessSignature=hidden&sig=hidden",
        "url: /box?restype=container&comp=list&sig=hidden (Caused by",
    ],
)
def test_errors_show_no_secret(text: str) -> None:
    for error in (of_code("X", text, "box", "role", 400), of_library(OSError(text), "box")):
        assert "hidden" not in f"{error}{error.hint}"
