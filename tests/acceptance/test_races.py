"""Restores by MLflow's client racing two collectors: no acknowledged restore loses anything."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowException

from tests.mlflow_store import RealStore
from tests.program import collect, shown
from tests.snapshot import canonical

CLIENTS = 3
COLLECTORS = 2
POOL = 6
TABLES = ("metrics", "latest_metrics", "params", "tags")
ENOUGH = {"restore_run": 10, "gone": 3, "exit 0": 3}
"""How often each thing must have happened for a race to mean something."""
PATIENCE = 300.0
"""Seconds after which a race ends although too little happened: a slow machine needs them."""


@dataclass
class Known:
    """A run, what belongs to it, and what its owner was last told."""

    run: str
    rows: dict[str, list[str]]
    tree: Path
    files: dict[str, bytes]
    is_live: bool = True
    """The last thing acknowledged: it is active, and nobody asked to delete it since."""
    is_gone: bool = False


@dataclass
class Race:
    """Everything that happens in one race."""

    store: RealStore
    experiment: str
    until: float
    """When it ends, by the monotonic clock, if enough has happened by then."""
    enough: Mapping[str, int] = field(default_factory=lambda: ENOUGH)
    pauses: tuple[float, ...] = (0, 0.01, 0.1, 0.5)
    """Seconds between the deletion of a run and its restoration."""
    runs: list[Known] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def is_over(self) -> bool:
        """Its time is over and enough has happened, or something went wrong, or nothing helps."""
        late = time.monotonic() - self.until
        return bool(self.problems) or late > PATIENCE or (late > 0 and self.has_enough())

    def has_enough(self) -> bool:
        """Whether each thing happened often enough."""
        return all(self.done[name] >= count for name, count in self.enough.items())

    def client(self, seed: int) -> None:
        """Delete and restore the runs of a pool of one's own, and look at what came back."""
        chance = random.Random(seed)
        pool: list[Known] = []
        try:
            while not self.is_over():
                pool = [known for known in pool if not known.is_gone]
                while len(pool) < POOL:
                    pool.append(self.new_run(chance))
                self.flip(chance.choice(pool), chance)
        except Exception as error:
            self.problems.append(f"client: {type(error).__name__}: {error}")

    def new_run(self, chance: random.Random) -> Known:
        """A run of known content."""
        files = {f"d{n % 2}/f{n}": chance.randbytes(50) for n in range(4)}
        run = self.store.run(self.experiment, metrics=3, files=files)
        known = Known(run, self.rows(run), self.store.tree(run), files)
        self.runs.append(known)
        return known

    def flip(self, known: Known, chance: random.Random) -> None:
        """Delete the run, wait up to a cycle's time, restore it."""
        if known.is_live:
            known.is_live = False
            if not self.acknowledged("delete_run", known):
                return
        time.sleep(chance.choice(self.pauses))
        if self.acknowledged("restore_run", known):
            known.is_live = True
            self.check(known, "just restored")

    def acknowledged(self, call: str, known: Known) -> bool:
        """Whether MLflow said yes. A run that it no longer knows is gone; a busy database is a no."""
        try:
            getattr(self.store.client, call)(known.run)
        except MlflowException as error:
            if "not found" in str(error):
                known.is_gone = True
                self.done["gone"] += 1
                if call == "delete_run":
                    self.problems.append(f"{known.run} vanished while it was live")
            else:
                self.done["busy"] += 1
            return False
        self.done[call] += 1
        return True

    def collector(self) -> None:
        """One cycle after the other."""
        while not self.is_over():
            done = collect(self.store.uri, expect=None, env={"GCD_PURGE__BATCH_RUNS": "3"})
            self.done[f"exit {done.returncode}"] += 1
            if done.returncode not in (0, 11) or "Traceback" in done.stderr:
                self.problems.append(shown(done))

    def rows(self, run: str) -> dict[str, list[str]]:
        """The run's rows in the tables that hold its data."""
        with self.store.database.begin() as conn:
            found = {}
            for table in TABLES:
                query = f"SELECT * FROM {table} WHERE run_uuid = '{run}'"
                found[table] = sorted(
                    canonical(dict(row)) for row in conn.exec_driver_sql(query).mappings()
                )
            return found

    def check(self, known: Known, when: str) -> None:
        """Every row and every byte is there."""
        rows = self.rows(known.run)
        self.problems += [
            f"{known.run} {when}: rows of {t} differ" for t in TABLES if rows[t] != known.rows[t]
        ]
        for name, content in known.files.items():
            path = known.tree / name
            if not path.is_file() or path.read_bytes() != content:
                self.problems.append(f"{known.run} {when}: {name} is lost")

    def check_all(self) -> None:
        """At the end each run is there whole, or gone without a trace and not restored before."""
        there = self.store.runs()
        for known in self.runs:
            if known.is_live and known.run not in there:
                self.problems.append(f"{known.run} was restored last, and is gone")
            elif known.run in there:
                self.check(known, "at the end")
            else:
                self.check_gone(known)

    def check_gone(self, known: Known) -> None:
        """Not a row and not a byte is there."""
        left = [table for table, rows in self.rows(known.run).items() if rows]
        self.problems += [f"{known.run} is gone, but rows of {table} remain" for table in left]
        if os.path.lexists(known.tree.parent):
            self.problems.append(f"{known.run} is gone, but its folder remains")


def race(store: RealStore, seconds: float) -> Race:
    """Let clients and collectors loose on the store for so long, then look at every run."""
    found = Race(store, store.experiment("e"), time.monotonic() + seconds)
    store.run(found.experiment)
    seed = random.randrange(10**6)
    threads = [threading.Thread(target=found.client, args=(seed + n,)) for n in range(CLIENTS)]
    threads += [threading.Thread(target=found.collector) for _ in range(COLLECTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collect(store.uri)
    found.check_all()
    return found


def test_no_acknowledged_restore_loses_anything(store: RealStore) -> None:
    settle(race(store, 12))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_acknowledged_restore_loses_anything_for_minutes(store: RealStore) -> None:
    settle(race(store, 240))


def settle(found: Race) -> None:
    """Nothing went wrong, and enough went on for that to mean something."""
    assert found.problems == []
    assert found.has_enough(), found.done
