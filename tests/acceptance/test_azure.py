"""MLflow logs to containers, part of it is deleted, gcd collects: what a container lists then is the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.azure_server import HOST, KEY, AzureServer, azurite
from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, shown
from tests.remote_artifacts import RemoteArtifacts, collect_part_of_what_was_logged

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


class Containers(RemoteArtifacts):
    """A container that MLflow logs to."""

    def __init__(self, account: AzureServer, store: RealStore) -> None:
        self.store, self.account, self.client = store, account, account.new_container()

    @property
    def location(self) -> str:
        return f"wasbs://{self.client.container_name}@{HOST}/ml flow"

    @property
    def lake(self) -> str:
        """The same place, as of a data lake."""
        return self.location.replace("wasbs:", "abfss:").replace(".blob.", ".dfs.")

    def sizes(self) -> dict[str, int]:
        return {each.name: each.size for each in self.client.list_blobs()}

    def put(self, key: str) -> None:
        self.client.upload_blob(key, b"x")


@pytest.fixture(scope="module")
def account() -> Iterator[AzureServer]:
    with azurite() as started:
        yield started


@pytest.fixture
def containers(
    account: AzureServer, store: RealStore, monkeypatch: pytest.MonkeyPatch
) -> Containers:
    """With what MLflow and gcd need in the environment."""
    for name, value in account.environment.items():
        monkeypatch.setenv(name, value)
    return Containers(account, store)


def test_what_mlflow_logged_for_what_is_deleted_goes_and_nothing_else(
    containers: Containers,
) -> None:
    collect_part_of_what_was_logged(containers)


def test_a_lakes_trees_go_and_what_a_version_names_in_either_way_stays(
    containers: Containers,
) -> None:
    """MLflow's client for lakes needs one; the files are put where it would put them."""
    store = containers.store
    experiment = store.experiment("e", f"{containers.lake}/e")
    run, named = (store.run(experiment, files={}) for _ in range(2))
    for each in (run, named, f"{run}0"):
        containers.put(f"ml flow/e/{each}/artifacts/model/f")
    store.version("m", f"{containers.location}/e/{named}/artifacts/model")
    store.delete(run, named)
    assert decisions(store.uri) == {run: "collect", named: "registered"}
    collect(store.uri)
    kept = {f"ml flow/e/{each}/artifacts/model/f" for each in (named, f"{run}0")}
    assert containers.keys() == kept


def test_proxied_files_are_looked_for_where_the_destination_says(containers: Containers) -> None:
    store = containers.store
    experiment = store.experiment("proxied", "mlflow-artifacts:/7")
    live, run = (store.run(experiment, files={}) for _ in range(2))
    for each in (live, run):
        containers.put(f"ml flow/7/{each}/artifacts/model/f")
    store.delete(run)
    collect(store.uri, "--artifacts-destination", containers.lake)
    assert containers.keys() == {f"ml flow/7/{live}/artifacts/model/f"}


def test_a_store_may_have_credentials_of_its_own_and_nobody_is_shown_them(
    containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = containers.run(containers.experiment("one"))
    containers.store.delete(run)
    other = "AccountName=other;AccountKey=" + KEY
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", other)
    planned = gcd("plan", "--older-than", "0s", "--json", uri=containers.store.uri)
    [reason] = json.loads(planned.stdout)["items"][0]["reasons"]
    assert reason["reason"] == "unreachable"
    assert "is of the account 'other'" in reason["detail"]
    [own] = containers.account.environment.values()
    config = tmp_path / "gcd.toml"
    config.write_text(
        f'[stores.main]\nbackend_store_uri = "{containers.store.uri}"\n'
        'environment = ["AZURE_STORAGE_CONNECTION_STRING=${OWN}"]\n'
    )
    env = {"GCD_CONFIG": str(config), "OWN": own}
    printed = gcd("config", "show", env=env)
    doctor = gcd("doctor", env={**env, "GCD_RETENTION__OLDER_THAN": "0s"})
    assert "credentials from AZURE_STORAGE_CONNECTION_STRING" in doctor.stdout, shown(doctor)
    done = gcd("gc", "--older-than", "0s", "--yes", env=env)
    assert done.returncode == 0, shown(done)
    assert containers.keys() == set()
    said = (planned, printed, doctor, done)
    assert KEY not in "".join(each.stdout + each.stderr for each in said)
