"""MLflow logs through its server, part of it is deleted, gcd collects: over HTTP, and past the server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    import mlflow

from tests.mlflow_server import ServedStore, empty, files_below, mlflow_server
from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, report, shown
from tests.proxy_stub import ARTIFACTS, Fault, Stub, page, proxy_stub
from tests.remote_artifacts import RemoteArtifacts, collect_part_of_what_was_logged

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
NAMES = ("f.txt", "model/weights.bin", "notes/n\u00e4me with space 100%.txt", "a+b/c;d.txt")
"""Names that MLflow's server takes: it refuses "#", and unquotes what is quoted."""


class Served(RemoteArtifacts):
    """A server before a folder, which MLflow's client logs through."""

    def __init__(self, store: RealStore, folder: Path, url: str) -> None:
        self.store = ServedStore(store.keeper, store.database, store.root, url)
        self.folder, self.url = folder, url

    @property
    def location(self) -> str:
        return "mlflow-artifacts:/ml flow"

    def sizes(self) -> dict[str, int]:
        return files_below(self.folder)

    def put(self, key: str) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@contextmanager
def serving(store: RealStore, tmp_path: Path, *words: str) -> Iterator[Served]:
    """A server on the store's database."""
    folder, destination = tmp_path / "server", tmp_path / "destination"
    for each in (folder, destination):
        each.mkdir()
    options = ("--backend-store-uri", store.uri, "--artifacts-destination", str(destination))
    with mlflow_server(folder, *options, *words) as url:
        yield Served(store, destination, url)


def proxied(store: RealStore, url: str) -> dict[str, str]:
    """The environment in which gcd asks a server."""
    return {
        "GCD_STORES__MAIN__BACKEND_STORE_URI": store.uri,
        "GCD_STORES__MAIN__ARTIFACTS_PROXY": url,
    }


def test_what_mlflow_logged_through_its_server_goes_over_http_and_past_it(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(store, tmp_path) as served:
        with monkeypatch.context() as environment:
            for name, value in proxied(store, served.url).items():
                environment.setenv(name, value)
            collect_part_of_what_was_logged(served, NAMES)
        rename_everything(store)
        empty(served.folder)
        monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", str(served.folder))
        collect_part_of_what_was_logged(served, NAMES)


def rename_everything(store: RealStore) -> None:
    """Names of experiments and models are unique."""
    store.sql(
        "UPDATE experiments SET name = name || '-before' WHERE experiment_id > 0",
        "UPDATE model_versions SET current_stage = 'Deleted_Internal'",
    )
    for run in store.runs():
        store.sql("DELETE FROM model_versions WHERE run_id = :run", run=run)


@pytest.mark.soak
def test_what_workspaces_logged_is_where_the_server_put_it(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It puts what is logged in a workspace below its folder, also where the URI does not say so."""
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    with serving(store, tmp_path, "--enable-workspaces") as served:
        client, runs = served.store.client, {}
        roots = {"team-a": None, "team-b": "mlflow-artifacts:/teamroot"}
        with served.store.as_tracking():
            mlflow.set_tracking_uri(served.url)
            for name, root in roots.items():
                mlflow.create_workspace(name, default_artifact_root=root)
                mlflow.set_workspace(name)
                experiment = client.create_experiment("e")
                runs[name] = [client.create_run(experiment).info.run_id for _ in range(3)]
                for run in runs[name]:
                    client.log_text(run, name, "model/f")
                    client.set_terminated(run)
                client.delete_run(runs[name][0])
                client.delete_run(runs[name][1])
            mlflow.set_workspace(None)
        places = {key.split("/artifacts/")[0] for key in sorted(served.keys())}
        assert f"workspaces/team-b/teamroot/2/{runs['team-b'][0]}" in places
        for number, env in enumerate(
            (proxied(store, served.url), {"MLFLOW_ARTIFACTS_DESTINATION": str(served.folder)})
        ):
            for name in roots:
                words = ("--all-workspaces", "--run-ids", runs[name][number])
                assert report(store.uri, *words, env=env)["objects"] == 1
        left = {key.split("/artifacts/")[0].rpartition("/")[2] for key in sorted(served.keys())}
        assert left == {runs[name][2] for name in roots}


@pytest.mark.soak
def test_a_server_with_basic_authentication_lets_administrators_collect(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="`pip install mlflow[auth]` brings it")
    users = tmp_path / "auth.ini"
    users.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = an-administrators-own\ndatabase_uri = sqlite:///{tmp_path}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(users))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "secret")
    admin = {
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "an-administrators-own",
    }
    for name, value in admin.items():
        monkeypatch.setenv(name, value)
    with serving(store, tmp_path, "--app-name", "basic-auth") as served:
        runs = [served.run(served.experiment("one"), NAMES) for _ in range(1)]
        served.store.delete(*runs)
        made = urllib3.request(
            "POST",
            f"{served.url}/api/2.0/mlflow/users/create",
            json={"username": "ann", "password": "password5678"},
            headers=urllib3.make_headers(basic_auth="admin:an-administrators-own"),
        )
        assert made.status == 200, made.data
        env = proxied(store, served.url)
        for name in admin:
            monkeypatch.delenv(name)
        assert decisions(store.uri, env=env) == {runs[0]: "unreachable"}
        explained = gcd("explain", runs[0], uri=store.uri, env=env)
        assert "MLFLOW_TRACKING_USERNAME" in explained.stdout, shown(explained)
        ann = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "password5678"}
        told = collect(store.uri, env={**env, **ann}, expect=3)
        assert "password5678" not in told.stdout + told.stderr
        assert len(served.keys()) == len(NAMES)
        gcd("retry", uri=store.uri)
        collect(store.uri, env={**env, **admin})
        assert served.keys() == set()


# With a server that fails as it is told to ------------------------------------------------------


def put_run(store: RealStore, stub: Stub, experiment: str) -> str:
    """A run whose files are with the stub."""
    run = store.run(experiment, files={})
    for name in ("f", "model/w"):
        stub.keys[f"7/{run}/artifacts/{name}"] = b"xyz"
    return run


def test_the_server_is_asked_only_where_that_is_said_and_no_destination_is(
    store: RealStore, tmp_path: Path
) -> None:
    with proxy_stub() as stub:
        experiment = store.experiment("proxied", "mlflow-artifacts:/7")
        live, run = (put_run(store, stub, experiment) for _ in range(2))
        store.delete(run)
        assert decisions(store.uri) == {run: "no_backend"}
        assert decisions(store.uri, env={"MLFLOW_TRACKING_URI": stub.url}) == {run: "no_backend"}
        both = ("--artifacts-proxy", stub.url, "--artifacts-destination", str(tmp_path))
        assert decisions(store.uri, *both) == {run: "unreachable"}
        assert stub.seen == []
        done = gcd("plan", "--artifacts-proxy", "mlflow:5000", uri=store.uri)
        assert done.returncode == 10, shown(done)
        assert "must be the URL of an MLflow server" in done.stderr
        done = report(store.uri, "--artifacts-proxy", stub.url)
        assert (done["objects"], done["bytes"]) == (2, 6)
        assert set(stub.keys) == {f"7/{live}/artifacts/{name}" for name in ("f", "model/w")}
        assert not store.exists(run)


def test_nothing_is_purged_where_a_login_page_answers(store: RealStore) -> None:
    with proxy_stub() as stub:
        experiment = store.experiment("proxied", "mlflow-artifacts:/7")
        run = put_run(store, stub, experiment)
        store.delete(run)
        env = proxied(store, stub.url)
        stub.always["GET"] = page(200)
        collect(store.uri, env=env, expect=3)
        assert store.exists(run)
        assert len(stub.keys) == 2
        explained = gcd("explain", run, uri=store.uri, env=env)
        assert "unreachable" in explained.stdout, shown(explained)
        assert "the reply is no listing" in explained.stdout
        doctor = gcd("doctor", uri=store.uri, env={**env, "GCD_RETENTION__OLDER_THAN": "0s"})
        assert doctor.returncode == 1, shown(doctor)
        assert "asked over HTTP, without credentials" in doctor.stdout


def test_what_the_server_only_says_it_deleted_is_due_until_it_is_gone(store: RealStore) -> None:
    with proxy_stub() as stub:
        experiment = store.experiment("proxied", f"http://{stub.authority}{ARTIFACTS}/7")
        runs = [put_run(store, stub, experiment) for _ in range(4)]
        before = dict(stub.keys)
        store.delete(*runs[:3])
        env = proxied(store, stub.url)
        stub.always["DELETE"] = Fault("lie")
        told = collect(store.uri, env=env, expect=3)
        assert "Traceback" not in told.stderr
        assert stub.keys == before
        purged = [run for run in runs if not store.exists(run)]
        assert len(purged) == 1  # the canary: the others are kept until it is gone
        status = gcd("status", uri=store.uri, env=env)
        assert "still listed" in status.stdout, shown(status)
        stub.always.clear()
        gcd("retry", uri=store.uri, env=env)
        collect(store.uri, env=env)
        assert {key.split("/")[1] for key in stub.keys} == {runs[3]}
        assert not any(map(store.exists, runs[:3]))


def test_a_tree_is_one_tree_in_every_way_to_name_it(store: RealStore) -> None:
    """What a live version names over the server is seen to be what a deleted run has there."""
    with proxy_stub() as stub:
        experiment = store.experiment("proxied", "mlflow-artifacts:/7")
        web = f"http://{stub.authority}{ARTIFACTS}/7/shared"
        runs = [put_run(store, stub, experiment) for _ in range(4)]
        ways = ["mlflow-artifacts:/7/", f"mlflow-artifacts://{stub.authority}/7/"]
        ways += [f"http://{stub.authority}{ARTIFACTS}/7/"]
        for run, way in zip(runs, ways, strict=False):
            other = store.run(store.experiment(f"by {way}", web + run), files={})
            store.point(other, f"{way}{run}/artifacts/model")
        store.delete(*runs)
        decided = decisions(store.uri, env=proxied(store, stub.url))
        assert decided == {**dict.fromkeys(runs[:3], "shared"), runs[3]: "collect"}
        collect(store.uri, env=proxied(store, stub.url))
        assert {key.split("/")[1] for key in stub.keys} == set(runs[:3])
