"""An account that fails in every way: nothing is told as gone that is not, and all goes once it works."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gcd.artifacts import pace
from gcd.artifacts.azure import AzureArtifactStore
from gcd.artifacts.base import Options
from gcd.errors import PermanentArtifactError, TransientArtifactError
from gcd.model import Entry, EntryState, Kind, Outcome, Place, Probe, Result, Root, Target, Usage
from gcd.sweep import sweep
from tests.azure_server import AzureServer
from tests.azure_stub import ACCOUNT, KEY, Stub, stub_server
from tests.s3_stub import Fault

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Place("wasbs", f"box@{ACCOUNT}.blob.core.windows.net", "root/")
RUNS = 6
FILES = 20
"""More than a page of a listing."""


class Bench:
    """A stub with a tree for each of some runs and one that nobody names, and gcd's store of it."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.live = {"root/1/run10/artifacts/f", "root/1/run1", "root/1/live/artifacts/f", "f"}
        self.trees = {
            run: {f"root/1/run{run}/artifacts/f{n}" for n in range(FILES)} for run in range(RUNS)
        }
        stub.blobs["box"] = {}
        for key in (*self.live, *(key for tree in self.trees.values() for key in tree)):
            stub.put("box", key, b"xy")
        self.server = AzureServer(f"{stub.url}/{ACCOUNT}", ACCOUNT, KEY)
        self.store = self.server.store()

    @property
    def left(self) -> set[str]:
        return self.stub.keys("box")

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

    def results(self) -> set[Result]:
        return {each.result for each in self.run()}

    def delete(self, number: int) -> Usage:
        return self.store.delete(target(number), Root(ROOT, Probe(is_there=True))).usage


def target(number: int) -> Target:
    return Target(replace(ROOT, path=f"root/1/run{number}/artifacts/"), ROOT)


def entry(number: int) -> Entry:
    stamps = {"attempts": 0, "purged_at": NOW, "due_at": NOW}
    names = (number, 1, Kind.RUN, f"run{number}", "1", target(number), EntryState.PENDING)
    return Entry(*names, **stamps)  # type: ignore[arg-type]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(pace, "FLOOR", 20_000.0)
    with stub_server() as stub:
        yield Bench(stub)


def test_blobs_of_many_trees_share_requests(bench: Bench) -> None:
    outcomes = bench.run()
    assert bench.left == bench.live
    assert {each.usage for each in outcomes} == {Usage(FILES, 2 * FILES)}
    assert [count for name, count in bench.stub.seen if name == "batch"] == [RUNS * FILES]
    assert bench.stub.count("account") == 1


FAULTS = {
    "503": ("batch", Fault("refuse", "ServerBusy")),
    "429": ("batch", Fault("refuse", "TooManyRequests")),
    "500": ("batch", Fault("refuse", "InternalError")),
    "reset": ("batch", Fault("reset")),
    "done, then reset": ("batch", Fault("broken")),
    "half a reply": ("batch", Fault("half")),
    "answers left out": ("batch", Fault("omit")),
    "a lie": ("batch", Fault("lie")),
    "silence": ("batch", Fault("silent")),
    "a proxy's answer": ("batch", Fault("garbage")),
    "blobs that fail for now": ("batch", Fault("deny", "InternalError", "f1")),
    "blobs that are throttled": ("batch", Fault("deny", "ServerBusy", "f1")),
    "blobs that are leased": ("batch", Fault("deny", "LeaseIdMissing", "f1")),
    "listing 503": ("list", Fault("refuse", "ServerBusy")),
    "listing 500": ("list", Fault("refuse", "InternalError")),
    "listing reset": ("list", Fault("reset")),
    "half a listing": ("list", Fault("half")),
    "no listing": ("list", Fault("nothing_tells")),
    "a proxy's page": ("list", Fault("garbage")),
    "account 500": ("account", Fault("refuse", "InternalError")),
}


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
    if fault in ("done, then reset", "half a reply", "silence", "answers left out"):
        assert bench.left >= bench.live  # what was deleted may be known to be
    else:
        assert Result.SWEPT not in {each.result for each in told} or "blobs" in fault
    for each in told:
        assert each.result in (Result.SWEPT, Result.DEFERRED)
        assert each.result is Result.SWEPT or "box" in (each.error or "")

    bench.stub.always.clear()
    bench.store = bench.server.store()
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


def test_a_listing_that_never_ends_is_given_up(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("endless")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "never ends" in str(outcomes[0].error)


@pytest.mark.parametrize("how", ["deny", "shuffle"])
@pytest.mark.parametrize("code", ["AuthorizationPermissionMismatch", "BlobImmutableDueToPolicy"])
def test_a_blob_that_may_not_be_deleted_stops_only_its_own_tree(
    bench: Bench, how: str, code: str
) -> None:
    """Also where the answers are not in the order of the batch."""
    bench.stub.always["batch"] = Fault(how, code, "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    assert outcomes[3].result is (Result.LOCKED if "Immutable" in code else Result.STUCK)
    assert code in str(outcomes[3].error)
    assert "run3/artifacts/f1" in str(outcomes[3].error)
    assert bench.left - bench.live == {k for k in bench.trees[3] if "f1" in k}


@pytest.mark.parametrize(
    "code", ["InvalidInput", "AuthorizationPermissionMismatch", "InternalError"]
)
def test_a_blob_that_spoils_its_batch_stops_only_its_own_tree(bench: Bench, code: str) -> None:
    bench.stub.always["batch"] = Fault("poison", code, "run3/artifacts/f1")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    if code == "InvalidInput":  # alone each blob can be deleted
        assert bench.left == bench.live
        return
    assert outcomes[3].result is (Result.DEFERRED if code == "InternalError" else Result.STUCK)
    assert bench.left - bench.live == bench.trees[3]


@pytest.mark.parametrize(
    "code",
    ["NotImplemented", "BlobApiNotYetSupportedForHierarchicalNamespaceAccounts", "InvalidInput"],
)
def test_an_account_without_batches_is_asked_for_each_blob(bench: Bench, code: str) -> None:
    bench.stub.always["batch"] = Fault("refuse", code)
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live
    assert bench.stub.count("delete") == RUNS * FILES


def test_blobs_that_are_leased_one_by_one_do_not_open_the_breaker(bench: Bench) -> None:
    bench.stub.always["batch"] = Fault("refuse", "NotImplemented")
    bench.stub.always["delete"] = Fault("deny", "LeaseIdMissing", "run3/")
    outcomes = bench.run()
    assert [each.result for each in outcomes if each.entry.id != 3] == [Result.SWEPT] * 5
    assert outcomes[3].result is Result.DEFERRED
    assert "LeaseIdMissing" in str(outcomes[3].error)
    assert bench.left - bench.live == bench.trees[3]


def test_no_permission_to_list_is_no_empty_tree(bench: Bench) -> None:
    bench.stub.always["list"] = Fault("refuse", "AuthorizationPermissionMismatch")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.STUCK}
    assert "Storage Blob Data Reader" in str(outcomes[0].error)
    probe = bench.store.probe(ROOT, ())
    assert probe.is_there
    assert "AuthorizationPermissionMismatch" in str(probe.problem)


def test_credentials_that_are_refused_are_mended_without_a_retry_by_hand(bench: Bench) -> None:
    for operation in ("list", "batch", "account"):
        bench.stub.always[operation] = Fault("refuse", "AuthenticationFailed")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "AuthenticationFailed" in str(outcomes[0].error)
    assert "check the account key" in str(bench.server.store().probe(ROOT, ()).problem)


@pytest.mark.parametrize("code", ["AuthenticationFailed", "AuthorizationFailure"])
def test_credentials_of_one_container_are_enough(bench: Bench, code: str) -> None:
    """A SAS token of a container tells nothing of its account."""
    for operation in ("account", "service"):
        bench.stub.always[operation] = Fault("refuse", code)
    assert bench.store.probe(ROOT, ()).problem is None
    assert bench.results() == {Result.SWEPT}
    assert bench.left == bench.live


def test_a_container_that_is_not_there_is_no_empty_tree(bench: Bench) -> None:
    blobs = bench.stub.blobs.pop("box")
    assert bench.store.probe(ROOT, ()) == Probe(is_there=False)
    with pytest.raises(TransientArtifactError, match="ContainerNotFound"):
        bench.delete(1)
    bench.stub.blobs["box"] = blobs


@pytest.mark.parametrize("is_batch", [True, False])
def test_a_container_that_goes_between_listing_and_deletion_settles_nothing(
    bench: Bench, is_batch: bool
) -> None:
    bench.stub.always["batch"] = Fault("deny", "ContainerNotFound")
    if not is_batch:
        bench.stub.always["batch"] = Fault("refuse", "NotImplemented")
        bench.stub.always["delete"] = Fault("deny", "ContainerNotFound")
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "ContainerNotFound" in str(outcomes[0].error)


def test_an_account_that_is_not_there_is_told_and_soon_left_alone(bench: Bench) -> None:
    nobody = AzureServer(f"http://127.0.0.1:9/{ACCOUNT}", ACCOUNT, KEY)
    bench.store = nobody.store()
    began = time.monotonic()
    outcomes = bench.run()
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "does it answer?" in str(outcomes[0].error)
    assert time.monotonic() - began < 10
    problem = str(nobody.store().probe(ROOT, ()).problem)
    assert "Connection refused; is it Azure's Blob Storage, is the endpoint right" in problem


def test_a_certificate_that_is_not_trusted_is_one_clear_sentence(bench: Bench) -> None:
    url = bench.stub.url.replace("http:", "https:")
    problem = AzureServer(f"{url}/{ACCOUNT}", ACCOUNT, KEY).store().probe(ROOT, ()).problem
    assert problem is not None
    assert "REQUESTS_CA_BUNDLE names the certificates to trust" in problem
    assert len(problem) < 400


def test_another_container_of_that_name_is_not_touched(bench: Bench) -> None:
    root = Root(ROOT, Probe(is_there=True), remembered_identity="elsewhere/box")
    outcomes = bench.run(roots={ROOT: root})
    assert {each.result for each in outcomes} == {Result.DEFERRED}
    assert "another one" in str(outcomes[0].error)
    assert len(bench.left) == len(bench.live) + RUNS * FILES


def test_a_veto_keeps_its_tree_and_nothing_else(bench: Bench) -> None:
    outcomes = bench.run(veto=lambda entry: "live again" if entry.id == 2 else None)
    assert [each.result for each in outcomes if each.entry.id != 2] == [Result.SWEPT] * 5
    assert outcomes[2] == Outcome(entry(2), Result.PARKED, error="live again")
    assert bench.left == bench.live | bench.trees[2]


def test_what_the_store_says_is_deleted_is_looked_at(bench: Bench) -> None:
    bench.stub.always["batch"] = Fault("lie")
    with pytest.raises(TransientArtifactError, match="still listed"):
        bench.delete(1)


def test_a_name_outside_of_what_was_asked_for_is_never_deleted(bench: Bench) -> None:
    """A store that answers with other names than those below the prefix."""
    bucket = bench.store.bucket(ROOT)
    inner = bucket._page

    def astray(*arguments: object) -> object:
        page, marker = inner(*arguments)  # type: ignore[arg-type]
        for each in page:
            each.name = "root/1/live/artifacts/f"
        return page, marker

    bucket._page = astray  # type: ignore[method-assign, assignment]
    with pytest.raises(PermanentArtifactError, match="answers with the key"):
        bench.delete(1)
    assert bench.stub.count("batch") == 0


@pytest.mark.parametrize("how", ["refuse", "reset", "half", "garbage"])
def test_no_secret_is_in_an_error_or_a_log(
    bench: Bench, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gcd")
    secret = "c2lnbmF0dXJlLW9mLWEtU0FT"
    text = (
        f"BlobEndpoint={bench.stub.url}/{ACCOUNT};SharedAccessSignature=sv=2021-12-02&sig={secret}"
    )
    bench.store = AzureArtifactStore(Options(environment={"AZURE_STORAGE_CONNECTION_STRING": text}))
    for operation in ("list", "batch", "account"):
        bench.stub.always[operation] = Fault(how, "InternalError")
    outcomes = bench.run()
    said = f"{outcomes}{bench.store.probe(ROOT, ())}{list(bench.store.inspect(ROOT))}{caplog.text}"
    assert "box" in said
    assert secret not in said
    with pytest.raises(TransientArtifactError) as caught:
        bench.delete(1)
    assert secret not in "".join(map(str, chain_of(caught.value)))


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what a traceback of it would show."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
