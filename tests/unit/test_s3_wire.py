"""What is sent past the SDK goes where the SDK's own requests go, and nowhere if that is in doubt."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gcd.artifacts.base import Options
from gcd.artifacts.s3 import S3ArtifactStore
from gcd.artifacts.s3_xml import of_listing, wanted_deletions
from gcd.model import Result
from tests.s3_bench import ROOT, UNSIGNED, Bench, new_bench
from tests.s3_stub import Fault, stub_server


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with new_bench(monkeypatch) as made:
        yield made


def past_the_sdk(bench: Bench) -> bool:
    """Sweep everything; whether it went past the SDK."""
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live
    return not bench.stub.through_sdk & {"list", "delete"}


def test_requests_go_past_the_sdk_once_it_showed_how(bench: Bench) -> None:
    assert past_the_sdk(bench)


def test_what_is_not_signed_in_the_usual_way_goes_through_the_sdk(bench: Bench) -> None:
    bench.store = bench.new_store(UNSIGNED)
    assert not past_the_sdk(bench)


def test_what_needs_a_proxy_goes_through_the_sdk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", bench.stub.url)
    bench.store = bench.new_store()
    assert not past_the_sdk(bench)


@pytest.mark.parametrize("operation", ["list", "delete"])
def test_a_bucket_that_is_elsewhere_is_the_sdks_to_find(bench: Bench, operation: str) -> None:
    bench.stub.faults[operation] = deque([Fault("refuse", "PermanentRedirect")])
    assert not past_the_sdk(bench)
    assert operation in bench.stub.through_sdk


def test_a_bucket_that_is_elsewhere_again_and_again_stays_the_sdks(bench: Bench) -> None:
    for _ in range(4):
        bench.stub.faults["list"] = deque([Fault("refuse", "PermanentRedirect")])
        bench.store.probe(ROOT, ())
    bench.stub.faults.clear()
    assert not past_the_sdk(bench)


def test_credentials_that_are_renewed_in_between_are_used(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an instance's role has them: the SDK asks for new ones some minutes before they end."""
    said, config = tmp_path / "said.json", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {said}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    def give(key: str) -> None:
        end = (datetime.now(UTC) + timedelta(minutes=12)).isoformat()
        keys = {"AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": f"token of {key}"}
        said.write_text(json.dumps({"Version": 1, "Expiration": end, **keys}))

    give("first")
    environment = {"MLFLOW_S3_ENDPOINT_URL": bench.stub.url, "AWS_DEFAULT_REGION": "us-east-1"}
    bench.store = S3ArtifactStore(Options(environment=environment))
    bench.store.probe(ROOT, ())
    bench.stub.through_sdk.clear()
    bench.stub.keys_in_use.clear()
    give("second")
    assert past_the_sdk(bench)
    assert bench.stub.keys_in_use == {"second"}


# TLS --------------------------------------------------------------------------------------------


def certificate(folder: Path) -> Path:
    """A file of a certificate of the loop-back's own, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stub")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    where = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = made.add_extension(where, critical=False).sign(key, hashes.SHA256())
    file = folder / "certificate.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_certificates_are_trusted_as_the_sdk_trusts_them(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    with stub_server(file) as stub:
        bench = Bench(stub)
        assert "AWS_CA_BUNDLE" in str(bench.store.probe(ROOT, ()).problem)
        for way in ({"AWS_CA_BUNDLE": str(file)}, {"MLFLOW_S3_IGNORE_TLS": "true"}):
            bench.stub.keys["bucket"] = dict.fromkeys(
                bench.live.union(*bench.trees.values()), b"xy"
            )
            bench.store = bench.new_store(way)
            assert past_the_sdk(bench)


# Words ------------------------------------------------------------------------------------------


def test_what_xml_would_change_is_written_as_numbers() -> None:
    body = wanted_deletions([{"Key": "a\tb\nc\rd&<>"}, {"Key": "k", "VersionId": "v"}])
    assert b"<Key>a&#9;b&#10;c&#13;d&amp;&lt;&gt;</Key>" in body
    assert b"<Key>k</Key><VersionId>v</VersionId>" in body


@pytest.mark.parametrize(
    "text",
    [
        "<Contents><Key>a</Key><LastModified>yesterday</LastModified></Contents>",
        "<Contents><Size>1</Size></Contents>",
        "<KeyCount>many</KeyCount>",
        "<Contents>",
    ],
)
def test_a_listing_that_cannot_be_read_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        of_listing(f"<ListBucketResult>{text}</ListBucketResult>".encode())


@pytest.mark.parametrize(
    "when",
    [
        "2026-03-01T12:00:00.000Z",
        "2026-03-01T12:00:00",
        "2026-03-01T13:00:00.123456789+01:00",
        "Sun, 01 Mar 2026 12:00:00 GMT",
    ],
)
def test_times_are_read_as_the_sdk_reads_them(when: str) -> None:
    text = f"<Contents><Key>a%20+b</Key><LastModified>{when}</LastModified></Contents>"
    kind = "<EncodingType>url</EncodingType><IsTruncated>False</IsTruncated>"
    reply = of_listing(f"<ListBucketResult>{text}{kind}</ListBucketResult>".encode())
    [found] = reply["Contents"]
    assert found["LastModified"].replace(microsecond=0) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert (found["Key"], reply["IsTruncated"]) == ("a  b", False)


@pytest.mark.parametrize("text", ["", "<IsTruncated/>", "<IsTruncated>maybe</IsTruncated>"])
def test_a_listing_that_does_not_tell_whether_it_ends_is_not_whole(text: str) -> None:
    assert "IsTruncated" not in of_listing(f"<ListBucketResult>{text}</ListBucketResult>".encode())
