"""MLflow's client acting at every instant of a cycle: nothing that is live then loses a byte or a row."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from mlflow import MlflowException

from tests.mlflow_store import RealStore
from tests.pauser import Instant, Plan, count_instants, paused
from tests.program import gcd, shown, start
from tests.snapshot import Snapshot
from tests.whole import (
    attach,
    backdate,
    inside,
    leftovers,
    missing,
    there,
    trace,
    undeleted,
)

EXPERIMENTS = 16
ROUNDS = 3
CYCLE = ("gc", "--older-than", "1h", "--yes")
SMALL = {"GCD_PURGE__BATCH_RUNS": "3"}
PATIENCE = 0.7
"""Seconds that an action may take while gcd stands still: then it waits for gcd, and gcd goes on."""


@dataclass
class Case:
    """A deleted experiment with two runs, a model and a trace, and what somebody did to it."""

    experiment: str
    run: str
    model: str
    ids: set[str]
    did: str = ""
    at: Instant | None = None
    is_acknowledged: bool = False
    told: str = ""
    new: str | None = None
    """A trace that was logged."""
    seen: set[str] = field(default_factory=set)
    """What of it was there when MLflow, or gcd, said yes."""

    def __str__(self) -> str:
        return f"{self.did} on experiment {self.experiment}, {self.at}: {self.told or 'yes'}"


def make(store: RealStore, number: int) -> Case:
    """One more experiment."""
    experiment = store.experiment(f"e{number}")
    run, other = (
        store.run(experiment, metrics=1, files={"f": b"f", "model/w": b"w" * 9}) for _ in range(2)
    )
    model = store.logged_model(run, "m")
    traced = trace(store, experiment)
    attach(store, traced)
    store.client.create_registered_model(f"r{experiment}")
    return Case(experiment, run, model, {experiment, run, other, model, traced})


# -- actions -----------------------------------------------------------------------------------------


def restore(store: RealStore, case: Case) -> None:
    """Restore the experiment."""
    store.client.restore_experiment(case.experiment)


def register_run(store: RealStore, case: Case) -> None:
    """Make a version of the run's model."""
    store.version(f"r{case.experiment}", f"runs:/{case.run}/model", case.run)


def register_model(store: RealStore, case: Case) -> None:
    """Make a version of the logged model."""
    store.version(f"r{case.experiment}", f"models:/{case.model}", model=case.model)


def log_trace(store: RealStore, case: Case) -> None:
    """Log a trace into the experiment, with a payload."""
    before = inside(store.database, case.experiment)
    made = trace(store, case.experiment)
    if made not in there(store.database):  # MLflow logs what it could not write, and goes on
        raise MlflowException(f"not written; {len(before)} parts were there")
    attach(store, made)
    case.new = made


def hold(store: RealStore, case: Case) -> None:
    """Hold the experiment by gcd."""
    add_hold(store, case.experiment)


def hold_run(store: RealStore, case: Case) -> None:
    """Hold the run alone."""
    add_hold(store, case.run)


def add_hold(store: RealStore, entity: str) -> None:
    """`gcd hold add`; raises MlflowException where it says that it is too late."""
    process = start("hold", "add", entity, "--backend-store-uri", store.uri)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (0, 1), err
    if process.returncode:
        assert "already collected, by cycle 1" in err, err
        raise MlflowException(err.strip())


ACTIONS: Sequence[Callable[[RealStore, Case], None]] = (
    hold_run,
    restore,
    register_run,
    log_trace,
    hold,
    register_model,
)


def act(store: RealStore, case: Case, action: Callable[[RealStore, Case], None]) -> None:
    """Do it, and note what was there when it was acknowledged."""
    try:
        action(store, case)
    except (MlflowException, sa.exc.SQLAlchemyError) as error:
        case.told = f"{type(error).__name__}: {str(error)[:200]}"
        return
    case.seen = case.ids & there(store.database)
    case.is_acknowledged = True


# -- the test ----------------------------------------------------------------------------------------


def test_nothing_that_becomes_live_at_any_instant_loses_anything(
    store: RealStore, tmp_path: Path
) -> None:
    cases = [make(store, number) for number in range(EXPERIMENTS)]
    for case in cases:
        store.client.delete_experiment(case.experiment)
    backdate(store)
    collectable = gcd("plan", "--older-than", "1h", uri=store.uri)
    assert f"{EXPERIMENTS} experiments" in collectable.stdout, shown(collectable)
    saved = store.save()
    total = count_instants(tmp_path / "count", *CYCLE, uri=store.uri, env=SMALL)
    assert there(store.database) == {"0"}
    done = Counter[str]()
    for number in range(ROUNDS):
        store.again(saved)
        fresh = [Case(c.experiment, c.run, c.model, c.ids) for c in cases]
        done += one_round(store, tmp_path / "told", fresh, spread(total, number), number)
    for action in ACTIONS:
        assert done[f"{action.__name__} yes"] > 0, done


def spread(total: int, number: int) -> tuple[int, ...]:
    """Instants evenly over a cycle, others in each round."""
    step = total / EXPERIMENTS
    return tuple(1 + int(step * (n + (number + 0.5) / ROUNDS)) for n in range(EXPERIMENTS))


def one_round(
    store: RealStore, path: Path, cases: list[Case], instants: tuple[int, ...], number: int
) -> Counter[str]:
    """A cycle with an action at each instant, then a second one; how often each was acknowledged."""
    before = Snapshot.of(store.database, store.root)
    acting: threading.Thread | None = None
    free = list(cases)
    with paused(Plan(str(path), instants), *CYCLE, uri=store.uri, env=SMALL) as gc:
        for instant in gc.instants():
            if acting is not None:
                acting.join(PATIENCE)
                if acting.is_alive():
                    continue  # it still waits for gcd; MLflow's client knows one store at a time
            turn = len(cases) - len(free) + 2 * number
            action = ACTIONS[turn % len(ACTIONS)]
            # Most often what gcd has in hand, else what its turn has not come for.
            case = free[-1] if (turn // len(ACTIONS)) % 3 == number % 3 else likely(free, instant)
            free.remove(case)
            case.did, case.at = action.__name__, instant
            acting = threading.Thread(target=act, args=(store, case, action))
            acting.start()
            acting.join(3 if action in (hold, hold_run) else PATIENCE)
        done = gc.ended()
    if acting is not None:
        acting.join(120)
    assert done.returncode == 0, shown(done)
    check(store, before, cases)

    again = gcd(*CYCLE, uri=store.uri)

    assert again.returncode == 0, shown(again)
    check(store, before, cases)
    return Counter(
        f"{case.did} {'yes' if case.is_acknowledged else 'no'}" for case in cases if case.did
    )


def likely(free: list[Case], instant: Instant) -> Case:
    """The experiment that the instant is about, if nobody did anything to it yet."""
    for case in free:
        known = {*case.ids, f"experiment {case.experiment}"}
        if known.intersection(instant.words):
            return case
    return free[len(free) // 2]


def check(store: RealStore, before: Snapshot, cases: list[Case]) -> None:
    """What was live when somebody was told so is whole; all else is whole, or gone without a trace."""
    everything = [case.experiment for case in cases]
    left = there(store.database)
    after = Snapshot.of(store.database, store.root)
    for case in cases:
        if case.is_acknowledged:
            assert kept(case) <= left, f"{case}: lost {kept(case) - left}"
            assert files_of(before, case.seen & registered(case)) <= files_of(after), str(case)
        if case.new:
            assert {case.new, case.experiment} <= left, str(case)
            assert any(case.new in Path(name).parts for name in after.files), str(case)
    gone = before.gone(everything) - left
    purged = gone & {each for case in cases for each in case.ids}
    expected = undeleted(before.without(purged), *everything)
    found = undeleted(after, *everything)
    for snapshot in (expected, found):  # a new version is news of its registered model
        for row in snapshot.tables["registered_models"]:
            row["last_updated_time"] = None
    assert missing(expected, found) == []
    spared = {each for case in cases for each in registered(case)}
    rows = {name: rows for name, rows in after.tables.items() if name != "model_versions"}
    files = {n: w for n, w in after.files.items() if not set(Path(n).parts) & spared}
    assert leftovers(Snapshot(rows, files), purged) == []


def kept(case: Case) -> set[str]:
    """The ids that have to be there still."""
    match case.did:
        case "restore" | "hold":
            return case.seen
        case "hold_run":
            return case.seen & {case.run}
        case "register_run" | "register_model":
            return case.seen & registered(case)
    return {case.experiment, case.new or case.experiment}


def registered(case: Case) -> set[str]:
    """What the new version refers to: that of a model names the run that made it too."""
    named = {"register_run": {case.run}, "register_model": {case.run, case.model}}
    return named.get(case.did, set())


def files_of(snapshot: Snapshot, ids: set[str] | None = None) -> set[tuple[str, str]]:
    """Files with what is in them; those below the folders of these entities."""
    return {
        (name, what)
        for name, what in snapshot.files.items()
        if what != "folder" and (ids is None or set(Path(name).parts) & ids)
    }
