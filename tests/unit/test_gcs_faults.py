"""A store like Google's that fails in every way: nothing is told as gone that is not, and all goes once it works."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gcd.artifacts import pace
from gcd.artifacts.base import Order
from gcd.errors import (
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Entry, EntryState, Kind, Outcome, Place, Probe, Result, Root, Target, Usage
from gcd.sweep import sweep
from tests.gcs_server import new_store
from tests.gcs_stub import Fault, Stub, stub_server

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Place("gs", "bucket", "root/")
RUNS, FILES = 6, 20
"""More files than a page of a listing, more in all than a request."""


class Bench:
    """A stub with a tree for each of some runs and one that nobody names, and gcd's store of it."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.live = {"root/1/run10/artifacts/f", "root/1/run1", "root/1/live/artifacts/f", "f"}
        self.trees = {
            run: {f"root/1/run{run}/artifacts/f{n}" for n in range(FILES)} for run in range(RUNS)
        }
        for key in (*self.live, *(key for tree in self.trees.values() for key in tree)):
            stub.put("bucket", key)
        self.store = stub.store()

    @property
    def left(self) -> set[str]:
        return self.stub.keys("bucket")

    def run(self, **options: object) -> list[Outcome]:
        """One sweep of all trees; what it tells agrees with what is there."""
        probe = Probe(is_there=True, identity=self.store.bucket(ROOT).identity)
        arguments: dict[str, object] = {
            "open_store": lambda scheme: self.store,
            "roots": {ROOT: Root(ROOT, probe)},
            "veto": lambda entry: None,
            "now": NOW,
            "hands": 4,
        }
        entries = [entry(number) for number in range(RUNS)]
        found = list(sweep(entries, **(arguments | options)))  # type: ignore[arg-type]
        assert sorted(each.entry.id for each in found) == list(range(RUNS))
        for each in found:
            if each.result is Result.SWEPT:
                assert not self.trees[each.entry.id] & self.left
        assert self.live <= self.left
        return sorted(found, key=lambda each: each.entry.id)

    def results(self, **options: object) -> set[Result]:
        return {each.result for each in self.run(**options)}

    def raised(self, number: int = 1) -> Exception:
        """What one tree's deletion raises."""
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
            self.store.delete(tree(number), Root(ROOT, Probe(is_there=True)))
        return caught.value


def tree(number: int) -> Target:
    return Target(replace(ROOT, path=f"root/1/run{number}/artifacts/"), ROOT)


def entry(number: int) -> Entry:
    stamps = {"attempts": 0, "purged_at": NOW, "due_at": NOW}
    return Entry(
        number,
        1,
        Kind.RUN,
        f"run{number}",
        "1",
        tree(number),
        EntryState.PENDING,
        **stamps,  # type: ignore[arg-type]
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(pace, "FLOOR", 20_000.0)
    with stub_server() as stub:
        yield Bench(stub)


def test_keys_of_many_trees_share_requests(bench: Bench) -> None:
    outcomes = bench.run()
    assert bench.left == bench.live
    assert {each.usage for each in outcomes} == {Usage(FILES, 2 * FILES)}
    assert sorted(count for name, count in bench.stub.seen if name == "batch") == [20, 100]
    assert {name for name, _ in bench.stub.seen} == {"list", "batch"}
    assert bench.stub.tokens == {None}


FAULTS = {
    "503": ("batch", Fault("refuse", 503, "backendError")),
    "429": ("batch", Fault("refuse", 429, "rateLimitExceeded")),
    "403 for its rate": ("batch", Fault("refuse", 403, "rateLimitExceeded")),
    "500": ("batch", Fault("refuse", 500, "backendError")),
    "408": ("batch", Fault("refuse", 408, "requestTimeout")),
    "an expired token": ("batch", Fault("refuse", 401, "authError")),
    "reset": ("batch", Fault("reset")),
    "done, then reset": ("batch", Fault("broken")),
    "half a reply": ("batch", Fault("half")),
    "no reply in it": ("batch", Fault("empty")),
    "a proxy's page for a reply": ("batch", Fault("html")),
    "a proxy's refusal": ("batch", Fault("html", 403)),
    "keys left out": ("batch", Fault("omit")),
    "a lie": ("batch", Fault("lie")),
    "keys that fail for now": ("batch", Fault("deny", 500, "backendError", "f1")),
    "keys that are throttled": ("batch", Fault("deny", 429, "rateLimitExceeded", "f1")),
    "keys that changed": ("batch", Fault("deny", 412, "conditionNotMet", "f1")),
    "keys that want a token": ("batch", Fault("deny", 401, "authError", "f1")),
    "listing 503": ("list", Fault("refuse", 503, "backendError")),
    "listing 500": ("list", Fault("refuse", 500, "backendError")),
    "listing reset": ("list", Fault("reset")),
    "half a listing": ("list", Fault("half")),
    "an empty reply": ("list", Fault("empty")),
    "an empty object": ("list", Fault("json", text="{}")),
    "a list": ("list", Fault("json", text="[]")),
    "null": ("list", Fault("json", text="null")),
    "no objects": ("list", Fault("json", text='{"kind": "storage#objects", "items": [{"x": 1}]}')),
    "something else": ("list", Fault("json", text='{"kind": "storage#buckets", "items": []}')),
    "a proxy's page": ("list", Fault("html")),
    "a proxy's 404": ("list", Fault("html", 404)),
}
SOME_GO = ("done, then reset", "half a reply", "keys left out")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_outlived(bench: Bench, fault: str) -> None:
    operation, what = FAULTS[fault]
    bench.stub.faults[operation] = deque([what])
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_settles_nothing_that_is_not_gone_and_mends_itself(
    bench: Bench, fault: str
) -> None:
    operation, what = FAULTS[fault]
    bench.stub.always[operation] = what
    told = bench.run()
    assert fault in SOME_GO or "keys" in fault or Result.SWEPT not in {e.result for e in told}
    for each in told:
        assert each.result in (Result.SWEPT, Result.DEFERRED), each
        assert each.result is Result.SWEPT or "bucket" in (each.error or "")
        assert "html" not in (each.error or "")

    bench.stub.always.clear()
    bench.store = bench.stub.store()
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


def test_a_listing_that_never_ends_is_given_up(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("endless")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "never ends" in str(outcomes[0].error)


def test_a_key_that_may_not_be_deleted_stops_only_its_own_tree(bench: Bench) -> None:
    bench.stub.always["batch"] = Fault("deny", 403, "forbidden", "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    assert outcomes[3].result is Result.STUCK
    assert "forbidden" in str(outcomes[3].error)
    assert "allow storage.objects.delete" in str(outcomes[3].error)
    assert bench.left - bench.live == {k for k in bench.trees[3] if "f1" in k}


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_key_that_spoils_its_request_stops_only_its_own_tree(bench: Bench, status: int) -> None:
    bench.stub.always["batch"] = Fault("poison", status, "invalid", "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    if status == 400:  # alone each key can be deleted
        assert bench.left == bench.live
        return
    assert outcomes[3].result is (Result.STUCK if status == 403 else Result.DEFERRED)
    spoilt = {key for key in bench.trees[3] if "f1" in key}
    assert spoilt <= bench.left - bench.live <= bench.trees[3]


@pytest.mark.parametrize(
    ("status", "reason", "mend"),
    [
        (401, "required", "give the credentials that MLflow uses"),
        (403, "accountDisabled", "billing"),
        (400, "userProjectMissing", "requester pays"),
    ],
)
def test_what_concerns_the_whole_store_is_deferred_with_its_mend(
    bench: Bench, status: int, reason: str, mend: str
) -> None:
    bench.stub.always["list"] = Fault("refuse", status, reason)
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert mend in str(outcomes[0].error)


def test_no_permission_to_list_is_no_empty_tree(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("refuse", 403, "forbidden")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.STUCK}
    assert "allow storage.objects.list" in str(outcomes[0].error)
    probe = bench.store.probe(ROOT, ())
    assert probe.is_there
    assert "forbidden" in str(probe.problem)


def test_a_bucket_that_is_not_there_is_no_empty_tree(bench: Bench) -> None:
    objects = bench.stub.objects.pop("bucket")
    assert bench.store.probe(ROOT, ()) == Probe(is_there=False)
    assert isinstance(bench.raised(), TransientArtifactError)
    bench.stub.objects["bucket"] = objects


def test_a_server_that_is_not_there_is_told_and_soon_left_alone(bench: Bench) -> None:
    bench.store = new_store("http://127.0.0.1:9")
    began = time.monotonic()
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "does it answer?" in str(outcomes[0].error)
    assert time.monotonic() - began < 10
    assert "STORAGE_EMULATOR_HOST" in str(bench.store.probe(ROOT, ()).problem)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_store_without_batches_is_asked_for_each_key(bench: Bench, status: int) -> None:
    bench.stub.always["batch"] = Fault("html", status)
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live
    assert bench.stub.count("delete") == RUNS * FILES


@pytest.mark.parametrize(
    "what",
    [
        Fault("deny", 403, "forbidden", "run3/"),
        Fault("deny", 500, "backendError", "run3/"),
        Fault("lie"),
        Fault("reset"),
    ],
)
def test_faults_of_keys_that_are_deleted_one_by_one(bench: Bench, what: Fault) -> None:
    bench.stub.always |= {"batch": Fault("refuse", 501), "delete": what}
    outcomes = bench.run()
    if what.how == "deny":
        assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
        assert outcomes[3].result is (Result.STUCK if what.status == 403 else Result.DEFERRED)
    else:
        assert {each.result for each in outcomes} == {Result.DEFERRED}
    del bench.stub.always["delete"]
    bench.store = bench.stub.store()
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


def test_a_veto_keeps_keys_of_its_tree_and_nothing_else(bench: Bench) -> None:
    outcomes = bench.run(veto=lambda entry: "live again" if entry.id == 2 else None)
    assert [each.result for each in outcomes if each.entry.id != 2] == [Result.SWEPT] * 5
    assert outcomes[2] == Outcome(entry(2), Result.PARKED, error="live again")
    assert bench.left == bench.live | bench.trees[2]


def test_a_veto_that_comes_between_two_requests_is_heard(bench: Bench) -> None:
    """A lease that is lost in the middle of a large tree stops it there."""
    big = {f"root/1/run1/artifacts/f{n}" for n in range(300)}
    for key in big:
        bench.stub.put("bucket", key)
    asked = threading.Semaphore(2)

    def permit() -> None:
        if not asked.acquire(blocking=False):
            raise TransientArtifactError("the lease is lost")

    order = Order(tree(1), Root(ROOT, Probe(is_there=True)), permit)
    (deletion,) = bench.store.delete_many([order])
    assert str(deletion.result) == "the lease is lost"
    assert len(bench.left & big) == 300 - 200


def test_another_bucket_of_that_name_is_not_touched(bench: Bench) -> None:
    root = Root(ROOT, Probe(is_there=True), remembered_identity="elsewhere/bucket")
    outcomes = bench.run(roots={ROOT: root})
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "another one" in str(outcomes[0].error)
    assert len(bench.left) == len(bench.live) + RUNS * FILES


@pytest.mark.parametrize("bucket", ["", "a@b", "b%2Fo%2F", "b/o", "-b", "b?x", "b:1", "b-"])
def test_a_place_without_a_bucket_is_refused(bench: Bench, bucket: str) -> None:
    place = Place("gs", bucket, "1/run/artifacts/")
    with pytest.raises(UnsafeTarget, match="no bucket"):
        bench.store.resolve(place)
    with pytest.raises(UnsafeTarget, match="no bucket"):
        bench.store.bucket(place)


def test_a_key_outside_of_what_was_asked_for_is_never_deleted(bench: Bench) -> None:
    """A store that answers with other keys than those below the prefix."""
    bench.stub.always["list"] = Fault("astray")
    error = bench.raised()
    assert isinstance(error, PermanentArtifactError)
    assert "answers with the key" in str(error)
    assert bench.stub.count("batch") == bench.stub.count("delete") == 0


# What the store keeps, and what it holds --------------------------------------------------------


def test_what_was_put_in_an_objects_place_is_listed_before_it_goes(bench: Bench) -> None:
    """What is deleted is what was listed and asked about, no newer object of its name."""
    key, asked = "root/1/run1/artifacts/f1", []

    def permit() -> None:
        asked.append(bench.stub.count("list"))
        if len(asked) == 1:
            bench.stub.put("bucket", key, b"newer")

    order = Order(tree(1), Root(ROOT, Probe(is_there=True)), permit)
    (deletion,) = bench.store.delete_many([order])
    assert not isinstance(deletion.result, Exception)
    assert [count for name, count in bench.stub.seen if name == "batch"] == [FILES, 1]
    assert asked[1] > asked[0]
    assert not bench.trees[1] & bench.left


@pytest.mark.parametrize("together", [True, False])
def test_what_somebody_else_deleted_meanwhile_is_gone(bench: Bench, together: bool) -> None:
    if not together:
        bench.stub.always["batch"] = Fault("refuse", 501)

    def permit() -> None:
        for key in bench.trees[1]:
            bench.stub.delete("bucket", key, {})

    order = Order(tree(1), Root(ROOT, Probe(is_there=True)), permit)
    (deletion,) = bench.store.delete_many([order])
    assert not isinstance(deletion.result, Exception)
    assert deletion.result.usage == Usage(FILES, 2 * FILES)
    assert bench.stub.count("delete") == (0 if together else FILES)  # none is taken for a failure


@pytest.fixture
def versioned(bench: Bench) -> Bench:
    """Each object has an old version too."""
    bench.stub.is_versioned = True
    bench.stub.settings = {"versioning": {"enabled": True}}
    for key in bench.left:
        bench.stub.put("bucket", key, b"123")
    return bench


def test_current_versions_go_and_the_old_ones_stay(versioned: Bench) -> None:
    outcomes = versioned.run()
    assert versioned.left == versioned.live
    assert outcomes[0].usage == Usage(FILES, 3 * FILES)
    assert versioned.stub.generations("bucket", "root/1/run0/") == 2 * FILES
    assert "keeps old versions" in str(versioned.store.probe(ROOT, ()).note)
    [said] = [each for each in versioned.store.inspect(ROOT) if "no space is freed" in each.seen]
    assert said.mend


def test_every_version_goes_where_that_is_asked_for(versioned: Bench) -> None:
    versioned.store = versioned.stub.store(versions="all")
    assert versioned.store.probe(ROOT, ()).note is None
    assert versioned.store.measure(tree(0)) == Usage(2 * FILES, 5 * FILES)
    assert {each.usage for each in versioned.run()} == {Usage(2 * FILES, 5 * FILES)}
    assert versioned.left == versioned.live
    assert versioned.stub.generations("bucket") == 2 * len(versioned.live)


def test_old_versions_that_mlflow_left_go_where_all_is_asked_for(versioned: Bench) -> None:
    versioned.run()
    versioned.store = versioned.stub.store(versions="all")
    assert versioned.results() == {Result.SWEPT}
    assert versioned.stub.generations("bucket") == 2 * len(versioned.live)


UNTIL = "is subject to bucket's retention policy and cannot be deleted or overwritten until "
HELD = "is under active Temporary hold and cannot be deleted, overwritten or archived until hold is removed."
LOCKS: dict[str, tuple[str, str, dict[str, object]]] = {
    "its end is told": ("retentionPolicyNotMet", f"'f' {UNTIL}2026-06-10T11:29:20.8-07:00", {}),
    "its end is told, in other words": (
        "forbidden",
        "Object 'b/f' is subject to bucket's retention policy and cannot be deleted, overwritten or archived "
        "until 2026-06-10T11:29:20.800000999-07:00",
        {},
    ),
    "its end is asked for": (
        "retentionPolicyNotMet",
        "not yet",
        {
            "retentionExpirationTime": "2026-06-10T18:29:20.8Z",
            "retention": {"mode": "Locked", "retainUntilTime": "2026-05-01T00:00:00Z"},
        },
    ),
    "a hold after which it is retained": (
        "objectUnderActiveHold",
        "not yet",
        {"temporaryHold": True, "retentionExpirationTime": "2026-06-10T18:29:20.8Z"},
    ),
    "a hold that is only forbidden": ("forbidden", HELD, {"eventBasedHold": True}),
    "a hold that nobody explains": ("objectUnderActiveHold", HELD, {}),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_what_the_store_holds_is_told_with_its_end_and_the_rest_goes(
    bench: Bench, lock: str
) -> None:
    reason, text, bench.stub.about = LOCKS[lock]
    bench.stub.held = {"root/1/run1/artifacts/f1": (reason, text)}
    error = bench.raised()
    assert isinstance(error, LockedArtifactError)
    assert bench.left & bench.trees[1] == set(bench.stub.held)
    if "its end" in lock:
        assert error.until == datetime(2026, 6, 10, 18, 29, 20, 800_000, tzinfo=UTC)
    else:
        assert error.until is None
        assert "hold" in error.message
        assert error.hint
    bench.stub.held.clear()
    assert bench.results() == {Result.SWEPT}


def test_what_is_held_stops_only_its_own_tree_also_one_by_one(bench: Bench) -> None:
    bench.stub.always["batch"] = Fault("refuse", 501)
    bench.stub.held = {"root/1/run1/artifacts/f1": ("objectUnderActiveHold", HELD)}
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 1] == [Result.SWEPT] * 5
    assert outcomes[1].result is not Result.SWEPT
    assert bench.left - bench.live == set(bench.stub.held)


# What an operator is told -----------------------------------------------------------------------

SETTINGS = {
    "soft delete: what is deleted takes space for 7d": {
        "softDeletePolicy": {"retentionDurationSeconds": "604800"}
    },
    "nothing goes before it is 1d": {"retentionPolicy": {"retentionPeriod": "86400"}},
    "event-based hold": {"defaultEventBasedHold": True},
    "objects may be retained": {"objectRetention": {"mode": "Enabled"}},
    "hierarchical namespace": {"hierarchicalNamespace": {"enabled": True}},
    "old versions go by the bucket's lifecycle rules": {
        "versioning": {"enabled": True},
        "lifecycle": {
            "rule": [{"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": 3}}]
        },
    },
    "no lifecycle rule expires old versions": {
        "versioning": {"enabled": True},
        "lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 3}}]},
    },
}


@pytest.mark.parametrize("said", SETTINGS)
def test_settings_that_matter_are_told(bench: Bench, said: str) -> None:
    bench.stub.settings = SETTINGS[said]
    assert [each for each in bench.store.inspect(ROOT) if said in each.seen]


def test_soft_delete_is_told_whatever_versions_go(bench: Bench) -> None:
    bench.stub.settings = {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}
    for versions in ("current", "all"):
        note = bench.stub.store(versions=versions).probe(ROOT, ()).note
        assert note is not None
        assert "keeps deleted objects for 7d" in note


def test_missing_permissions_are_told_and_stop_nothing_that_they_are_not_for(bench: Bench) -> None:
    bench.stub.denied = {"storage.objects.delete"}
    bench.stub.always["bucket"] = Fault("refuse", 403, "forbidden")
    mends = [each.mend for each in bench.store.inspect(ROOT) if each.mend]
    assert mends == ["allow storage.buckets.get", "allow storage.objects.delete"]
    assert bench.results() == {Result.SWEPT}
    assert bench.store.probe(ROOT, ()).note is None
