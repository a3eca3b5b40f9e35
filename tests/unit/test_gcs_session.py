"""Credentials for Google's store are found as MLflow finds them, or in a store's own variables, and nobody is shown them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gcd.artifacts import pace
from gcd.artifacts.base import Options
from gcd.artifacts.gcs import GCSArtifactStore
from gcd.artifacts.registry import Registry
from gcd.model import Place, Probe
from tests.gcs_stub import Fault, Stub, stub_server

ROOT = Place("gs", "bucket", "root/")
FILE, EMULATOR = "GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"
SECRET = "not-to-be-shown"


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.delenv(FILE, raising=False)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A stub in the place of Google, credentials wanted."""
    with stub_server() as made:
        made.put("bucket", "root/1/run1/artifacts/f")
        monkeypatch.setenv("API_ENDPOINT_OVERRIDE", made.url)
        yield made


@pytest.fixture(scope="module")
def key() -> str:
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def service_account(file: Path, key: str, token_uri: str) -> Path:
    info = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": SECRET,
        "private_key": key,
        "client_email": "gcd@p.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
    file.write_text(json.dumps(info))
    return file


def user(file: Path) -> Path:
    told = {"client_id": "c", "client_secret": SECRET, "refresh_token": SECRET}
    file.write_text(json.dumps({"type": "authorized_user", **told}))
    return file


def probed(**environment: str) -> tuple[GCSArtifactStore, Probe]:
    before = dict(os.environ)
    store = GCSArtifactStore(Options(environment=environment))
    found = store.probe(ROOT, ())
    assert dict(os.environ) == before
    return store, found


def said(store: GCSArtifactStore) -> str:
    return str(list(store.inspect(ROOT)))


def test_a_stores_own_file_of_credentials_wins_over_the_processs(
    stub: Stub, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE, "/nowhere")
    file = service_account(tmp_path / "key.json", key, f"{stub.url}/token")
    store, found = probed(**{FILE: str(file)})
    assert found.problem is None
    assert stub.tokens == {None, "Bearer a-token"}  # None where it asks for the token
    assert stub.count("token") == 1, stub.seen
    assert f"credentials from {file}" in said(store)
    assert found.identity == f"{stub.url.removeprefix('http://')}/bucket"


def test_the_processs_file_is_taken_where_a_store_has_none(
    stub: Stub, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = service_account(tmp_path / "key.json", key, f"{stub.url}/token")
    monkeypatch.setenv(FILE, str(file))
    store, found = probed()
    assert found.problem is None
    assert "Bearer a-token" in stub.tokens
    assert str(file) in said(store)


def test_what_gcloud_left_in_a_folder_of_the_stores_own_is_taken(
    stub: Stub, tmp_path: Path
) -> None:
    user(tmp_path / "application_default_credentials.json")
    store = GCSArtifactStore(Options(environment={"CLOUDSDK_CONFIG": str(tmp_path)}))
    credentials: Any = store.session.client._credentials
    assert credentials.refresh_token == SECRET
    assert SECRET not in said(store)


@pytest.mark.parametrize("own", [True, False])
def test_an_emulator_is_sent_no_credentials(
    stub: Stub, key: str, tmp_path: Path, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(service_account(tmp_path / "key.json", key, f"{stub.url}/token"))
    environment = {EMULATOR: stub.url}
    if own:
        environment[FILE] = file
    else:
        monkeypatch.setenv(FILE, file)
    store, found = probed(**environment)
    assert found.problem is None
    assert stub.tokens == {None}
    assert stub.count("token") == 0
    assert "no credentials are sent" in said(store)


def test_without_credentials_it_is_asked_as_anybody_and_told_so(stub: Stub) -> None:
    store, found = probed()
    assert found.problem is None
    assert stub.tokens == {None}
    [remark] = [each for each in store.inspect(ROOT) if "no credentials are found" in each.seen]
    assert remark.mend
    stub.always["list"] = Fault("refuse", 401, "required")
    problem = store.probe(ROOT, ()).problem
    assert "give the credentials that MLflow uses" in str(problem)
    assert "none were found: Your default credentials were not found" in str(problem)


BROKEN = {
    "missing": (None, "was not found"),
    "a folder": ("", "Is a directory"),
    "not JSON": ("{" + SECRET, "not a valid json file"),
    "of no kind": (json.dumps({"type": "x", "private_key": SECRET}), "does not have a valid type"),
    "without a key": (json.dumps({"type": "service_account", "x": SECRET}), "Failed to load"),
    "with half a key": (
        json.dumps(
            {
                "type": "service_account",
                "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
                "client_email": "a@b",
                "token_uri": "http://127.0.0.1:9/",
            }
        ),
        "Failed to load",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_used_is_one_sentence_with_its_mend(
    stub: Stub, tmp_path: Path, how: str
) -> None:
    text, sentence = BROKEN[how]
    file = tmp_path / "key.json"
    if text == "":
        file.mkdir()
    elif text is not None:
        file.write_text(text)
    _, found = probed(**{FILE: str(file)})
    assert not found.is_there
    assert sentence in str(found.problem)
    assert "give the credentials that MLflow uses" in str(found.problem)
    assert SECRET not in str(found.problem)
    assert stub.seen == []


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        (Fault("json", text="x"), "cannot be read"),
        (Fault("refuse", 400, "invalid_grant"), "renew the credentials"),
        (Fault("reset"), "does the network let gcd"),
    ],
)
def test_credentials_that_give_no_token_are_told_with_their_mend(
    stub: Stub, key: str, tmp_path: Path, fault: Fault, mend: str
) -> None:
    stub.always["token"] = fault
    file = service_account(tmp_path / "key.json", key, f"{stub.url}/token")
    _, found = probed(**{FILE: str(file)})
    assert not found.is_there
    assert mend in str(found.problem)
    assert SECRET not in str(found.problem)


def test_a_token_that_expires_is_renewed_once_and_then_told(
    stub: Stub, key: str, tmp_path: Path
) -> None:
    stub.always["list"] = Fault("refuse", 401, "authError")
    file = service_account(tmp_path / "key.json", key, f"{stub.url}/token")
    _, found = probed(**{FILE: str(file)})
    assert "renew the credentials" in str(found.problem)
    assert stub.count("token") > 1


def test_a_certificate_that_is_not_trusted_is_told(stub: Stub) -> None:
    _, found = probed(**{EMULATOR: stub.url.replace("http:", "https:")})
    assert "REQUESTS_CA_BUNDLE" in str(found.problem)


@pytest.mark.parametrize("host", ["localhost:9", "http://", "nonsense"])
def test_an_emulator_that_is_no_address_is_told(host: str) -> None:
    _, found = probed(**{EMULATOR: host})
    assert "STORAGE_EMULATOR_HOST" in str(found.problem)


def test_a_universe_that_the_credentials_are_not_of_is_told(
    stub: Stub, key: str, tmp_path: Path
) -> None:
    file = service_account(tmp_path / "key.json", key, f"{stub.url}/token")
    file.write_text(json.dumps({**json.loads(file.read_text()), "universe_domain": "example.com"}))
    _, found = probed(**{FILE: str(file)})
    assert "universe domain" in str(found.problem)
    assert stub.seen == []


@pytest.mark.parametrize("name", ["GOOGLE_API_KEY", "GCE_METADATA_HOST", "NO_GCE_CHECK"])
def test_a_variable_that_a_store_cannot_have_is_told_once(name: str) -> None:
    problem = Registry(options=Options(environment={name: SECRET})).problem("gs")
    assert str(problem).startswith(f"a store cannot have {name} for itself")
    assert SECRET not in str(problem)
