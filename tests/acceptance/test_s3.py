"""MLflow logs to buckets, part of it is deleted, gcd collects: what a bucket lists then is exactly the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gcd.artifacts.base import MARK
from tests.mlflow_store import RealStore
from tests.object_servers import SECRET, ObjectServer, new_bucket
from tests.program import collect, command, decisions, environment, gcd, report, shown
from tests.remote_artifacts import NAMES, RemoteArtifacts, collect_part_of_what_was_logged

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
SDKS = ("boto", "google.", "azure.", "paramiko", "fsspec", "requests", "urllib3")
ON_MOTO = pytest.mark.parametrize("objects", ["moto"], indirect=True)


class Buckets(RemoteArtifacts):
    """A bucket that MLflow logs to."""

    def __init__(self, objects: ObjectServer, store: RealStore) -> None:
        self.store, self.objects, self.client = store, objects, objects.client()
        self.bucket = new_bucket(self.client)

    @property
    def location(self) -> str:
        return f"s3://{self.bucket}/ml flow"

    def sizes(self) -> dict[str, int]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        found = (each for page in pages for each in page.get("Contents", ()))
        return {each["Key"]: each["Size"] for each in found}

    def put(self, key: str) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=b"x")


@pytest.fixture
def buckets(objects: ObjectServer, store: RealStore, monkeypatch: pytest.MonkeyPatch) -> Buckets:
    """With what MLflow and gcd need in the environment."""
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    return Buckets(objects, store)


def test_what_mlflow_logged_for_what_is_deleted_goes_and_nothing_else(buckets: Buckets) -> None:
    collect_part_of_what_was_logged(buckets)


@ON_MOTO
def test_proxied_files_are_looked_for_where_the_destination_says(buckets: Buckets) -> None:
    store = buckets.store
    experiment = store.experiment("proxied", "mlflow-artifacts:/7")
    live, run = (store.run(experiment, files={}) for _ in range(2))
    for each in (live, run):
        buckets.put(f"served/7/{each}/artifacts/model/f")
    buckets.put("elsewhere/f")
    store.delete(run)
    assert decisions(store.uri) == {run: "no_backend"}
    for wrong in (f"s3://{buckets.bucket}/elsewhere", f"s3://{buckets.bucket}"):
        assert decisions(store.uri, "--artifacts-destination", wrong) == {run: "unreachable"}
    collect(store.uri, "--artifacts-destination", wrong, expect=3)
    assert store.exists(run)
    collect(store.uri, "--artifacts-destination", f"s3://{buckets.bucket}/served")
    assert buckets.keys() == {f"served/7/{live}/artifacts/model/f", "elsewhere/f"}


@ON_MOTO
def test_a_bucket_that_keeps_old_versions_is_told_of_everywhere(buckets: Buckets) -> None:
    store, name = buckets.store, buckets.bucket
    buckets.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    run, other = (buckets.run(buckets.experiment(each)) for each in ("one", "two"))
    store.delete(run, other)
    told = "keeps old versions"
    planned = gcd("plan", "--older-than", "0s", uri=store.uri)
    assert told in planned.stdout, shown(planned)
    doctor = gcd("doctor", uri=store.uri, env={"GCD_RETENTION__OLDER_THAN": "0s"})
    assert "no space is freed" in doctor.stdout, shown(doctor)
    assert "credentials from " in doctor.stdout
    assert SECRET not in doctor.stdout + doctor.stderr
    done = collect(store.uri, "--run-ids", run)
    assert told in done.stdout
    assert told in gcd("status", uri=store.uri).stdout
    assert told in report(store.uri, env={"GCD_ARTIFACTS__VERSIONS": "current"})["notes"][0]
    assert versions_below(buckets, "one") >= 2 * len(NAMES)


@ON_MOTO
def test_all_versions_go_where_that_is_configured(buckets: Buckets) -> None:
    buckets.client.put_bucket_versioning(
        Bucket=buckets.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    run = buckets.run(buckets.experiment("one"))
    buckets.store.client.log_text(run, "again", NAMES[0])
    buckets.store.delete(run)
    done = report(buckets.store.uri, env={"GCD_ARTIFACTS__VERSIONS": "all"})
    assert (done["objects"], done["notes"]) == (len(NAMES) + 1, [])
    assert versions_below(buckets, "one") == 0


def versions_below(buckets: Buckets, part: str) -> int:
    found = buckets.client.list_object_versions(Bucket=buckets.bucket)
    listed = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
    keys = [each["Key"] for each in listed]
    return sum(f"/{part}/" in key and not key.endswith("/" + MARK) for key in keys)


@ON_MOTO
def test_a_store_may_have_credentials_of_its_own_and_nobody_is_shown_them(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = buckets.run(buckets.experiment("one"))
    buckets.store.delete(run)
    for name in buckets.objects.environment:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert decisions(buckets.store.uri) == {run: "unreachable"}
    own = {**buckets.objects.environment, "AWS_SECRET_ACCESS_KEY": "${S3_SECRET}"}
    config = tmp_path / "gcd.toml"
    config.write_text(
        f'[stores.main]\nbackend_store_uri = "{buckets.store.uri}"\n'
        f"environment = {json.dumps([f'{name}={value}' for name, value in own.items()])}\n"
    )
    env = {"GCD_CONFIG": str(config), "S3_SECRET": SECRET}
    printed = gcd("config", "show", env=env)
    assert "AWS_SECRET_ACCESS_KEY=${S3_SECRET}" in printed.stdout, shown(printed)
    assert "AWS_ACCESS_KEY_ID=***" in printed.stdout
    done = gcd("gc", "--older-than", "0s", "--yes", env=env)
    assert done.returncode == 0, shown(done)
    assert buckets.keys() == set()
    assert SECRET not in printed.stdout + done.stdout + done.stderr


@ON_MOTO
def test_a_store_that_is_down_delays_only_its_own(buckets: Buckets) -> None:
    store = buckets.store
    far = buckets.run(buckets.experiment("far"))
    near = store.run(store.experiment("near"))
    store.delete(far, near)
    down = {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = collect(store.uri, env=down, expect=3)
    assert (store.exists(near), store.exists(far)) == (False, True)
    explained = gcd("explain", far, uri=store.uri, env=down)
    assert "is the endpoint right, and does it answer?" in explained.stdout, shown(explained)
    assert "Traceback" not in done.stderr
    collect(store.uri)
    assert not store.exists(far)
    assert buckets.keys() == set()


@ON_MOTO
def test_a_certificate_that_is_not_trusted_is_one_clear_sentence(buckets: Buckets) -> None:
    store = buckets.store
    run = buckets.run(buckets.experiment("one"))
    store.delete(run)
    env = {"MLFLOW_S3_ENDPOINT_URL": buckets.objects.url.replace("http:", "https:")}
    planned = gcd("plan", "--older-than", "0s", "--json", uri=store.uri, env=env)
    assert "Traceback" not in planned.stderr
    [item] = json.loads(planned.stdout)["items"]
    [reason] = item["reasons"]
    assert reason["reason"] == "unreachable"
    assert "AWS_CA_BUNDLE" in reason["detail"]
    assert len(reason["detail"]) < 500


@pytest.mark.parametrize("words", ["--help", "gc --older-than 0s --yes"])
def test_a_collection_of_local_files_imports_no_sdk(store: RealStore, words: str) -> None:
    store.delete(store.run(store.experiment("near")))
    uri = store.uri if words != "--help" else None
    words_of_it = command(*words.split(), uri=uri)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words_of_it[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gcd.cli" in imported
    assert ("gcd.artifacts.walk" in imported) is (uri is not None)
    assert not {name for name in imported if name.startswith(SDKS)}


@ON_MOTO
def test_what_a_version_names_in_hadoops_way_stays(buckets: Buckets) -> None:
    """Spark calls a bucket s3a: the same files, whatever the scheme."""
    store = buckets.store
    experiment = buckets.experiment("e")
    run, free = buckets.run(experiment), buckets.run(experiment)
    store.version("spark", f"s3a://{buckets.bucket}/ml flow/e/{run}/artifacts/model")
    store.delete(run, free)
    before = buckets.keys()

    assert decisions(store.uri) == {run: "registered", free: "collect"}
    collect(store.uri)

    assert buckets.keys() == {key for key in before if f"/{free}/" not in key}


def test_an_emptied_bucket_keeps_what_the_database_names_files_of(buckets: Buckets) -> None:
    """Its identity is the right one, and nothing is in it: another one was made in its place, or copied from."""
    store = buckets.store
    store.delete(buckets.run(buckets.experiment("known")))
    collect(store.uri)
    one, two = buckets.experiment("one"), buckets.experiment("two")
    tags = {"mlflow.log-model.history": '[{"artifact_path": "model"}]'}
    runs = [store.run(each, files={}, tags=tags) for each in (one, two, two)]
    bare = store.run(one, files={})
    for run in runs[:2]:
        store.client.log_text(run, "x", "model/MLmodel")
    for key in buckets.sizes():
        buckets.client.delete_object(Bucket=buckets.bucket, Key=key)
    store.client.log_text(runs[1], "x", "model/MLmodel")
    store.delete(*runs, bare)
    planned = decisions(store.uri)
    assert planned == {
        runs[0]: "unreachable",  # nothing else of its experiment is there
        runs[1]: "collect",
        runs[2]: "collect",  # its neighbour proves where they log
        bare: "collect",
    }
    done = json.loads(collect(store.uri, "--json", expect=3).stdout)
    assert done["already_empty"] == 1
    assert store.runs() == {runs[0]}
    collect(store.uri, "--absent-trees", "collect")
    assert store.runs() == set()
