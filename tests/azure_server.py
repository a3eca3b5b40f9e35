"""Azurite for the tests: Azure's Blob Storage on the loop-back, without a hierarchical namespace.

It must never reach an account that it did not start.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient, ContainerClient

from gcd.artifacts.azure import AzureArtifactStore
from gcd.artifacts.base import Options
from tests.object_servers import PATIENCE, free_port

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published by Microsoft for its emulators."""
HOST = f"{ACCOUNT}.blob.core.windows.net"
PROGRAM = "azurite-blob"
FOLDER = "GCD_TEST_NODE_MODULES"
"""The variable that names a folder into which npm installed azurite."""


@dataclass(frozen=True)
class AzureServer:
    """An account at an endpoint."""

    url: str
    account: str = ACCOUNT
    key: str = KEY

    @property
    def environment(self) -> dict[str, str]:
        """What MLflow and gcd need to reach it."""
        text = f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"{text}BlobEndpoint={self.url};"}

    def client(self, container: str) -> ContainerClient:
        """A plain client, past the store under test."""
        text = self.environment["AZURE_STORAGE_CONNECTION_STRING"]
        service = BlobServiceClient.from_connection_string(text, retry_total=0, proxies={})
        return service.get_container_client(container)

    def new_container(self) -> ContainerClient:
        """A container of this test's own."""
        client = self.client(f"gcd-test-{secrets.token_hex(5)}")
        client.create_container()
        return client

    def store(
        self, environment: Mapping[str, str] | None = None, **options: Any
    ) -> AzureArtifactStore:
        """The store under test."""
        own = {**self.environment, **(environment or {})}
        return AzureArtifactStore(Options(environment=own, **options))


def find() -> str | None:
    """Azurite on the path, beside this Python, or in a folder of npm's."""
    beside = Path(sys.executable).parent
    named = os.environ.get(FOLDER)
    folders = [beside, beside.parent, *([Path(named)] if named else [])]
    places = [folder / "node_modules" / ".bin" / PROGRAM for folder in folders]
    return shutil.which(PROGRAM) or next((str(each) for each in places if each.exists()), None)


def require() -> str:
    """Azurite; the test is skipped without it, or fails where servers are required."""
    found = find()
    if found is not None:
        return found
    beside = Path(sys.executable).parent.parent
    text = f"no {PROGRAM} here: `npm install --prefix {beside} azurite` brings it"
    if os.environ.get("GCD_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@contextmanager
def azurite() -> Iterator[AzureServer]:
    """Azurite, which keeps everything in memory."""
    program, port = require(), free_port()
    words = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    words += ["--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
    server = AzureServer(f"http://127.0.0.1:{port}/{ACCOUNT}")
    with TemporaryDirectory(prefix="gcd-test-azurite-") as name:
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=name
            )
        try:
            wait_until_it_takes(server, process, Path(name) / "log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_it_takes(server: AzureServer, process: subprocess.Popen[bytes], log: Path) -> None:
    """A server answers before it can hold anything: try."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            server.new_container()
            return
        except AzureError as error:
            if process.poll() is not None or time.monotonic() > until:
                text = f"azurite does not serve: {error}\n{log.read_text()[-2000:]}"
                raise RuntimeError(text) from error
            time.sleep(0.2)
