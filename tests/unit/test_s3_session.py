"""Clients are made as MLflow makes them, from its variables and from a store's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore import UNSIGNED

from gcd.artifacts.base import Options
from gcd.artifacts.registry import Registry
from gcd.artifacts.s3_session import Session, address_of, endpoint_name
from gcd.model import Place

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's user."""
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


def client(authority: str = "bucket", scheme: str = "s3", **environment: str) -> Any:
    address = address_of(Place(scheme, authority, "1/"))
    return Session({**KEYS, **environment}, 4).client(address)


def test_amazon_is_the_default_whatever_the_region() -> None:
    assert client().meta.region_name == "eu-west-1"
    assert endpoint_name(client()) == endpoint_name(client(AWS_DEFAULT_REGION="us-west-2")) == "aws"


@pytest.mark.parametrize(
    "variable", ["MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
)
def test_an_endpoint_is_taken_from_each_variable(variable: str) -> None:
    made = client(**{variable: "http://127.0.0.1:9000"})
    assert made.meta.endpoint_url == "http://127.0.0.1:9000"
    assert endpoint_name(made) == "127.0.0.1:9000"


def test_mlflows_settings_are_taken() -> None:
    config = client().meta.config
    assert (config.signature_version, config.s3["addressing_style"]) == ("s3v4", "auto")
    made = client(
        MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE="path",
        MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION="unsigned",
    ).meta.config
    assert (made.signature_version, made.s3["addressing_style"]) == (UNSIGNED, "path")


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
def test_tls_is_not_checked_only_where_mlflow_does_not(value: str) -> None:
    assert Session(KEYS, 1).checks_tls
    assert Session({**KEYS, "MLFLOW_S3_IGNORE_TLS": "false"}, 1).checks_tls
    assert not Session({**KEYS, "MLFLOW_S3_IGNORE_TLS": value}, 1).checks_tls


def test_cloudflare_and_backblaze_are_where_the_uri_says() -> None:
    r2 = client("bucket@account.r2.cloudflarestorage.com", "r2")
    assert r2.meta.endpoint_url == "https://account.r2.cloudflarestorage.com"
    assert (r2.meta.region_name, r2.meta.config.s3["addressing_style"]) == ("auto", "virtual")
    b2 = client("bucket@s3.us-west-004.backblazeb2.com", "b2")
    assert b2.meta.endpoint_url == "https://s3.us-west-004.backblazeb2.com"
    assert (b2.meta.region_name, b2.meta.config.s3["addressing_style"]) == ("us-west-004", "path")
    elsewhere = client(
        "bucket@account.r2.cloudflarestorage.com", "r2", MLFLOW_S3_ENDPOINT_URL="http://127.0.0.1:1"
    )
    assert elsewhere.meta.endpoint_url == "https://account.r2.cloudflarestorage.com"


def test_a_profile_of_the_stores_own_wins_over_keys_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "process")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "process")
    file = tmp_path / "credentials"
    file.write_text("[mlflow]\naws_access_key_id = own\naws_secret_access_key = secret\n")
    own = {"AWS_PROFILE": "mlflow", "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    session = Session(own, 1)
    assert session.session.get_credentials().access_key == "own"
    assert session.credentials_source() == "shared-credentials-file"
    assert Session({}, 1).session.get_credentials().access_key == "process"
    assert Session({}, 1).credentials_source() == "env"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"AWS_EC2_METADATA_DISABLED": "1"}, "a store cannot have AWS_EC2_METADATA_DISABLED"),
        ({"AWS_ROLE_ARN": "x"}, "a store cannot have AWS_ROLE_ARN for itself"),
        ({"AWS_PROFILE": "nobody"}, "the credentials cannot be used"),
        ({"AWS_ACCESS_KEY_ID": "only"}, "the credentials cannot be used"),
    ],
)
def test_what_cannot_be_used_is_told_once(environment: dict[str, str], sentence: str) -> None:
    problem = Registry(options=Options(environment=environment)).problem("s3")
    assert problem is not None
    assert problem.startswith(sentence)


def test_no_credentials_are_no_source() -> None:
    assert Session({}, 1).credentials_source() is None


def test_options_show_no_secret() -> None:
    assert "hidden" not in repr(Options(environment={"AWS_SECRET_ACCESS_KEY": "hidden"}))
