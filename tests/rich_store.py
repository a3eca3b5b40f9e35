"""A store with something of everything, part of it deleted; and what gcd has to make of it.

It must never write a row that MLflow itself could not have written, but by `sql` and what says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.apparatus import Apparatus
from tests.expectation import kind_of
from tests.mlflow_store import DAY, FILES, ODD_FILES, RealStore, now_ms


@dataclass
class Rich:
    """What was made, and what has to become of it."""

    store: RealStore
    apparatus: Apparatus
    gone: dict[str, str] = field(default_factory=dict)
    """Deleted run, logged model or experiment to go, and what is special about it."""
    kept: dict[str, str] = field(default_factory=dict)
    """Deleted one to stay, and the keep reason."""
    live: list[str] = field(default_factory=list)
    last: str = ""
    """The experiment of the highest number, which goes."""

    @property
    def gone_experiments(self) -> set[str]:
        """The experiments to go."""
        return {each for each in self.gone if kind_of(each) == "experiments"}

    def go(self, what: str, entity: str) -> str:
        """Delete it; it has to go."""
        self.store.delete(entity)
        self.gone[entity] = what
        return entity

    def keep(self, reason: str, entity: str) -> str:
        """Delete it; it has to stay."""
        self.store.delete(entity)
        self.kept[entity] = reason
        return entity

    def stay(self, run: str) -> str:
        """It is live."""
        self.live.append(run)
        return run

    def restore(self, run: str) -> None:
        """It is live again."""
        del self.gone[run]
        self.store.restore(run)
        self.stay(run)

    def drop(
        self,
        experiment: str,
        reason: str | None = None,
        staying: Mapping[str, str] | None = None,
    ) -> str:
        """Delete an experiment: it goes, or stays for a reason; its runs go, but those `staying`."""
        runs = self.store.runs_in(experiment)
        self.store.delete(experiment)
        for entity, why in [(run, (staying or {}).get(run)) for run in runs] + [
            (experiment, reason)
        ]:
            if why is None:
                self.gone[entity] = "its experiment was deleted"
            else:
                self.kept[entity] = why
        return experiment


def rich_store(store: RealStore) -> Rich:
    """Live experiments with everything that hangs on runs and models, and deleted ones."""
    rich = Rich(store, Apparatus(store))
    alpha, beta = store.experiment("alpha"), store.numbered("beta")
    for experiment in (alpha, beta):
        rich.stay(store.run(experiment, files=ODD_FILES, dataset="shared"))
    plain_ones(rich, alpha)
    nested_ones(rich, beta)
    modelled_ones(rich, alpha)
    deleted_models(rich, alpha)
    registered_ones(rich, alpha, beta)
    traced_ones(rich, beta)
    edited_ones(rich, beta)
    rich.keep("default_experiment", "0")
    rich.go("empty", store.numbered("empty"))
    kept_experiments(rich, alpha)
    endpoint_guards(rich, beta)
    full_experiment(rich, alpha, beta)
    return rich


# -- runs ------------------------------------------------------------------------------------------


def plain_ones(rich: Rich, experiment: str) -> None:
    """Runs that nothing refers to."""
    store = rich.store
    rich.go("odd files", store.run(experiment, files={**FILES, **ODD_FILES}))
    rich.go("no files", store.run(experiment, files={}))
    rich.go("no rows but its own", store.run(experiment, metrics=0, params={}))
    rich.go("failed", store.run(experiment, status="FAILED"))
    rich.go("dataset of a live run", store.run(experiment, dataset="shared"))
    rich.go("dataset of its own", store.run(experiment, dataset="only mine"))
    linked = store.run(experiment)
    outside = store.root / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("not yours")
    (store.tree(linked) / "folder").symlink_to(outside)
    (store.tree(linked) / "file.txt").symlink_to(outside / "precious.txt")
    (store.tree(linked) / "dangling").symlink_to(outside / "nothing")
    (store.tree(linked) / "empty").mkdir()
    rich.go("symlinks and an empty folder", linked)
    rich.keep("held", store.run(experiment, tags={"gcd.hold": "paper"}))
    rich.keep("held", store.run(experiment, tags={"gcd.hold_until": "2999-01-01"}))
    rich.go("no longer held", store.run(experiment, tags={"gcd.hold_until": "2020-01-01"}))
    rich.keep("still_running", store.run(experiment, status="RUNNING"))


def nested_ones(rich: Rich, experiment: str) -> None:
    """Parents and children, one of them or both deleted."""
    store = rich.store
    parent = store.run(experiment)
    rich.stay(store.run(experiment, parent=parent))
    rich.go("parent of a live child", parent)
    live = rich.stay(store.run(experiment))
    rich.go("child of a live parent", store.run(experiment, parent=live))
    both = store.run(experiment)
    rich.go("child of a deleted parent", store.run(experiment, parent=both))
    rich.go("parent of a deleted child", both)


def registered_ones(rich: Rich, alpha: str, beta: str) -> None:
    """Runs that model versions point into, and one whose version was deleted."""
    store, client = rich.store, rich.store.client
    by_path = store.run(alpha)
    store.version("classifier", client.get_run(by_path).info.artifact_uri + "/model", by_path)
    client.set_registered_model_alias("classifier", "champion", "1")
    rich.keep("registered", by_path)
    anonymous = store.run(alpha)
    store.version("classifier", client.get_run(anonymous).info.artifact_uri + "/model")
    rich.keep("registered", anonymous)
    by_run = store.run(beta)
    store.version("classifier", f"runs:/{by_run}/model", by_run)
    rich.keep("registered", by_run)
    by_model = store.run(beta)
    model = store.logged_model(by_model, "m-registered")
    store.version("classifier", f"models:/{model}", by_model, model)
    rich.keep("registered", by_model)
    rich.keep("registered", model)
    former = store.run(beta)
    old = store.version("classifier", client.get_run(former).info.artifact_uri + "/model", former)
    client.delete_model_version("classifier", old)
    rich.go("its version was deleted", former)
    live = rich.live[0]
    store.version("classifier", client.get_run(live).info.artifact_uri + "/model", live)


def traced_ones(rich: Rich, experiment: str) -> None:
    """Runs that traces, links and assessments name; the traces are live."""
    store = rich.store
    traced = store.run(experiment)
    trace = store.trace(experiment, run=traced, file=b"kept")
    rich.go("a trace was made in it", traced)
    live = rich.stay(store.run(experiment))
    store.trace(experiment, run=live)
    linked = store.run(experiment)
    store.client.link_traces_to_run([trace], linked)
    store.client.link_traces_to_run([trace], live)
    rich.go("linked to a trace", linked)
    judge = rich.go("source of assessments", store.run(experiment))
    # MLflow deletes such assessments together with the run; this one comes later and escapes it.
    store.assess(trace, judge)
    store.assess(trace, live)


def edited_ones(rich: Rich, experiment: str) -> None:
    """What imports, other tools and wrong clocks leave behind."""
    store = rich.store
    undated = rich.go("no stamp", store.run(experiment))
    store.stamp(undated, None)
    future = rich.keep("from_the_future", store.run(experiment))
    store.stamp(future, now_ms() + DAY)
    host = store.run(experiment)
    guest = rich.stay(store.run(experiment, files={}))
    store.point(guest, store.client.get_run(host).info.artifact_uri + "/model")
    rich.keep("shared", host)
    elsewhere = store.run(experiment)
    store.point(elsewhere, (store.root / "elsewhere").as_uri())
    (store.root / "elsewhere").mkdir()
    (store.root / "elsewhere" / "file").write_text("whose?")
    rich.keep("unsafe_target", elsewhere)


# -- logged models ---------------------------------------------------------------------------------


def modelled_ones(rich: Rich, experiment: str) -> None:
    """Runs that made or used logged models."""
    store = rich.store
    maker = store.run(experiment)
    model = store.logged_model(maker, "m-plain")
    user = rich.stay(store.run(experiment))
    store.model_input(user, model)
    taker = store.run(experiment)
    store.model_input(taker, model)
    rich.go("made a live model", maker)
    rich.go("took a live model", taker)
    feeder = store.run(experiment)
    store.logged_model(feeder, "m-fed", metrics=True)
    rich.keep("feeds_live_model", feeder)
    ended = store.run(experiment)
    rich.go("measured by a deleted run", store.logged_model(ended, "m-deleted", metrics=True))
    rich.go("metrics of a deleted model", ended)


def deleted_models(rich: Rich, experiment: str) -> None:
    """Logged models that were deleted by themselves; the run that made them is live."""
    store = rich.store
    run = rich.stay(store.run(experiment))
    used = store.logged_model(run, "m-used", metrics=True)
    other = rich.stay(store.run(experiment))
    store.model_input(other, used)
    store.trace(experiment, model=used)
    rich.go("used, measured and traced by what is live", used)
    rich.keep("held", store.logged_model(run, "m-held", tags={"gcd.hold": "paper"}))
    host = store.logged_model(run, "m-host")
    guest = rich.stay(store.run(experiment, files={}))
    store.point(guest, store.client.get_logged_model(host).artifact_location + "/inside")
    rich.keep("shared", host)
    elsewhere = store.logged_model(run, "m-elsewhere")
    store.point_model(elsewhere, (store.root / "elsewhere too").as_uri())
    rich.keep("unsafe_target", elsewhere)


# -- deleted experiments that stay -----------------------------------------------------------------


def kept_experiments(rich: Rich, alpha: str) -> None:
    """Deleted experiments with something in them that must stay; their other runs go."""
    store, client = rich.store, rich.store.client
    user = rich.stay(store.run(alpha))

    half = store.experiment("half restored")
    restored, *_ = [store.run(half) for _ in range(3)]
    rich.drop(half, "has_live_children")
    rich.restore(restored)

    used = store.experiment("model in use")
    store.model_input(user, store.logged_model(store.run(used), "m-in-use"))
    rich.drop(used, "has_live_children")

    fed = store.experiment("model in use, measured here")
    feeder = store.run(fed)
    store.model_input(user, store.logged_model(feeder, "m-fed", metrics=True))
    rich.drop(fed, "has_live_children", {feeder: "feeds_live_model"})

    registered = store.experiment("model registered")
    store.run(registered)
    model = store.logged_model(user, "m-versioned", experiment=registered)
    store.version("classifier", f"models:/{model}", None, model)
    rich.drop(registered, "has_live_children")

    versioned = store.experiment("run registered")
    run = store.run(versioned)
    store.version("classifier", f"{client.get_run(run).info.artifact_uri}/model", run)
    rich.drop(versioned, "registered", {run: "registered"})

    held = store.numbered("held")
    client.set_experiment_tag(held, "gcd.hold", "audit")
    run = store.run(held)
    rich.keep("held", store.logged_model(run, "m-held too"))
    rich.drop(held, "held", {run: "held"})

    busy = store.experiment("still running")
    run = store.run(busy, status="RUNNING")
    rich.drop(busy, "has_live_children", {run: "still_running"})

    odd = store.experiment("model elsewhere")
    model = store.logged_model(store.run(odd), "m-odd")
    store.point_model(model, (store.root / "elsewhere as well").as_uri())
    rich.drop(odd, "unsafe_target")

    linked = store.experiment("a trace linked to a live run elsewhere")
    store.client.link_traces_to_run([store.trace(linked)], user)
    store.run(linked)
    rich.drop(linked, "has_live_children")

    assessed = store.experiment("a trace assessed by a live run elsewhere")
    store.assess(store.trace(assessed), user)
    store.run(assessed)
    rich.drop(assessed, "has_live_children")

    tomorrow = store.experiment("a trace of tomorrow")
    store.trace(tomorrow, days_ago=-1)
    rich.drop(tomorrow, "from_the_future")


def endpoint_guards(rich: Rich, beta: str) -> None:
    """The gateway: endpoints that scorers use; one is guarded by a scorer of a deleted experiment."""
    store, apparatus = rich.store, rich.apparatus
    endpoint = apparatus.endpoint("open", traced_in=beta)
    guarded = store.experiment("guards an endpoint")
    scorer = apparatus.scorer(guarded, "guard", "open")
    apparatus.guardrail("no swearing", scorer, endpoint)
    store.run(guarded)
    rich.drop(guarded, "in_use")


# -- the deleted experiment that goes --------------------------------------------------------------


def full_experiment(rich: Rich, alpha: str, beta: str) -> None:
    """A deleted experiment with everything in it, and every link to and from what is live."""
    store, apparatus = rich.store, rich.apparatus
    full = rich.last = store.numbered("full")
    store.client.set_experiment_tag(full, "team", "blue")
    parent = store.run(full, dataset="shared", files=ODD_FILES)
    child = store.run(full, parent=parent, dataset="only here")
    trace = store.trace(full, run=parent, file=b"gone", days_ago=3)
    store.assess(trace, child)
    active = store.logged_model(parent, "m-active", metrics=True)
    deleted = store.logged_model(child, "m-gone", metrics=True)
    store.trace(full, model=active)
    (store.folder(full) / "README").write_text("somebody put this here")

    apparatus.endpoint("closed", traced_in=full)
    apparatus.everything(full, child, trace, "closed")
    reaching_out(rich, alpha, beta, parent, active)
    reaching_in(rich, beta, trace, parent)
    apparatus.evaluation_dataset("of both", [alpha, full], trace)
    apparatus.evaluation_dataset("of one", [full], trace)
    apparatus.prompt("of_both", [alpha, full], trace)
    apparatus.prompt("of_one", [full], trace)
    shared_datasets(rich, alpha, full)
    apparatus.roll_ups(full)
    rich.go("in a deleted experiment", deleted)
    rich.drop(full)
    store.trace(full)  # MLflow accepts it


def reaching_out(rich: Rich, alpha: str, beta: str, run: str, model: str) -> None:
    """What is live names a run and a model that will go."""
    store, apparatus = rich.store, rich.apparatus
    rich.stay(store.run(alpha, parent=run))
    measurer = store.run(alpha)
    store.measure(measurer, model)
    rich.go("measured a model of a deleted experiment", measurer)
    live = rich.live[0]
    store.logged_model(live, "m-live", source=run)
    store.model_input(run, store.logged_model(live, "m-taken"))
    trace = store.trace(beta, run=run, model=model, days_ago=3)
    store.client.link_traces_to_run([trace], run)
    apparatus.everything(beta, run, trace, "open")
    old = store.version("classifier", f"models:/{model}", run, model)
    store.client.delete_model_version("classifier", old)


def reaching_in(rich: Rich, beta: str, trace: str, run: str) -> None:
    """What is live has a place for a trace that will go, and a live trace for an issue that will."""
    store, apparatus = rich.store, rich.apparatus
    live = rich.live[0]
    schema = apparatus.label_schema(beta, "mood")
    stays = store.trace(beta)
    apparatus.review_queue(beta, "both", schema, [trace, stays])
    apparatus.issue(rich.last, run, stays)
    # MLflow deletes such an assessment together with the run; by SQL it escapes it, as a late one does.
    store.assess(stays, live)
    store.sql(
        "UPDATE assessments SET run_id = :run WHERE trace_id = :trace AND name = 'by run'",
        run=run,
        trace=stays,
    )


def shared_datasets(rich: Rich, alpha: str, full: str) -> None:
    """What MLflow 2.4 to 3.9 left: runs that use a dataset of an experiment that is not theirs."""
    store = rich.store
    for name, twin in (("lent", None), ("lent, had already", "twin")):
        lender, user = store.run(full, dataset=name), rich.stay(store.run(alpha, dataset="to be"))
        if twin:
            store.run(alpha, dataset=name)
        of = "SELECT source_id FROM inputs WHERE destination_id = :run AND source_type = 'DATASET'"
        lent = store.database.scalar(of, run=lender)
        store.sql(
            "UPDATE inputs SET source_id = :lent"
            " WHERE destination_id = :run AND source_type = 'DATASET'",
            lent=lent,
            run=user,
        )
