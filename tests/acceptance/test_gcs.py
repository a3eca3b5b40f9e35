"""MLflow logs to Google Cloud Storage (its emulator), part of it is deleted, gcd collects: a bucket lists exactly the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gcs_server import new_bucket, plain_client, sizes_of
from tests.gcs_stub import stub_server
from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, report, shown
from tests.remote_artifacts import RemoteArtifacts, collect_part_of_what_was_logged

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
EMULATOR = "STORAGE_EMULATOR_HOST"


class Bucket(RemoteArtifacts):
    """A bucket that MLflow logs to."""

    def __init__(self, url: str, store: RealStore) -> None:
        self.url, self.store = url, store
        self.bucket: Any = new_bucket(plain_client(url))

    @property
    def location(self) -> str:
        return f"gs://{self.bucket.name}/ml flow"

    def sizes(self) -> dict[str, int]:
        return sizes_of(self.bucket)

    def put(self, key: str) -> None:
        self.bucket.blob(key).upload_from_string("x")


@pytest.fixture
def bucket(gcs: str, store: RealStore, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """With what MLflow and gcd need in the environment."""
    monkeypatch.setenv(EMULATOR, gcs)
    return Bucket(gcs, store)


def test_what_mlflow_logged_for_what_is_deleted_goes_and_nothing_else(bucket: Bucket) -> None:
    collect_part_of_what_was_logged(bucket)


def test_proxied_files_are_looked_for_where_the_destination_says(bucket: Bucket) -> None:
    store = bucket.store
    experiment = store.experiment("proxied", "mlflow-artifacts:/7")
    live, run = (store.run(experiment, files={}) for _ in range(2))
    for each in (live, run):
        bucket.put(f"served/7/{each}/artifacts/model/f")
    bucket.put("elsewhere/f")
    store.delete(run)
    wrong = f"gs://{bucket.bucket.name}/elsewhere"
    assert decisions(store.uri, "--artifacts-destination", wrong) == {run: "unreachable"}
    collect(store.uri, "--artifacts-destination", f"gs://{bucket.bucket.name}/served")
    assert bucket.keys() == {f"served/7/{live}/artifacts/model/f", "elsewhere/f"}


def test_a_bucket_that_keeps_deleted_objects_is_told_of_everywhere(bucket: Bucket) -> None:
    """Google's own default, and the emulator's."""
    store = bucket.store
    run = bucket.run(bucket.experiment("one"))
    store.delete(run)
    told = "keeps deleted objects for 7d"
    planned = gcd("plan", "--older-than", "0s", uri=store.uri)
    assert told in planned.stdout, shown(planned)
    doctor = gcd("doctor", uri=store.uri, env={"GCD_RETENTION__OLDER_THAN": "0s"})
    assert "soft delete: what is deleted takes space for 7d more" in doctor.stdout, shown(doctor)
    assert "no credentials are sent" in doctor.stdout
    assert told in report(store.uri)["notes"][0]
    assert told in gcd("status", uri=store.uri).stdout
    assert bucket.keys() == set()
    assert list(bucket.bucket.list_blobs(soft_deleted=True))


def test_old_versions_go_only_where_that_is_configured(
    store: RealStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stub: the emulator keeps no versions."""
    with stub_server() as stub:
        monkeypatch.setenv(EMULATOR, stub.url)
        stub.is_versioned, stub.settings = True, {"versioning": {"enabled": True}}
        experiment = store.experiment("e", "gs://bucket/ml")
        one, two, live = (store.run(experiment, files={}) for _ in range(3))
        for run in (one, two, live):
            for _ in range(2):
                stub.put("bucket", f"ml/{run}/artifacts/f")
        store.delete(one, two)
        done = report(store.uri, "--run-ids", one)
        assert (done["objects"], done["bytes"]) == (1, 2)
        assert "keeps old versions" in done["notes"][0]
        assert stub.generations("bucket") == 6 + 1  # with the mark
        done = report(store.uri, env={"GCD_ARTIFACTS__VERSIONS": "all"})
        assert (done["objects"], done["bytes"], done["notes"]) == (2, 4, [])
        assert stub.generations("bucket", f"ml/{two}/") == 0
        assert stub.generations("bucket", f"ml/{live}/") == 2


def test_a_store_that_is_down_delays_only_its_own_and_may_have_an_endpoint_of_its_own(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket.store
    far = bucket.run(bucket.experiment("far"))
    near = store.run(store.experiment("near"))
    store.delete(far, near)
    monkeypatch.setenv(EMULATOR, "http://127.0.0.1:9")
    done = collect(store.uri, expect=3)
    assert (store.exists(near), store.exists(far)) == (False, True)
    explained = gcd("explain", far, uri=store.uri)
    assert "does it answer?" in explained.stdout, shown(explained)
    assert "Traceback" not in done.stderr

    config = tmp_path / "gcd.toml"
    config.write_text(
        f'[stores.main]\nbackend_store_uri = "{store.uri}"\n'
        f"environment = {json.dumps([f'{EMULATOR}={bucket.url}'])}\n"
    )
    done = gcd("gc", "--older-than", "0s", "--yes", env={"GCD_CONFIG": str(config)})
    assert done.returncode == 0, shown(done)
    assert not store.exists(far)
    assert bucket.keys() == set()


def test_without_the_library_its_runs_are_kept_with_the_line_that_mends_it(bucket: Bucket) -> None:
    run = bucket.run(bucket.experiment("one"))
    bucket.store.delete(run)
    planned = gcd(
        "plan",
        "--older-than",
        "0s",
        "--json",
        uri=bucket.store.uri,
        env={"TEST_HIDE_MODULES": "google"},
    )
    [item] = json.loads(planned.stdout)["items"]
    [reason] = item["reasons"]
    assert reason["reason"] == "no_backend"
    assert "pip install 'gcd[gcs]'" in reason["detail"]
