"""Google Cloud Storage's emulator for the tests, on the loop-back, as a program of its own.

It must never reach a store that it did not start.
"""

from __future__ import annotations

import itertools
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from gcd.artifacts.base import Options
from gcd.artifacts.gcs import GCSArtifactStore
from tests.object_servers import free_port, require

PATIENCE = 60.0
numbers = itertools.count()


def new_store(
    url: str, environment: Mapping[str, str] | None = None, **options: Any
) -> GCSArtifactStore:
    """The store under test, at an emulator."""
    return GCSArtifactStore(
        Options(environment={"STORAGE_EMULATOR_HOST": url, **(environment or {})}, **options)
    )


def plain_client(url: str) -> Any:
    """A client past the store under test."""
    return storage.Client(
        project="test",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
    )


def new_bucket(client: Any) -> Any:
    """A bucket of this test's own."""
    return client.create_bucket(f"gcd-test-{secrets.token_hex(5)}")


def sizes_of(bucket: Any, prefix: str = "") -> dict[str, int]:
    """Every key with its bytes, as a plain client lists them."""
    return {blob.name: blob.size for blob in bucket.list_blobs(prefix=prefix)}


@contextmanager
def emulator() -> Iterator[str]:
    """The URL of an emulator that serves; stopped at the end."""
    program = require("gcp-storage-emulator", "gcp-storage-emulator")
    port = free_port()
    words = [program, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet"]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(url, process)
        yield url
    finally:
        process.kill()  # it holds nothing that is to be kept
        process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the first answer."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            requests.get(url, timeout=5).raise_for_status()
            return
        except requests.RequestException as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the emulator does not serve: {error}") from error
            time.sleep(0.05)
