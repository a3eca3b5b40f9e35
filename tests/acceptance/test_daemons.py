"""Several daemons over one store, whose leader is killed and stopped again and again; and one for long."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from gcd import clock
from gcd.config import load_config
from gcd.daemon.duties import duties
from gcd.daemon.metrics import Metrics
from gcd.daemon.pulse import Pulse
from gcd.daemon.turn import Call
from gcd.daemon.work import Worker
from gcd.model import Kind
from gcd.store import read
from tests.acceptance.test_races import CLIENTS, PATIENCE, Race
from tests.daemon import (
    Running,
    cycles,
    daemon,
    descriptors,
    free_port,
    own_tables,
    purged,
    settings,
    write,
)
from tests.mlflow_store import RealStore
from tests.program import collect, gcd
from tests.stopper import Moment, state

SHORT = Moment(
    "never",
    seconds={
        "gcd.store.lease:TERM": 4,
        "gcd.store.lease:RENEWAL": 1,
        "gcd.store.lease:MARGIN": 1,
        "gcd.store.connection:IDLE_IN_TRANSACTION": 2,
        "gcd.daemon.turn:LOOK_AGAIN": 0.5,
        "gcd.daemon.work:LOOK_AGAIN": 0.5,
    },
)
"""A lease whose end need not be waited for long; what must be shorter than it is, still."""
STOPPED = 5.0
"""Seconds that a leader stands still: longer than its lease."""
LEADER = 'gcd_leader{store="a"}'
ENOUGH = {"restore_run": 10, "gone": 3}
"""How often clients must have been told so."""
WANTED = {"killed": 1, "stopped": 1, "led": 1}
"""How often each must have befallen the daemons."""


@dataclass
class Crowd:
    """Daemons over one store, and what befalls them."""

    store: RealStore
    folder: Path
    count: int
    stack: ExitStack
    running: dict[int, Running] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    made: int = 0

    def has_enough(self, wanted: Mapping[str, int]) -> bool:
        """Whether each thing happened often enough."""
        return all(self.done[name] >= count for name, count in wanted.items())

    def start(self) -> Running:
        """One more daemon."""
        self.made += 1
        wanted = settings(self.store, listen=f"127.0.0.1:{free_port()}") | {
            "purge": {"batch_runs": 2}
        }
        name = f"daemon-{self.made}"
        found = self.stack.enter_context(daemon(self.folder, wanted, SHORT, name=name))
        self.running[found.process.pid] = found
        return found

    def holder(self) -> tuple[int | None, int]:
        """Who holds the lease, by its process id, and the lease's epoch."""
        if not own_tables(self.store.database):
            return None, 0
        rows = self.store.database.rows("SELECT holder, epoch FROM alembic_gcd_lease")
        if not rows:
            return None, 0
        found = re.search(r" pid (\d+) ", str(rows[0][0]))
        return int(found[1]) if found else None, int(str(rows[0][1]))

    def leader(self, until: float) -> Running | None:
        """The daemon that holds the lease, once one does."""
        while time.monotonic() < until:
            pid, _ = self.holder()
            if pid in self.running:
                return self.running[pid]
            time.sleep(0.01)
        return None

    def harass(self, until: float, wanted: Mapping[str, int]) -> None:
        """Kill a leader and start another daemon; stop one, and let it wake up to a successor."""
        try:
            turn, end = 0, until + PATIENCE
            while time.monotonic() < (until if self.has_enough(wanted) else end):
                self.look(1.5)
                leader = self.leader(end)
                if leader is None:
                    return
                turn += 1
                if turn % 2:
                    self.kill(leader)
                else:
                    self.suspend(leader)
        except Exception as error:
            self.problems.append(f"harasser: {type(error).__name__}: {error}")

    def kill(self, leader: Running) -> None:
        """SIGKILL; another daemon takes its place."""
        del self.running[leader.process.pid]
        leader.kill()
        self.done["killed"] += 1
        self.done["killed at work"] += self.holder()[0] == leader.process.pid
        self.start()

    def suspend(self, leader: Running) -> None:
        """SIGSTOP for longer than the lease lives."""
        leader.signal(signal.SIGSTOP)
        while state(leader.process) != "T":
            time.sleep(0.01)
        pid, epoch = self.holder()
        is_at_work = pid == leader.process.pid
        time.sleep(STOPPED)
        is_succeeded = self.holder()[1] != epoch
        leader.signal(signal.SIGCONT)
        self.done["stopped"] += 1
        self.done["stopped at work"] += is_at_work
        self.done["succeeded"] += is_at_work and is_succeeded
        if is_at_work and not is_succeeded:
            self.problems.append("nobody succeeded a leader that stood still")
        time.sleep(1)  # it finds out

    def look(self, seconds: float) -> None:
        """Nobody but the holder of the lease calls itself the leader."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            holder, epoch = self.holder()
            leaders = []
            for pid, each in self.running.items():
                if each.manager.heard("READY=1") and each.scrape().get(LEADER) == 1:
                    leaders.append(pid)
            if leaders and holder is not None and self.holder() == (holder, epoch):
                self.done["led"] += 1
                if leaders != [holder]:
                    self.problems.append(f"{leaders} lead, {holder} holds the lease")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop them all."""
        for each in self.running.values():
            code = each.stop(60)
            if code != 0 or "Traceback" in each.log.read_text():
                self.problems.append(f"exit {code}: {each.log.read_text()[-3000:]}")


def contend(
    store: RealStore,
    folder: Path,
    daemons: int,
    seconds: float,
    wanted: Mapping[str, int] = WANTED,
) -> tuple[Crowd, Race]:
    """Let clients and daemons loose on a store, then look at every run, and at the journal.

    It takes `seconds`, and longer until what is `wanted` has befallen the daemons.
    """
    with ExitStack() as stack:
        crowd = Crowd(store, folder, daemons, stack)
        for _ in range(daemons):
            crowd.start().ready()
        until = time.monotonic() + seconds
        race = Race(store, store.experiment("e"), until, ENOUGH, pauses=(0, 0.1, 0.5, 1, 2))
        store.run(race.experiment)
        seed = random.randrange(10**6)
        threads = [threading.Thread(target=race.client, args=(seed + n,)) for n in range(CLIENTS)]
        threads.append(threading.Thread(target=crowd.harass, args=(until, wanted)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        crowd.stop()
    collect(store.uri)
    race.check_all()
    crowd.problems += journal_problems(store, {each.run for each in race.runs} - store.runs())
    return crowd, race


def journal_problems(store: RealStore, gone: set[str]) -> list[str]:
    """What is wrong with the history: each run went once, in one cycle, and no two cycles overlap."""
    entries = purged(store)
    problems = [f"{run} was purged {n} times" for run, n in entries.items() if n != 1]
    problems += [f"{run} is gone, and the journal knows nothing" for run in gone - entries.keys()]
    problems += [f"{run} is there, and in the journal" for run in entries.keys() - gone]
    waiting = "SELECT entity_id FROM alembic_gcd_journal WHERE swept_ms IS NULL"
    problems += [f"{run} was never swept" for (run,) in store.database.rows(waiting)]
    by_cycle: dict[int, list[int]] = {}
    for cycle, at in store.database.rows("SELECT cycle, purged_ms FROM alembic_gcd_journal"):
        by_cycle.setdefault(int(str(cycle)), []).append(int(str(at)))
    query = "SELECT id, started_ms, state, report FROM alembic_gcd_cycle ORDER BY id"
    history = [
        SimpleNamespace(n=r[0], began=r[1], state=r[2], report=r[3])
        for r in store.database.rows(query)
    ]
    for cycle, following in zip(history, [*history[1:], None], strict=True):
        times = by_cycle.get(cycle.n, [])
        if cycle.report and sum(json.loads(cycle.report)["purged"].values()) != len(times):
            problems.append(f"cycle {cycle.n}: {cycle.report}, but the journal has {len(times)}")
        if not cycle.report and cycle.state != "killed":
            problems.append(f"cycle {cycle.n} is {cycle.state} without a report")
        if following is not None and times and max(times) > following.began:
            problems.append(f"cycle {cycle.n} purged when cycle {following.n} had begun")
    return problems


def settle(crowd: Crowd, race: Race, wanted: Mapping[str, int] = WANTED) -> None:
    """Nothing went wrong, and enough went on for that to mean something."""
    assert race.problems + crowd.problems == [], (crowd.done, race.done)
    assert race.has_enough(), race.done
    assert crowd.has_enough(wanted), crowd.done


@pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
def test_one_that_stood_still_before_its_cycle_writes_nothing(
    store: RealStore, tmp_path: Path
) -> None:
    """It has the lease and the fire, and wakes up when another has done the work."""
    assert gcd("init", uri=store.uri).returncode == 0
    experiment = store.experiment("e")
    store.run(experiment, metrics=1)
    store.delete(run := store.run(experiment, metrics=1))
    claimed = replace(SHORT, when="after", event="commit", sql=r"INSERT INTO alembic_gcd_meta\b")
    late = settings(store, schedule="@yearly", run_at_start=True)
    with daemon(tmp_path, late, claimed, name="late") as first:
        first.until(lambda: state(first.process) == "T", "it never comes to the moment")
        with daemon(tmp_path, settings(store), SHORT, name="other") as second:
            second.ready().until(lambda: "done" in cycles(store), "nobody succeeds it")
            assert second.stop() == 0
        assert run not in store.runs()
        before = store.database.rows("SELECT * FROM alembic_gcd_cycle ORDER BY id")
        first.signal(signal.SIGCONT)
        first.tells("another collector took the lease over")
        assert store.database.rows("SELECT * FROM alembic_gcd_cycle ORDER BY id") == before
        assert first.stop() == 0


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_two_daemons_collect_each_run_once(store: RealStore, tmp_path: Path) -> None:
    settle(*contend(store, tmp_path, 2, 20))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("daemons", [2, 3])
def test_daemons_collect_each_run_once_for_minutes(
    store: RealStore, tmp_path: Path, daemons: int
) -> None:
    wanted = {**WANTED, "killed at work": 3, "succeeded": 3}
    settle(*contend(store, tmp_path, daemons, 180, wanted), wanted)


# -- one daemon for long ---------------------------------------------------------------------------

KEEP = 10
"""Days that the history is kept: entries and cycles must be forgotten as fast as they are made."""
WARM = 20
"""Days until everything that is made once is made."""


@dataclass(frozen=True)
class Size:
    """How big this process and gcd's tables are."""

    memory: int
    """Resident, in KiB."""
    descriptors: int
    threads: int
    rows: dict[str, int]

    @classmethod
    def now(cls, store: RealStore) -> Size:
        """Measured."""
        gc.collect()
        status = Path("/proc/self/status").read_text()
        [memory] = re.findall(r"VmRSS:\s+(\d+) kB", status)
        count = "SELECT COUNT(*) FROM {}"
        rows = {
            t: int(str(store.database.scalar(count.format(t)))) for t in own_tables(store.database)
        }
        return cls(int(memory), descriptors(os.getpid()), threading.active_count(), rows)


def live(store: RealStore, folder: Path, days: int, patch: pytest.MonkeyPatch) -> list[Size]:
    """A cycle a day, each with a run to collect; what is big after each."""
    wanted = settings(store, schedule="@daily") | {"journal": {"keep_history": f"{KEEP}d"}}
    path = write(folder / "gcd.toml", wanted)
    [duty] = duties(load_config(path, environ={})).stores
    experiment = store.experiment("e")
    store.run(experiment, metrics=1)
    runs = [store.run(experiment, metrics=1) for _ in range(days)]
    day = timedelta(0)
    told, running = read.NOW["sqlite"], clock.uptime
    worker = Worker(Pulse(), Metrics(), lambda: datetime.now(UTC) + day)
    sizes = []
    for number, run in enumerate(runs):
        day = timedelta(days=number)
        ahead = int(day.total_seconds() * 1000)
        patch.setitem(read.NOW, "sqlite", f"SELECT ({told}) + {ahead}")  # type: ignore[arg-type]
        patch.setattr(clock, "uptime", lambda ms=ahead: running() + ms / 1000)
        store.delete(run)
        following = duty.timetable.after(None, worker.now())
        assert following is not None
        turn = worker.take(duty, Call.DUE, following, threading.Event())
        assert turn.report is not None, turn
        assert (turn.result, turn.report.purged) == ("done", {Kind.RUN: 1})
        sizes.append(Size.now(store))
    assert len(store.runs()) == 1
    return sizes


def assert_no_growth(sizes: list[Size], megabytes: int) -> None:
    """What was made once is all there is."""
    warm, last = sizes[WARM], sizes[-1]
    assert last.rows == warm.rows, "gcd's tables grow"
    assert warm.rows["alembic_gcd_cycle"] <= KEEP + 2
    assert warm.rows["alembic_gcd_journal"] <= KEEP + 2
    assert last.descriptors <= warm.descriptors + 2
    assert last.threads <= warm.threads
    assert last.memory <= warm.memory + megabytes * 1024


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_forty_days_leave_nothing_behind(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_no_growth(live(store, tmp_path, 40, monkeypatch), megabytes=3)


@pytest.mark.soak
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_two_years_leave_nothing_behind(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_no_growth(live(store, tmp_path, 730, monkeypatch), megabytes=4)
