"""A store that fails in every way: nothing is told as gone that is not, and all goes once it works."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gcd.artifacts.base import Options, Order
from gcd.artifacts.s3 import S3ArtifactStore
from gcd.errors import PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Entry, Outcome, Place, Probe, Result, Root, Target, Usage
from tests.object_servers import ObjectServer
from tests.s3_bench import FILES, ROOT, RUNS, UNSIGNED, Bench, entry, new_bench
from tests.s3_stub import Fault


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with new_bench(monkeypatch) as made:
        yield made


def test_keys_of_many_trees_share_requests(bench: Bench) -> None:
    outcomes = bench.run()
    assert bench.left == bench.live
    assert {each.usage for each in outcomes} == {Usage(FILES, 2 * FILES)}
    assert [count for name, count in bench.stub.seen if name == "delete"] == [RUNS * FILES]
    assert bench.stub.count("uploads") == 1


FAULTS = {
    "503": ("delete", Fault("refuse", "SlowDown")),
    "429": ("delete", Fault("refuse", "TooManyRequests")),
    "500": ("delete", Fault("refuse", "InternalError")),
    "reset": ("delete", Fault("reset")),
    "done, then reset": ("delete", Fault("broken")),
    "half a reply": ("delete", Fault("half")),
    "keys left out": ("delete", Fault("omit")),
    "a lie": ("delete", Fault("lie")),
    "silence": ("delete", Fault("silent")),
    "keys that fail for now": ("delete", Fault("deny", "InternalError", "f1")),
    "keys that are throttled": ("delete", Fault("deny", "SlowDown", "f1")),
    "listing 503": ("list", Fault("refuse", "SlowDown")),
    "listing 500": ("list", Fault("refuse", "InternalError")),
    "listing reset": ("list", Fault("reset")),
    "half a listing": ("list", Fault("half")),
    "no XML": ("list", Fault("nothing_tells")),
    "a proxy's page": ("list", Fault("garbage")),
    "a wrong count": ("list", Fault("count")),
    "uploads 503": ("uploads", Fault("refuse", "SlowDown")),
}


@pytest.mark.parametrize("way", [{}, UNSIGNED], ids=["", "through the SDK"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_outlived(bench: Bench, fault: str, way: dict[str, str]) -> None:
    operation, what = FAULTS[fault]
    bench.store = bench.new_store(way)
    bench.stub.faults[operation] = deque([what])
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live
    assert bench.stub.through_sdk >= ({"list", "delete"} if way else set())
    assert way or not bench.stub.through_sdk & {"list", "delete"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_settles_nothing_that_is_not_gone_and_mends_itself(
    bench: Bench, fault: str
) -> None:
    operation, what = FAULTS[fault]
    bench.stub.always[operation] = what
    told = bench.run()
    if fault in ("done, then reset", "half a reply", "silence", "keys left out"):
        assert bench.left >= bench.live  # what was deleted may be known to be
    else:
        assert Result.SWEPT not in {each.result for each in told} or "keys" in fault
    assert fault != "uploads 503" or not bench.stub.count("delete")
    for each in told:
        assert each.result in (Result.SWEPT, Result.DEFERRED)
        assert each.result is Result.SWEPT or "bucket" in (each.error or "")

    bench.stub.always.clear()
    bench.store = bench.new_store()
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


def test_a_listing_that_never_ends_is_given_up(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("endless")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "never ends" in str(outcomes[0].error)


@pytest.mark.parametrize("code", ["AccessDenied", "MalformedXML"])
def test_a_key_that_may_not_be_deleted_stops_only_its_own_tree(bench: Bench, code: str) -> None:
    bench.stub.always["delete"] = Fault("deny", code, "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    assert outcomes[3].result is Result.STUCK
    assert code in str(outcomes[3].error)
    assert bench.left - bench.live == {k for k in bench.trees[3] if "f1" in k}


@pytest.mark.parametrize("code", ["MalformedXML", "AccessDenied", "InternalError"])
def test_a_key_that_spoils_its_request_stops_only_its_own_tree(bench: Bench, code: str) -> None:
    bench.stub.always["delete"] = Fault("poison", code, "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    if code == "MalformedXML":  # alone each key can be deleted
        assert bench.left == bench.live
        return
    assert outcomes[3].result is (Result.STUCK if code == "AccessDenied" else Result.DEFERRED)
    assert bench.left - bench.live == bench.trees[3]


def test_no_permission_to_list_is_no_empty_tree(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("refuse", "AccessDenied")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.STUCK}
    assert "allow s3:ListBucket" in str(outcomes[0].error)
    probe = bench.store.probe(ROOT, ())
    assert probe.is_there
    assert "AccessDenied" in str(probe.problem)


def test_a_bucket_that_is_not_there_is_no_empty_tree(bench: Bench) -> None:
    keys = bench.stub.keys.pop("bucket")
    assert bench.store.probe(ROOT, ()) == Probe(is_there=False)
    target = Target(replace(ROOT, path="root/1/run1/artifacts/"), ROOT)
    with pytest.raises(TransientArtifactError, match="NoSuchBucket"):
        bench.store.delete(target, Root(ROOT, Probe(is_there=True)))
    bench.stub.keys["bucket"] = keys


def test_a_server_that_is_not_there_is_told_and_soon_left_alone(bench: Bench) -> None:
    bench.store = ObjectServer("nobody", "http://127.0.0.1:9").store()
    began = time.monotonic()
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "does it answer?" in str(outcomes[0].error)
    assert time.monotonic() - began < 10
    assert "is the endpoint right" in str(bench.store.probe(ROOT, ()).problem)


def test_a_store_without_deletion_of_many_is_asked_for_each_key(bench: Bench) -> None:
    bench.stub.always["delete"] = Fault("refuse", "NotImplemented")
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live
    assert bench.stub.count("delete_one") == RUNS * FILES


@pytest.mark.parametrize("code", ["NotImplemented", "AccessDenied"])
def test_uploads_that_may_not_be_listed_are_a_warning(
    bench: Bench, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.stub.always["uploads"] = Fault("refuse", code)
    assert bench.results() == {Result.SWEPT}
    assert "unfinished uploads are not looked for" in caplog.text


def test_unfinished_uploads_of_the_trees_are_aborted_and_no_others(bench: Bench) -> None:
    kept = [("root/1/run10/artifacts/big", "u1"), ("root/1/run1", "u2"), ("other/f", "u3")]
    gone = [("root/1/run1/artifacts/a b%2F+", "u4"), ("root/1/run5/artifacts/x/y", "u5")]
    bench.stub.uploads["bucket"] = [*kept, *gone]
    assert bench.results() == {Result.SWEPT}
    assert bench.stub.uploads["bucket"] == kept


def test_a_veto_keeps_keys_and_uploads_of_its_tree_and_nothing_else(bench: Bench) -> None:
    bench.stub.uploads["bucket"] = [("root/1/run2/artifacts/big", "u1")]
    outcomes = bench.run(veto=lambda entry: "live again" if entry.id == 2 else None)
    assert [each.result for each in outcomes if each.entry.id != 2] == [Result.SWEPT] * 5
    assert outcomes[2] == Outcome(entry(2), Result.PARKED, error="live again")
    assert bench.left == bench.live | bench.trees[2]
    assert bench.stub.uploads["bucket"]


def test_a_veto_that_comes_between_two_requests_is_heard(bench: Bench) -> None:
    """A lease that is lost in the middle of a large tree stops it there."""
    big = {f"root/1/run1/artifacts/f{n}" for n in range(700)}
    bench.stub.keys["bucket"] |= dict.fromkeys(big, b"")
    asked = threading.Semaphore(2)

    def veto(entry: Entry) -> str | None:
        if not asked.acquire(blocking=False):
            raise TransientArtifactError("the lease is lost")
        return None

    target = entry(1).target
    assert target is not None
    order = Order(target, Root(ROOT, Probe(is_there=True)), lambda: veto(entry(1)) and None)
    (deletion,) = bench.store.delete_many([order])
    assert isinstance(deletion.result, TransientArtifactError)
    assert str(deletion.result) == "the lease is lost"
    assert len(bench.left & big) == 700 - 500


def test_a_tree_larger_than_any_memory_goes_request_by_request(bench: Bench) -> None:
    big = {f"root/1/run1/artifacts/f{n}" for n in range(1500)}
    bench.stub.keys["bucket"] |= dict.fromkeys(big, b"x")
    target = entry(1).target
    assert target is not None
    deleted = bench.store.delete(target, Root(ROOT, Probe(is_there=True)))
    assert deleted.usage.objects == 1500
    assert max(count for name, count in bench.stub.seen if name == "delete") == 250
    first = [name for name, _ in bench.stub.seen].index("delete")
    assert "list" in [name for name, _ in bench.stub.seen][first:][:-1]


def test_a_ceiling_on_objects_a_second_is_kept(bench: Bench) -> None:
    bench.store = bench.new_store(objects_per_second=100)
    began = time.monotonic()
    for number in range(2):
        target = entry(number).target
        assert target is not None
        bench.store.delete(target, Root(ROOT, Probe(is_there=True)))
    assert time.monotonic() - began >= FILES / 100


def test_another_bucket_of_that_name_is_not_touched(bench: Bench) -> None:
    root = Root(ROOT, Probe(is_there=True), remembered_identity="elsewhere/bucket")
    outcomes = bench.run(roots={ROOT: root})
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "another one" in str(outcomes[0].error)
    assert len(bench.left) == len(bench.live) + RUNS * FILES


@pytest.mark.parametrize("uri", ["r2://bucket", "b2://bucket", "s3://", "r2://@host"])
def test_a_place_without_a_bucket_or_an_endpoint_is_refused(bench: Bench, uri: str) -> None:
    scheme, _, authority = uri.partition("://")
    place = Place(scheme, authority, "1/run/artifacts/")
    with pytest.raises(UnsafeTarget, match="no bucket"):
        bench.store.resolve(place)


def test_whose_the_bucket_must_be_is_said_in_every_request(bench: Bench) -> None:
    bench.stub.uploads["bucket"] = [("root/1/run2/artifacts/big", "u1")]
    bench.stub.keys["bucket"]["root/1/run1/artifacts/\x01"] = b""
    bench.stub.owners.clear()
    bench.store = bench.new_store({"MLFLOW_S3_EXPECTED_BUCKET_OWNER": "123456789012"})
    list(bench.store.inspect(ROOT))
    assert bench.results() == {Result.SWEPT}
    assert bench.stub.owners == {"123456789012"}
    assert not bench.stub.through_sdk & {"list", "delete"}


def test_no_credentials_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    bench.store = S3ArtifactStore(Options(environment={"MLFLOW_S3_ENDPOINT_URL": bench.stub.url}))
    problem = bench.store.probe(ROOT, ()).problem
    assert problem is not None
    assert "NoCredentials" in problem
    assert "give the credentials" in problem


def test_what_the_store_says_is_deleted_is_looked_at(bench: Bench) -> None:
    bench.stub.always["delete"] = Fault("lie")
    target = entry(1).target
    assert target is not None
    with pytest.raises(TransientArtifactError, match="still listed"):
        bench.store.delete(target, Root(ROOT, Probe(is_there=True)))


def test_a_key_outside_of_what_was_asked_for_is_never_deleted(bench: Bench) -> None:
    """A store that answers with other keys than those below the prefix."""
    bucket = bench.store.bucket(ROOT)
    inner = bucket.ask

    def astray(operation: str, **parameters: object) -> dict[str, object]:
        reply = inner(operation, **parameters)
        for each in reply.get("Contents", ()):
            each["Key"] = "root/1/live/artifacts/f"
        return reply

    bucket.ask = astray  # type: ignore[method-assign]
    target = entry(1).target
    assert target is not None
    with pytest.raises(PermanentArtifactError, match="answers with the key"):
        bench.store.delete(target, Root(ROOT, Probe(is_there=True)))
    assert bench.stub.count("delete") == 0
