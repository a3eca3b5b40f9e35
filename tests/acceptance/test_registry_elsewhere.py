"""Model versions in a registry that gcd was not told of: what they may refer to stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.mlflow_store import RealStore, make_schema, release
from tests.program import collect, decisions, gcd, shown
from tests.servers import Database

OPTION = "--registry-store-uri"


@pytest.fixture
def other(store: RealStore) -> Iterator[Database]:
    """Another database with a registry."""
    made = make_schema(store.keeper.create())
    yield made
    release(made.uri)


def register(store: RealStore, other: Database, run: str, model: str | None = None) -> None:
    """A version of "m" in the other registry, of a run's files or of a logged model."""
    client = MlflowClient(store.uri, other.uri)
    with suppress(MlflowException):
        client.create_registered_model("m")
    place = store.client.get_run(run).info.artifact_uri + "/model"
    if model:
        place = store.client.get_logged_model(model).artifact_location
    with store.as_tracking():
        version = client.create_model_version("m", place, run, model_id=model)
    if model:  # as the server does, and mlflow.register_model
        store.inner.set_model_versions_tags("m", str(version.version), model)


def test_a_logged_model_whose_tag_names_a_version_that_is_not_here_stays(
    store: RealStore, other: Database
) -> None:
    made = store.experiment("made")
    maker, alone, free = store.run(made), store.run(made), store.run(made)
    model, lost = store.logged_model(maker, "a"), store.logged_model(free, "b")
    inside = store.experiment("inside")
    deep = store.logged_model(store.run(inside), "c")
    register(store, other, maker, model)
    register(store, other, store.client.get_logged_model(deep).source_run_id, deep)
    store.delete(maker, alone, free, model, lost, inside)

    found = decisions(store.uri)

    assert {found[each] for each in (maker, model)} == {"registered"}
    assert found[inside] == "has_live_children"
    assert {found[each] for each in (alone, free, lost)} == {"collect"}
    told = gcd("explain", model, "--older-than", "0s", uri=store.uri).stdout
    assert "version 1 of m" in told
    assert OPTION in told
    assert OPTION in gcd("doctor", uri=store.uri).stdout
    done = collect(store.uri)
    assert OPTION in done.stdout, shown(done)
    assert maker in store.runs()
    assert inside in store.experiments()
    assert not {alone, free} & store.runs()

    # Told where the registry is, gcd keeps what its versions refer to and nothing more.
    assert decisions(store.uri, OPTION, other.uri)[model] == "registered"
    MlflowClient(store.uri, other.uri).delete_registered_model("m")
    assert decisions(store.uri, OPTION, other.uri)[model] == "collect"


def test_a_version_that_was_here_and_was_deleted_holds_nothing(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    model, copied = store.logged_model(run, "a"), store.logged_model(run, "b")
    for each in (model, copied):
        place = store.client.get_logged_model(each).artifact_location
        version = store.version("m", place, run, model=each)
        store.inner.set_model_versions_tags("m", version, each)
        store.client.delete_model_version("m", version)
    store.delete(run, model, copied)
    assert set(decisions(store.uri).values()) == {"collect"}

    # Deleted with its registered model, it left nothing: only a person can say that it was here.
    store.client.delete_registered_model("m")
    assert set(decisions(store.uri).values()) == {"registered"}
    assert set(decisions(store.uri, OPTION, store.uri).values()) == {"collect"}


def test_a_version_of_the_same_name_of_another_model_is_not_the_one(
    store: RealStore, other: Database
) -> None:
    experiment = store.experiment("e")
    first, second = store.run(experiment), store.run(experiment)
    here, there = store.logged_model(first, "here"), store.logged_model(second, "there")
    store.version("m", store.client.get_logged_model(here).artifact_location, first, model=here)
    register(store, other, second, there)
    store.delete(second, there)
    assert decisions(store.uri) == {second: "registered", there: "registered"}


def test_a_tag_that_cannot_be_read_holds(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    models = [store.logged_model(run, name) for name in "abc"]
    texts = ("[{'name'", '{"name": "m"}', '[{"name": "m", "version": "latest"}]')
    for model, text in zip(models, texts, strict=True):
        store.client.set_logged_model_tags(model, {"mlflow.modelVersions": text})
        store.delete(model)
    assert set(decisions(store.uri).values()) == {"registered"}


@pytest.mark.parametrize("variable", ["MLFLOW_REGISTRY_STORE_URI", "MLFLOW_REGISTRY_URI"])
def test_a_registry_in_mlflows_environment_is_read(
    store: RealStore, other: Database, variable: str
) -> None:
    experiment = store.experiment("e")
    used, free = store.run(experiment), store.run(experiment)
    register(store, other, used)
    store.delete(used, free)
    there = {variable: other.uri}
    assert decisions(store.uri, env=there) == {used: "registered", free: "collect"}
    assert OPTION in gcd("doctor", uri=store.uri, env=there).stdout
    collect(store.uri, env=there)
    assert store.runs() == {used}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9"),
        ("MLFLOW_REGISTRY_URI", "databricks-uc"),
        ("MLFLOW_REGISTRY_STORE_URI", "file:///srv/registry"),
    ],
)
def test_a_registry_that_gcd_cannot_read_may_refer_to_anything(
    store: RealStore, variable: str, value: str
) -> None:
    experiment, gone = store.experiment("e"), store.experiment("gone")
    run = store.run(experiment)
    model = store.logged_model(store.run(experiment), "m")
    inside = store.run(gone)
    store.delete(run, model, gone)
    there = {variable: value}

    assert set(decisions(store.uri, env=there).values()) == {"registered"}
    told = gcd("explain", run, "--older-than", "0s", uri=store.uri, env=there).stdout
    assert variable in told
    assert OPTION in told
    doctor = gcd("doctor", uri=store.uri, env=there)
    assert doctor.returncode == 1, shown(doctor)
    assert OPTION in doctor.stdout
    collect(store.uri, env=there)
    assert {run, inside} <= store.runs()

    # The tracking server itself is no other registry, and neither is one that is named.
    same = {**there, "MLFLOW_TRACKING_URI": value + "/"}
    assert decisions(store.uri, OPTION, store.uri, env=there)[run] == "collect"
    if variable == "MLFLOW_REGISTRY_URI":
        assert decisions(store.uri, env=same)[run] == "collect"
