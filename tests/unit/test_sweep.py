"""Each way an entry can go, many at once, and what a broken store may not do to its neighbours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import gcd.sweep
from gcd.artifacts.base import ArtifactStore, Deleted, Deletion, Order
from gcd.artifacts.local import LocalArtifactStore
from gcd.errors import (
    BackendError,
    ExtraMissing,
    LockedArtifactError,
    PermanentArtifactError,
    StoreUnreachable,
    TransientArtifactError,
    UnknownScheme,
    UnsafeTarget,
)
from gcd.model import (
    Entry,
    EntryState,
    Kind,
    Outcome,
    Place,
    Probe,
    Result,
    Root,
    Target,
    Usage,
)
from gcd.sweep import sweep
from gcd.testing import Fault, FaultyArtifactStore, MemoryArtifactStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Place("memory", "bucket", "root/")
OTHER = Place("memory", "other", "root/")


def entry(number: int, root: Place | None = ROOT) -> Entry:
    target = None
    if root is not None:
        path = f"{root.path}1/run{number}/artifacts/"
        target = Target(replace(root, path=path), root)
    return Entry(
        id=number,
        cycle=1,
        kind=Kind.RUN,
        entity_id=f"run{number}",
        experiment_id="1",
        target=target,
        state=EntryState.PENDING,
        attempts=0,
        purged_at=NOW,
        due_at=NOW,
    )


class Bench:
    """Stores in memory with a tree of two objects for every entry, and a sweep of them."""

    def __init__(self) -> None:
        self.memory = MemoryArtifactStore("bucket", "other", clock=lambda: NOW)
        self.store: ArtifactStore = self.memory
        self.opened: list[str] = []
        self.roots = {root: Root(root, Probe(is_there=True)) for root in (ROOT, OTHER)}
        self.veto: Callable[[Entry], str | None] = lambda entry: None

    def fill(self, *entries: Entry) -> list[Entry]:
        for one in entries:
            if one.target is not None:
                for key in ("a", "model/b"):
                    place = one.target.place
                    self.memory.put(place.authority, place.path + key, b"xyz")
        return list(entries)

    def faults(self, **faults: Iterable[Fault | None]) -> None:
        self.store = FaultyArtifactStore(self.memory, faults)

    def open_store(self, scheme: str) -> ArtifactStore:
        self.opened.append(scheme)
        return self.store

    def start(self, entries: list[Entry], **options: object) -> Iterator[Outcome]:
        arguments: dict[str, object] = {
            "open_store": self.open_store,
            "roots": self.roots,
            "veto": lambda entry: self.veto(entry),
            "now": NOW,
            "hands": 1,
        }
        return sweep(entries, **(arguments | options))  # type: ignore[arg-type]

    def run(self, entries: list[Entry], **options: object) -> list[Outcome]:
        return sorted(self.start(entries, **options), key=lambda outcome: outcome.entry.id)

    def one(self, **options: object) -> Outcome:
        (outcome,) = self.run(self.fill(entry(1)), **options)
        return outcome

    def left(self) -> Mapping[str, int]:
        return {name: len(self.memory.keys(name)) for name in ("bucket", "other")}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_tree_is_swept_and_told(bench: Bench) -> None:
    assert bench.one() == Outcome(entry(1), Result.SWEPT, Usage(2, 6), changed_at=NOW)
    assert bench.left()["bucket"] == 0
    assert bench.memory.flushed == [entry(1).target]


def test_a_missing_tree_is_swept(bench: Bench) -> None:
    assert bench.run([entry(1)]) == [Outcome(entry(1), Result.SWEPT)]


def test_an_entry_without_a_tree_is_swept_without_a_store(bench: Bench) -> None:
    bench.veto = lambda entry: "no matter"
    assert bench.run([entry(1, root=None)]) == [Outcome(entry(1, root=None), Result.SWEPT)]
    assert bench.opened == []


def test_no_entries_is_no_work(bench: Bench) -> None:
    assert bench.run([]) == []


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (TransientArtifactError("m", hint="h"), Result.DEFERRED),
        (PermanentArtifactError("m", hint="h"), Result.STUCK),
        (UnsafeTarget("m", hint="h"), Result.STUCK),
        (LockedArtifactError("m", hint="h"), Result.LOCKED),
        (BackendError("m", hint="h"), Result.DEFERRED),
        (UnknownScheme("m", hint="h"), Result.DEFERRED),
        (ExtraMissing("m", hint="h"), Result.DEFERRED),
        (StoreUnreachable("m", hint="h"), Result.DEFERRED),
    ],
)
def test_each_error_has_its_result(bench: Bench, error: Exception, result: Result) -> None:
    bench.faults(delete=[Fault(error)])
    assert bench.one() == Outcome(entry(1), result, error="m (h)")
    assert bench.memory.flushed == []
    assert bench.left()["bucket"] == 2


@pytest.mark.parametrize(
    ("until", "result"),
    [
        (NOW + timedelta(days=30), Result.LOCKED),
        (None, Result.LOCKED),
        (NOW - timedelta(seconds=1), Result.DEFERRED),
    ],
)
def test_a_lock_is_waited_for_unless_it_has_ended(
    bench: Bench, until: datetime | None, result: Result
) -> None:
    bench.faults(delete=[Fault(LockedArtifactError("retained", until=until))])
    outcome = bench.one()
    expected_until = until if result is Result.LOCKED else None
    assert (outcome.result, outcome.until) == (result, expected_until)


def test_what_nobody_expected_is_deferred_with_its_type(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    error = ZeroDivisionError("s3://user:secret@host/ went\nwrong " + "x" * 900)
    bench.faults(delete=[Fault(error)])
    outcome = bench.one()
    assert outcome.result is Result.DEFERRED
    assert outcome.error is not None
    assert outcome.error.startswith("ZeroDivisionError: ")
    assert "secret" not in outcome.error
    assert "\n" not in outcome.error
    assert len(outcome.error) == 500
    assert "run1 failed unexpectedly" in caplog.text


def test_a_scheme_without_a_backend_is_deferred_with_the_mend(bench: Bench) -> None:
    def open_store(scheme: str) -> ArtifactStore:
        raise ExtraMissing(f"{scheme} needs a library", hint="pip install gcd[memory]")

    outcome = bench.one(open_store=open_store)
    assert outcome.result is Result.DEFERRED
    assert outcome.error == "memory needs a library (pip install gcd[memory])"


def test_a_store_is_opened_once(bench: Bench) -> None:
    bench.run(bench.fill(*map(entry, range(20))), hands=4)
    assert bench.opened == ["memory"]


def test_nothing_is_deleted_below_a_root_that_nobody_knows(bench: Bench) -> None:
    del bench.roots[ROOT]
    outcome = bench.one()
    assert outcome.result is Result.DEFERRED
    assert bench.left()["bucket"] == 2


def test_a_remembered_identity_reaches_the_store(bench: Bench) -> None:
    bench.roots[ROOT] = replace(bench.roots[ROOT], remembered_identity="another")
    assert bench.one().result is Result.DEFERRED
    assert bench.left()["bucket"] == 2


# An experiment's folder -------------------------------------------------------------------------


def folder(number: int, root: Place = ROOT) -> Entry:
    """The entry of an experiment: its target is its folder, in which others may have files."""
    place = replace(root, path=f"{root.path}{number}/")
    return replace(
        entry(number, root),
        kind=Kind.EXPERIMENT,
        entity_id=str(number),
        experiment_id=str(number),
        target=Target(place, root),
    )


class Pruning(FaultyArtifactStore):
    """Notes what is pruned, and fails a test that deletes."""

    def __init__(self, inner: ArtifactStore, *faults: Fault | None) -> None:
        super().__init__(inner, {"prune": faults})
        self.pruned: list[Target] = []

    def prune(self, folder: Target) -> None:
        super().prune(folder)
        self.pruned.append(folder)

    def delete(self, target: Target, root: Root) -> Deleted:
        pytest.fail(f"deleted {target.place}")


def test_the_folder_of_an_experiment_is_pruned_and_nothing_in_it_deleted(bench: Bench) -> None:
    bench.store = store = Pruning(bench.memory)
    bench.memory.put("bucket", "root/1/live/artifacts/f", b"x")
    assert bench.run([folder(1)]) == [Outcome(folder(1), Result.SWEPT)]
    assert store.pruned == [folder(1).target]
    assert bench.left()["bucket"] == 1
    assert bench.memory.flushed == [folder(1).target]


@pytest.mark.parametrize("kind", [Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE])
def test_every_other_kind_is_deleted_and_not_pruned(bench: Bench, kind: Kind) -> None:
    bench.faults(prune=[Fault(AssertionError("pruned"))])
    (outcome,) = bench.run(bench.fill(replace(entry(1), kind=kind)))
    assert (outcome.result, outcome.usage) == (Result.SWEPT, Usage(2, 6))
    assert bench.left()["bucket"] == 0


def test_a_job_has_no_tree_to_sweep(bench: Bench) -> None:
    job = replace(entry(1, root=None), kind=Kind.JOB)
    assert bench.run([job]) == [Outcome(job, Result.SWEPT)]
    assert bench.opened == []


def test_a_folder_below_a_root_that_nobody_knows_is_not_pruned(bench: Bench) -> None:
    bench.store = store = Pruning(bench.memory)
    del bench.roots[ROOT]
    (outcome,) = bench.run([folder(1)])
    assert outcome.result is Result.DEFERRED
    assert store.pruned == []


def test_a_veto_keeps_a_folder(bench: Bench) -> None:
    bench.store = store = Pruning(bench.memory)
    bench.veto = lambda entry: "it is back"
    assert bench.run([folder(1)]) == [Outcome(folder(1), Result.PARKED, error="it is back")]
    assert store.pruned == []


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (TransientArtifactError("no"), Result.DEFERRED),
        (PermanentArtifactError("no"), Result.STUCK),
        (UnsafeTarget("no"), Result.STUCK),
        (OSError("no"), Result.DEFERRED),
    ],
)
def test_a_folder_that_cannot_be_pruned_has_its_result_and_stops_no_other(
    bench: Bench, error: Exception, result: Result
) -> None:
    bench.store = store = Pruning(bench.memory, Fault(error), None)
    first, second = bench.run([folder(1), folder(2)])
    assert first.result is result
    assert "no" in str(first.error)
    assert second.result is Result.SWEPT
    assert store.pruned == [folder(2).target]


def test_real_folders_of_experiments_go_only_where_they_are_empty(tmp_path: Path) -> None:
    root = Place("file", "", f"{tmp_path}/")
    (tmp_path / "1/models").mkdir(parents=True)
    (tmp_path / "2/live").mkdir(parents=True)
    (tmp_path / "2/live/f").write_bytes(b"x")
    store = LocalArtifactStore()
    roots = {root: Root(root, store.probe(root, ()))}
    entries = [folder(number, root) for number in (1, 2, 3)]
    outcomes = list(
        sweep(
            entries,
            open_store=lambda scheme: store,
            roots=roots,
            veto=lambda entry: None,
            now=NOW,
            hands=2,
        )
    )
    assert {outcome.result for outcome in outcomes} == {Result.SWEPT}
    assert sum((outcome.usage for outcome in outcomes), Usage()) == Usage()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "2",
        "2/live",
        "2/live/f",
    }


# The veto ---------------------------------------------------------------------------------------


def test_a_veto_parks_and_keeps_every_byte(bench: Bench) -> None:
    bench.veto = lambda entry: "live again" if entry.id == 1 else None
    first, second = bench.run(bench.fill(entry(1), entry(2)))
    assert first == Outcome(entry(1), Result.PARKED, error="live again")
    assert second.result is Result.SWEPT
    assert bench.left()["bucket"] == 2


def test_a_veto_that_cannot_be_asked_defers(bench: Bench) -> None:
    def veto(entry: Entry) -> str | None:
        raise StoreUnreachable("the database does not answer")

    bench.veto = veto
    outcomes = bench.run(bench.fill(*map(entry, range(5))))
    assert {outcome.error for outcome in outcomes} == {"the database does not answer"}
    assert bench.left()["bucket"] == 10


def test_the_veto_is_asked_in_the_hand_right_before_its_deletion(bench: Bench) -> None:
    said: list[tuple[str, str, int]] = []

    class Telling(FaultyArtifactStore):
        def delete(self, target: Target, root: Root) -> Deleted:
            said.append(("delete", target.place.path.split("/")[2], threading.get_ident()))
            return super().delete(target, root)

    def veto(entry: Entry) -> str | None:
        said.append(("veto", entry.entity_id, threading.get_ident()))
        return None

    bench.store, bench.veto = Telling(bench.memory), veto
    bench.run(bench.fill(*map(entry, range(30))), hands=4)
    assert threading.get_ident() not in {hand for _, _, hand in said}
    for hand in {hand for _, _, hand in said}:
        own = [(what, name) for what, name, by in said if by == hand]
        assert own[0::2] == [("veto", name) for _, name in own[1::2]]
        assert {what for what, _ in own[1::2]} == {"delete"}


# One bad item -----------------------------------------------------------------------------------


def test_one_bad_entry_stops_only_itself(bench: Bench) -> None:
    bench.faults(delete=[None, Fault(PermanentArtifactError("no")), Fault(OSError("?")), None])
    outcomes = bench.run(bench.fill(*map(entry, range(10))))
    results = [outcome.result for outcome in outcomes]
    assert results == [
        Result.SWEPT,
        Result.STUCK,
        Result.DEFERRED,
        *[Result.SWEPT] * 7,
    ]


def test_a_root_that_fails_in_a_row_is_left_alone_and_others_go_on(bench: Bench) -> None:
    bench.faults(delete=[Fault(TransientArtifactError(f"time-out {n}")) for n in range(3)])
    here = bench.fill(*map(entry, range(8)))
    there = bench.fill(*(entry(number, OTHER) for number in range(8, 12)))
    outcomes = bench.run([*here, *there], breaker=3)
    assert [outcome.result for outcome in outcomes] == [Result.DEFERRED] * 8 + [Result.SWEPT] * 4
    assert outcomes[2].error == "time-out 2"
    assert outcomes[3].error is not None
    assert outcomes[3].error.startswith("not tried: 3 sweeps")
    assert outcomes[7].error is not None
    assert outcomes[7].error.endswith("because: time-out 2")
    assert bench.left() == {"bucket": 16, "other": 0}


def test_a_success_between_failures_keeps_a_root_open(bench: Bench) -> None:
    slow = Fault(TransientArtifactError("slow down"))
    bench.faults(delete=[slow, slow, None, slow, slow, None])
    results = [outcome.result for outcome in bench.run(bench.fill(*map(entry, range(8))))]
    assert results.count(Result.SWEPT) == 4


def test_trees_that_need_a_person_do_not_close_their_root(bench: Bench) -> None:
    bench.faults(delete=[Fault(PermanentArtifactError("no"))] * 5)
    results = [outcome.result for outcome in bench.run(bench.fill(*map(entry, range(8))))]
    assert results == [Result.STUCK] * 5 + [Result.SWEPT] * 3


def test_a_deletion_that_broke_off_is_finished_the_next_time(bench: Bench) -> None:
    bench.faults(delete=[Fault(ConnectionError("reset"), part="model/")])
    assert bench.one().result is Result.DEFERRED
    assert bench.left()["bucket"] == 1
    (again,) = bench.run([entry(1)])
    assert (again.result, again.usage) == (Result.SWEPT, Usage(1, 3))


# Durability and closing -------------------------------------------------------------------------


def test_nothing_is_yielded_before_its_flush(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcd.sweep, "GROUP", 3)
    entries = bench.fill(*map(entry, range(10)))
    for count, outcome in enumerate(bench.start(entries, hands=2), start=1):
        assert outcome.entry.target in bench.memory.flushed
        assert len(bench.memory.flushed) <= -(-count // 3) * 3
    assert len(bench.memory.flushed) == 10


@pytest.mark.parametrize("error", [TransientArtifactError("EIO"), OSError("EIO")])
def test_what_is_not_durable_is_deferred(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(gcd.sweep, "GROUP", 3)
    bench.faults(flush=[Fault(error)], delete=[Fault(PermanentArtifactError("no"))])
    entries = bench.fill(*map(entry, range(5)), entry(5, None))
    outcomes = bench.run(entries)
    results = [outcome.result for outcome in outcomes]
    assert results.count(Result.STUCK) == 1
    assert results.count(Result.DEFERRED) == 2
    assert results.count(Result.SWEPT) == 3
    deferred = [outcome for outcome in outcomes if outcome.result is Result.DEFERRED]
    assert all("perhaps not durably" in str(outcome.error) for outcome in deferred)
    assert all(outcome.usage == Usage(2, 6) for outcome in deferred)


class Gate:
    """A store that says when a deletion began and lets it end when it is told to."""

    def __init__(self, inner: ArtifactStore) -> None:
        self.inner = inner
        self.begun, self.ended, self.go = threading.Semaphore(0), 0, threading.Semaphore(0)
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def delete(self, target: Target, root: Root) -> Deleted:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.begun.release()
        self.go.acquire()
        deleted = self.inner.delete(target, root)
        with self.lock:
            self.at_once -= 1
            self.ended += 1
        return deleted

    def flush(self, targets: Iterable[Target]) -> None:
        self.inner.flush(targets)


def test_as_many_at_once_as_there_are_hands(bench: Bench) -> None:
    gate = Gate(bench.memory)
    bench.store = gate  # type: ignore[assignment]
    entries = bench.fill(*map(entry, range(40)))
    found: list[Outcome] = []
    sweeping = threading.Thread(target=lambda: found.extend(bench.start(entries, hands=8)))
    sweeping.start()
    for _ in range(8):
        assert gate.begun.acquire(timeout=10)
    assert not gate.begun.acquire(timeout=0.05)
    gate.go.release(40)
    sweeping.join(timeout=10)
    assert gate.most == 8
    assert {outcome.entry.id for outcome in found} == set(range(40))


def test_closing_early_waits_for_the_hands_and_starts_nothing_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcd.sweep, "GROUP", 1)
    gate = Gate(bench.memory)
    bench.store = gate  # type: ignore[assignment]
    gate.go.release(1)
    sweeping = bench.start(bench.fill(*map(entry, range(50))), hands=2)
    assert next(sweeping).result is Result.SWEPT
    for _ in range(3):
        assert gate.begun.acquire(timeout=10)
    threading.Timer(0.1, gate.go.release, [50]).start()
    sweeping.close()  # type: ignore[attr-defined]
    ended = gate.ended
    assert ended >= 3
    assert gate.at_once == 0
    assert not [one for one in threading.enumerate() if one.name.startswith("sweep")]
    bench.store = bench.memory
    again = bench.run([entry(number) for number in range(50)])
    assert {outcome.result for outcome in again} == {Result.SWEPT}
    assert sum(outcome.usage.objects for outcome in again) == 2 * (50 - ended)


def test_an_interrupted_consumer_leaves_no_hand_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcd.sweep, "GROUP", 1)

    def consume() -> None:
        for _ in bench.start(bench.fill(*map(entry, range(50))), hands=4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not [one for one in threading.enumerate() if one.name.startswith("sweep")]


def test_real_trees_with_many_hands(tmp_path: Path) -> None:
    root = Place("file", "", f"{tmp_path}/")
    entries = [entry(number, root) for number in range(450)]
    for one in entries:
        assert one.target is not None
        folder = Path(one.target.place.path)
        folder.mkdir(parents=True)
        (folder / "f").write_bytes(b"x")
    (tmp_path / "1/live").mkdir()
    store = LocalArtifactStore()
    probe = store.probe(root, ())
    roots = {root: Root(root, probe, remembered_identity=probe.identity)}
    outcomes = list(
        sweep(
            entries,
            open_store=lambda scheme: store,
            roots=roots,
            veto=lambda entry: "held" if entry.id == 7 else None,
            now=NOW,
            hands=8,
        )
    )
    assert {outcome.entry.id for outcome in outcomes} == set(range(450))
    assert sum((outcome.usage for outcome in outcomes), Usage()) == Usage(449, 449)
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"live", "run7"}


# Many with one request --------------------------------------------------------------------------


class Together(MemoryArtifactStore):
    """A store that takes many trees at once, and notes how many."""

    def __init__(self) -> None:
        super().__init__("bucket", "other", clock=lambda: NOW)
        self.taken: list[int] = []
        self.error: Exception | None = None
        self.forgets = False

    def delete_many(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        found = list(orders)
        self.taken.append(len(found))
        for number, order in enumerate(found):
            if self.error is not None and number == 2:
                raise self.error
            if self.forgets and number == 2:
                continue
            result: Deleted | Exception
            try:
                order.permit()
                result = self.delete(order.target, order.root)
            except Exception as error:
                result = error
            yield Deletion(order, result)


@pytest.fixture
def together(bench: Bench) -> Together:
    bench.store = bench.memory = store = Together()
    return store


def test_trees_are_handed_over_together(bench: Bench, together: Together) -> None:
    entries = bench.fill(*map(entry, range(5)))
    jobs = [entry(5, root=None), folder(6)]
    outcomes = bench.run([*entries, *jobs])
    assert {outcome.result for outcome in outcomes} == {Result.SWEPT}
    assert outcomes[0] == Outcome(entry(0), Result.SWEPT, Usage(2, 6), changed_at=NOW)
    assert together.taken == [5]
    assert len(together.flushed) == 6
    assert bench.left()["bucket"] == 0


def test_each_of_them_has_its_veto_and_its_root(bench: Bench, together: Together) -> None:
    def veto(entry: Entry) -> str | None:
        if entry.id == 3:
            raise StoreUnreachable("no database")
        return "live again" if entry.id == 2 else None

    bench.veto = veto
    del bench.roots[OTHER]
    entries = bench.fill(*map(entry, range(1, 5)), entry(9, OTHER))
    one, two, three, four, nine = bench.run(entries)
    assert (one.result, four.result) == (Result.SWEPT, Result.SWEPT)
    assert two == Outcome(entry(2), Result.PARKED, error="live again")
    assert three == Outcome(entry(3), Result.DEFERRED, error="no database")
    assert nine.result is Result.DEFERRED
    assert "nothing is known" in str(nine.error)
    assert bench.left() == {"bucket": 4, "other": 2}


@pytest.mark.parametrize("error", [PermanentArtifactError("no"), TransientArtifactError("no")])
def test_what_a_store_raises_or_forgets_is_no_entrys_success(
    bench: Bench, together: Together, error: Exception
) -> None:
    together.error = error
    outcomes = bench.run(bench.fill(*map(entry, range(5))))
    failed = Result.STUCK if isinstance(error, PermanentArtifactError) else Result.DEFERRED
    assert [each.result for each in outcomes] == [Result.SWEPT] * 2 + [failed] * 3
    together.error, together.forgets = None, True
    outcomes = bench.run(bench.fill(*map(entry, range(5))))
    assert [each.result for each in outcomes].count(Result.SWEPT) == 4
    assert "did not tell" in str(outcomes[2].error)


def test_vetoes_that_fail_do_not_close_a_root(bench: Bench, together: Together) -> None:
    def veto(entry: Entry) -> str | None:
        raise TransientArtifactError("the lease could not be renewed in time")

    bench.veto = veto
    bench.run(bench.fill(*map(entry, range(5))))
    assert together.taken == [5]
    assert bench.left()["bucket"] == 10
