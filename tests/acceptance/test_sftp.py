"""MLflow logs by SFTP, part of it is deleted, gcd collects: what the server's disk holds then is exactly the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, report, shown
from tests.remote_artifacts import OnDisk, collect_part_of_what_was_logged
from tests.sftp_server import SftpServer, sshd
from tests.sftp_stub import PASSWORD, USER, Stub, stub

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def ssh() -> Iterator[SftpServer]:
    """One server for all."""
    with sshd() as served:
        yield served


@pytest.fixture
def home(ssh: SftpServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What MLflow and gcd have in common: ~/.ssh, and nothing else."""
    from mlflow.store.artifact.sftp_artifact_repo import SFTPArtifactRepository

    monkeypatch.setenv("HOME", str(ssh.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    # MLflow's pysftp is of 2016, and imports a kind of key that paramiko has no more.
    monkeypatch.setattr(paramiko, "DSSKey", paramiko.RSAKey, raising=False)
    monkeypatch.setattr(SFTPArtifactRepository, "max_workers", 1)  # connections that it never ends
    return ssh.home


def test_what_mlflow_logged_for_what_is_deleted_goes_and_nothing_else(
    store: RealStore, home: Path, tmp_path: Path
) -> None:
    """The host is an alias of ~/.ssh/config, with port, user and key; the path leads over a link."""
    remote = OnDisk(store, tmp_path / "served", f"sftp://artifacts{tmp_path}/link")
    os.symlink(remote.folder, tmp_path / "link")
    collect_part_of_what_was_logged(remote)


def test_what_a_missing_library_keeps_says_what_to_install(store: RealStore) -> None:
    for scheme in ("sftp", "hdfs"):
        store.delete(store.run(store.experiment(scheme, f"{scheme}://host/ml"), files={}))
    hidden = {"TEST_HIDE_MODULES": "paramiko,fsspec"}
    done = gcd("plan", "--older-than", "0s", "--json", uri=store.uri, env=hidden)
    reasons = [each["reasons"][0] for each in json.loads(done.stdout)["items"]]
    assert {each["reason"] for each in reasons} == {"no_backend"}
    told = " ".join(each["detail"] for each in reasons)
    assert "pip install 'gcd[sftp]'" in told
    assert "pip install 'gcd[fsspec]'" in told


class TestPasswords:
    @pytest.fixture
    def served(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
        with stub() as server:
            monkeypatch.setenv("SFTP_KNOWN_HOSTS", str(server.known_hosts(tmp_path)))
            yield server

    def uri(self, served: Stub, tmp_path: Path) -> str:
        return f"sftp://{USER}:{PASSWORD}@127.0.0.1:{served.port}{tmp_path}/served"

    def test_a_password_in_a_uri_serves_and_is_never_shown(
        self, served: Stub, store: RealStore, tmp_path: Path
    ) -> None:
        remote = OnDisk(store, tmp_path / "served", self.uri(served, tmp_path))
        experiment = remote.experiment("e")
        live, gone, failing = (store.run(experiment, files={}) for _ in range(3))
        for run in (live, gone, failing):
            remote.put(f"ml flow/e/{run}/artifacts/model/f")
        store.delete(gone)
        said = [gcd("plan", "--older-than", "0s", "--sizes", uri=store.uri)]
        said.append(gcd("doctor", uri=store.uri, env={"GCD_RETENTION__OLDER_THAN": "0s"}))
        assert f"logs in as {USER}@127.0.0.1:{served.port}" in said[-1].stdout, shown(said[-1])
        said.append(collect(store.uri))
        assert remote.keys() == {f"ml flow/e/{r}/artifacts/model/f" for r in (live, failing)}

        # Rows are purged, files are not: later a place of the journal needs a password again.
        store.delete(failing)
        served.refuses = True
        said.append(collect(store.uri, expect=3))
        assert not store.exists(failing)
        said += [gcd(*words, uri=store.uri) for words in (["status"], ["explain", failing])]
        assert "permission denied" in said[-1].stdout, shown(said[-1])
        served.refuses = False
        said.append(gcd("retry", uri=store.uri))
        said.append(collect(store.uri, expect=None))
        assert remote.keys() == {f"ml flow/e/{live}/artifacts/model/f"}, shown(said[-1])
        for each in said:
            assert PASSWORD not in each.stdout + each.stderr, shown(each)
        dump = "\n".join(str(row) for table in journal_tables(store) for row in table)
        assert USER in dump
        assert PASSWORD not in dump

    def test_proxied_files_are_collected_where_the_destination_is_a_server(
        self, served: Stub, store: RealStore, tmp_path: Path
    ) -> None:
        remote = OnDisk(store, tmp_path / "served", self.uri(served, tmp_path))
        experiment = store.experiment("proxied", "mlflow-artifacts:/7")
        live, run = (store.run(experiment, files={}) for _ in range(2))
        for each in (live, run):
            remote.put(f"ml flow/7/{each}/artifacts/model/f")
        store.delete(run)
        assert decisions(store.uri) == {run: "no_backend"}
        done = report(store.uri, "--artifacts-destination", remote.location)
        assert (done["state"], done["objects"]) == ("done", 1)
        assert remote.keys() == {f"ml flow/7/{live}/artifacts/model/f"}


def journal_tables(store: RealStore) -> Iterator[list[tuple[object, ...]]]:
    for name in ("journal", "root", "cycle", "meta"):
        yield store.database.rows(f"SELECT * FROM alembic_gcd_{name}")
