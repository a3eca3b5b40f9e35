"""`gcd daemon` on stores made by MLflow: cycles, signals, configuration, what it tells and to whom."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gcd.config import load_config
from gcd.daemon.service import Daemon
from gcd.daemon.turn import MOST_DEATHS
from tests.contract.shipped import run
from tests.daemon import (
    Running,
    cycles,
    daemon,
    free_port,
    next_due,
    own_tables,
    purged,
    refused,
    set_due,
    settings,
    write,
)
from tests.mlflow_store import RealStore
from tests.program import gcd, shown
from tests.snapshot import Snapshot
from tests.stopper import PURGE, Moment, wait_until

ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
BATCH = 3
SMALL = {"batch_runs": BATCH}
HOUR_MS = 3_600_000
SECRET = "hunter2-of-the-database"
QUICK = {"gcd.daemon.turn:LOOK_AGAIN": 0.5, "gcd.daemon.work:LOOK_AGAIN": 0.5}


def deleted_runs(store: RealStore, count: int = 3, name: str = "e") -> list[str]:
    """A new experiment with a live run and so many deleted ones."""
    experiment = store.experiment(name)
    store.run(experiment, metrics=1)
    runs = [store.run(experiment, metrics=1) for _ in range(count)]
    store.delete(*runs)
    return runs


@pytest.fixture
def listen() -> str:
    """Where a daemon can listen."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def other(store: RealStore, tmp_path: Path) -> RealStore:
    """A second store on the same server; the first one must be empty still."""
    return RealStore(store.keeper, store.keeper.copy(store.database), tmp_path / "other")


def gone(store: RealStore, runs: list[str]) -> bool:
    """Whether no row of these runs is there."""
    return not store.runs() & set(runs)


# -- cycles ----------------------------------------------------------------------------------------


def test_what_is_deleted_is_collected_on_schedule(
    store: RealStore, tmp_path: Path, listen: str
) -> None:
    runs = deleted_runs(store)
    before = Snapshot.of(store.database, store.root)
    with daemon(tmp_path, settings(store, listen=listen)) as running:
        running.ready().until(lambda: cycles(store)[:1] == ["done"], "no cycle ends")
        assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []
        done = 'gcd_cycles_total{result="done",store="a"}'
        running.until(lambda: running.scrape()[done] >= 1, "it is not counted")
        found = running.scrape()
        assert found['gcd_purged_total{kind="run",store="a"}'] == 3
        assert found['gcd_artifact_objects_deleted_total{store="a"}'] == 6
        assert found['gcd_mode{mode="collect",store="a"}'] == 1
        assert found['gcd_pending{state="due",store="a"}'] == 0
        assert abs(found['gcd_clock_skew_seconds{store="a"}']) < 60
        now = time.time()
        assert now - 60 < found['gcd_last_successful_cycle_timestamp_seconds{store="a"}'] < now + 1
        assert now - 5 < found['gcd_next_cycle_timestamp_seconds{store="a"}'] < now + 5
        assert not any(value for name, value in found.items() if name.startswith("gcd_halted"))
        assert running.get("/healthz") == running.get("/readyz") == (200, "ok\n")
        assert running.get("/")[0] == 404
        assert running.manager.heard("STATUS=a next "), running.manager.said

        later = deleted_runs(store, 2, "later")
        running.until(lambda: gone(store, later), "the next cycle collects nothing")
        assert running.stop() == 0
        assert running.manager.heard("STOPPING=1") == ["STOPPING=1"]
    assert set(cycles(store)) <= {"done", "interrupted"}
    assert purged(store) == dict.fromkeys(runs + later, 1)
    assert store.database.rows("SELECT holder FROM alembic_gcd_lease") == [(None,)]


def test_observing_tells_and_writes_nothing(store: RealStore, tmp_path: Path, listen: str) -> None:
    deleted_runs(store)
    before = Snapshot.of(store.database, store.root)
    observed = 'gcd_cycles_total{result="observed",store="a"}'
    with daemon(tmp_path, settings(store, listen=listen, mode="observe")) as running:
        running.ready().until(lambda: running.scrape()[observed] >= 2, "it does not observe")
        found = running.scrape()
        assert found['gcd_candidates{decision="collect",store="a"}'] == 3
        assert found['gcd_mode{mode="observe",store="a"}'] == 1
        assert found['gcd_mode{mode="collect",store="a"}'] == 0
        assert running.get("/readyz")[0] == 200
        assert running.stop() == 0
    assert any("would collect 3 of kind run" in event for event in running.events(store="a"))
    assert before.against(Snapshot.of(store.database, store.root)) == []
    assert own_tables(store.database) == []


@ON_SQLITE
def test_a_store_may_have_a_mode_and_a_schedule_of_its_own(
    store: RealStore, other: RealStore, tmp_path: Path
) -> None:
    mine, theirs = deleted_runs(store), deleted_runs(other)
    wanted = settings(store, other, mode="observe", schedule="@yearly")
    wanted["stores.a"] |= {"mode": "collect", "schedule": "every 1s"}
    wanted["stores.b"] |= {"schedule": "every 1s"}
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: gone(store, mine), "the one is not collected")
        running.tells("observed: would collect 3 of kind run")
        assert running.stop() == 0
    assert other.runs().issuperset(theirs)
    assert own_tables(other.database) == []


@ON_SQLITE
def test_broken_stores_stop_no_other(
    store: RealStore, other: RealStore, tmp_path: Path, listen: str
) -> None:
    """One does not answer, one is not MLflow's; who comes back is collected without a fire of its own."""
    runs, later = deleted_runs(store), deleted_runs(other)
    assert gcd("init", uri=other.uri).returncode == 0
    set_due(other, time.time() * 1000 - HOUR_MS)
    place = Path(other.uri.removeprefix("sqlite:///"))
    away = place.rename(place.with_suffix(".away"))
    stranger = store.keeper.create()
    stranger.execute("CREATE TABLE customers (id INTEGER)")
    wanted = settings(store, other, listen=listen)
    wanted["stores.b"]["schedule"] = "@yearly"
    wanted["stores.c"] = {"backend_store_uri": stranger.uri, "schedule": "every 1s"}
    with daemon(tmp_path, wanted, Moment("never", seconds=QUICK)) as running:
        running.ready().until(lambda: gone(store, runs), "the store that is well is not collected")
        running.until(lambda: "failed: unreachable" in running.get("/readyz")[1], "b is not missed")
        running.until(lambda: "failed: refused" in running.get("/readyz")[1], "c is not refused")
        status, text = running.get("/readyz")
        assert (status, running.get("/healthz")[0]) == (503, 200)
        assert "the last cycle of b failed: unreachable" in text
        assert "the last cycle of c failed: refused" in text
        assert " a " not in text
        found = running.scrape()
        halted = {n for n, value in found.items() if n.startswith("gcd_halted") and value}
        assert halted == {
            'gcd_halted{reason="unreachable",store="b"}',
            'gcd_halted{reason="refused",store="c"}',
        }
        running.until(lambda: "b failed (unreachable)" in running.manager.status, "status hides it")

        away.rename(place)
        running.until(lambda: gone(other, later), "who came back is not collected")
        running.until(
            lambda: running.scrape()['gcd_halted{reason="unreachable",store="b"}'] == 0,
            "it is still called unreachable",
        )
        assert "of b" not in running.get("/readyz")[1]
        assert running.stop() == 0
    assert own_tables(stranger) == []


@ON_SQLITE
def test_a_start_that_met_no_database_is_made_up(store: RealStore, tmp_path: Path) -> None:
    """After a reboot the daemon may be there before the database is."""
    runs = deleted_runs(store)
    place = Path(store.uri.removeprefix("sqlite:///"))
    away = place.rename(place.with_suffix(".away"))
    wanted = settings(store, schedule="@yearly", run_at_start=True)
    with daemon(tmp_path, wanted, Moment("never", seconds=QUICK)) as running:
        running.ready().tells("cycle failed: there is no database")
        away.rename(place)
        running.until(lambda: "done" in cycles(store), "the cycle at the start is lost")
        assert running.stop() == 0
    assert gone(store, runs)
    assert cycles(store) == ["done"]


# -- stopping --------------------------------------------------------------------------------------


def paused_at(tmp_path: Path, number: int = 3) -> Moment:
    """The commit of the second batch after the canary; only the cycle stands still there."""
    return Moment("before", "commit", PURGE, number, pause=str(tmp_path / "pause"))


def paused(running: Running, tmp_path: Path) -> Path:
    """Wait until the cycle stands still; it goes on when this file is removed."""
    running.ready().until((tmp_path / "pause").exists, "the cycle never comes to the moment")
    return tmp_path / "pause"


def test_sigterm_finishes_the_batch_in_hand_and_loses_nothing(
    store: RealStore, tmp_path: Path
) -> None:
    stop_in_the_middle(store, tmp_path, signal.SIGTERM)


@ON_SQLITE
def test_sigint_does_the_same(store: RealStore, tmp_path: Path) -> None:
    stop_in_the_middle(store, tmp_path, signal.SIGINT)


def stop_in_the_middle(store: RealStore, tmp_path: Path, number: signal.Signals) -> None:
    """Stop in the transaction of a batch; the next cycle finishes the work."""
    runs = deleted_runs(store, 20)
    before = Snapshot.of(store.database, store.root)
    wanted = settings(store) | {"purge": SMALL}
    with daemon(tmp_path, wanted, paused_at(tmp_path)) as running:
        pause = paused(running, tmp_path)
        running.signal(number)
        running.until(lambda: running.manager.heard("STOPPING=1") != [], "it does not say so")
        running.until(lambda: "a finish" in running.manager.status, "nor what it waits for")
        pause.unlink()
        assert running.ended() == 0
    collected = set(runs) - store.runs()
    assert len(collected) == 1 + 2 * BATCH
    assert before.without(collected).against(Snapshot.of(store.database, store.root)) == []
    assert cycles(store) == ["interrupted"]
    assert store.database.rows("SELECT holder FROM alembic_gcd_lease") == [(None,)]

    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: gone(store, runs), "the next cycle leaves something")
        running.until(lambda: cycles(store)[1:2] == ["done"], "it does not end")
        assert running.stop() == 0
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []
    assert purged(store) == dict.fromkeys(runs, 1)


@pytest.mark.parametrize("event", ["commit", "unlink"])
@ON_SQLITE
def test_a_cycle_that_does_not_end_is_not_waited_for(
    store: RealStore, tmp_path: Path, event: str
) -> None:
    """It hangs with the database, or with the disk."""
    runs = deleted_runs(store, 6)
    before = Snapshot.of(store.database, store.root)
    wanted = settings(store, shutdown_timeout="2s") | {"purge": SMALL}
    moment = Moment("before", event, PURGE, 2, pause=str(tmp_path / "pause"))
    with daemon(tmp_path, wanted, moment) as running:
        paused(running, tmp_path)
        began = time.monotonic()
        assert running.stop() == 0
        assert 2 <= time.monotonic() - began < 30
        assert "did not stop in time" in running.log.read_text()
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: "done" in cycles(store), "the next cycle does not end")
        assert running.stop() == 0
    assert cycles(store)[:2] == ["killed", "done"]
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_a_hook_that_hangs_does_not_hold_the_stop_up(store: RealStore, tmp_path: Path) -> None:
    deleted_runs(store, 1)
    wanted = settings(store, schedule="every 1s", shutdown_timeout="2s")
    wanted["hooks"] = {"command": ["sleep", "60"], "states": ["ok"], "timeout": "60s"}
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: cycles(store).count("done") >= 2, "no cycles")
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 30


# -- configuration ---------------------------------------------------------------------------------


@ON_SQLITE
def test_a_reload_takes_effect(store: RealStore, tmp_path: Path, listen: str) -> None:
    runs = deleted_runs(store)
    wanted = settings(store, listen=listen, mode="observe", schedule="@yearly")
    with daemon(tmp_path, wanted) as running:
        running.ready()
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        port = free_port()
        running.reload(settings(store, listen=f"127.0.0.1:{port}"))
        running.until(lambda: gone(store, runs), "mode and schedule are not in effect")
        [told] = running.manager.heard("RELOADING=1")
        stamp = int(told.partition("MONOTONIC_USEC=")[2])
        assert began <= stamp <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        said = [text for _, text in running.manager.said if not text.startswith("STATUS")]
        assert said == ["READY=1", told, "READY=1"]
        with pytest.raises(OSError, match="refused"):
            running.get("/healthz")
        running.port = port
        assert running.scrape()['gcd_mode{mode="collect",store="a"}'] == 1
        assert running.scrape()['gcd_mode{mode="observe",store="a"}'] == 0
        assert running.stop() == 0


@ON_SQLITE
def test_a_denser_schedule_does_not_wait_for_the_old_one(store: RealStore, tmp_path: Path) -> None:
    """What is due next is in the store: by the schedule of a year, in a year."""
    runs = deleted_runs(store)
    slow = settings(store, schedule="@yearly", run_at_start=True)
    with daemon(tmp_path, slow) as running:
        running.ready().until(lambda: "done" in cycles(store), "no cycle at the start")
        later = deleted_runs(store, 2, "later")
        running.reload(settings(store))
        running.until(lambda: gone(store, later), "the new schedule is not in effect")
        assert running.stop() == 0
    assert purged(store) == dict.fromkeys(runs + later, 1)


@ON_SQLITE
def test_a_reload_of_nonsense_leaves_all_as_it_was(
    store: RealStore, other: RealStore, tmp_path: Path, listen: str
) -> None:
    """A file that is not valid, a port that is taken, a store twice: each problem with its key path."""
    good = settings(store, listen=listen)
    with daemon(tmp_path, good) as running, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running.ready()
        running.reload(settings(store, schedule="every -1s", hung="1s", windows=["1-2"]))
        for key in ("daemon.schedule", "daemon.hung", "daemon.windows"):
            running.tells(f"the configuration stays as it was: {key}")
        running.config.write_text("[daemon\n")
        running.reload()
        running.tells("the configuration stays as it was: " + str(running.config))
        running.reload(settings(store, listen=f"127.0.0.1:{taken.getsockname()[1]}"))
        running.tells("the configuration stays as it was: daemon.listen cannot listen on")
        running.reload(settings(store, store, listen=listen))
        running.tells("the configuration stays as it was: stores.b.backend_store_uri")
        assert running.get("/readyz") == (200, "ok\n")
        runs = deleted_runs(store)
        running.until(lambda: gone(store, runs), "the old configuration is not in effect")
        assert 'gcd_leader{store="b"}' not in running.scrape()

        running.reload(settings(store, other, listen=listen))
        theirs = deleted_runs(other)
        running.until(lambda: gone(other, theirs), "a new store is not looked after")
        assert 'gcd_leader{store="b"}' in running.scrape()
        running.reload(good)
        assert 'gcd_leader{store="b"}' not in running.scrape()
        assert running.stop() == 0


@ON_SQLITE
def test_what_cannot_work_is_refused_at_the_start(
    store: RealStore, tmp_path: Path, listen: str
) -> None:
    code, said = refused(tmp_path, settings(store), Moment("never", ahead=600))
    assert code == 10, said
    assert "600 s ahead of the database's" in said
    assert "stores.a.backend_store_uri" in said
    assert "hint: set both by NTP" in said
    code, said = refused(tmp_path, settings(store), Moment("never", ahead=-600))
    assert (code, "600 s behind the database's" in said) == (10, True), said

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(listen.rpartition(":")[2])))
        taken.listen()
        code, said = refused(tmp_path, settings(store, listen=listen))
        assert (code, "daemon.listen: cannot listen on" in said) == (10, True), said
        assert "hint: choose another port" in said

    code, said = refused(tmp_path, settings(store, store))
    assert (code, "stores.b.backend_store_uri" in said) == (10, True), said
    code, said = refused(tmp_path, settings(store, schedule="0 0 31 2 *", windows=["8:00-8:00"]))
    assert code == 10, said
    assert "daemon.schedule" in said
    assert "daemon.windows" in said
    assert own_tables(store.database) == []


@ON_SQLITE
def test_a_small_skew_is_told_and_no_more(store: RealStore, tmp_path: Path, listen: str) -> None:
    with daemon(tmp_path, settings(store, listen=listen), Moment("never", ahead=-200)) as running:
        running.ready().until(
            lambda: -210 < running.scrape().get('gcd_clock_skew_seconds{store="a"}', 0) < -190,
            "the skew is not told",
        )
        assert running.stop() == 0


def test_no_store_of_mlflows_is_refused(store: RealStore, tmp_path: Path) -> None:
    stranger = store.keeper.create()
    stranger.execute("CREATE TABLE customers (id INTEGER)")
    wanted = settings(store)
    wanted["stores.a"]["backend_store_uri"] = stranger.uri
    code, said = refused(tmp_path, wanted)
    assert code == 14, said
    assert "hint" in said
    assert own_tables(stranger) == []


# -- when ------------------------------------------------------------------------------------------


def test_a_fire_that_was_missed_is_made_up_once(store: RealStore, tmp_path: Path) -> None:
    runs = deleted_runs(store)
    assert gcd("init", uri=store.uri).returncode == 0
    set_due(store, time.time() * 1000 - 72 * HOUR_MS)
    wanted = settings(store, schedule="every 1h")
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: gone(store, runs), "it is not made up")
        running.until(lambda: cycles(store) == ["done"], "it does not end")
        assert running.stop() == 0
    due = next_due(store)
    assert due is not None
    assert time.time() * 1000 < due < time.time() * 1000 + 1.1 * HOUR_MS
    with daemon(tmp_path, wanted) as running:
        running.ready().until(
            lambda: (
                "looking again" in str(running.events()) or "next cycle" in str(running.events())
            ),
            "it does not look",
        )
        time.sleep(1)
        assert running.stop() == 0
    assert cycles(store) == ["done"]
    assert next_due(store) == due


@ON_SQLITE
def test_the_first_start_collects_nothing_unless_told_to(store: RealStore, tmp_path: Path) -> None:
    runs = deleted_runs(store)
    with daemon(tmp_path, settings(store, schedule="every 1h")) as running:
        running.ready().until(lambda: own_tables(store.database) != [], "it does not look")
        time.sleep(1)
        assert running.stop() == 0
    assert cycles(store) == []
    for _ in range(2):
        wanted = settings(store, schedule="every 1h", run_at_start=True)
        number = len(cycles(store)) + 1
        with daemon(tmp_path, wanted) as running:
            running.ready().until(lambda n=number: cycles(store) == ["done"] * n, "no cycle")
            assert running.stop() == 0
    assert gone(store, runs)


def test_the_next_fire_is_stored_before_a_cycle_starts(store: RealStore, tmp_path: Path) -> None:
    runs = deleted_runs(store)
    assert gcd("init", uri=store.uri).returncode == 0
    set_due(store, time.time() * 1000 - HOUR_MS)
    wanted = settings(store, schedule="every 1h")
    moment = Moment("before", sql=r"INSERT INTO alembic_gcd_cycle\b", signal="SIGKILL")
    with daemon(tmp_path, wanted, moment) as running:
        assert running.ended() == -signal.SIGKILL
    due = next_due(store)
    assert due is not None
    assert due > time.time() * 1000
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: "a next" in running.manager.status, "it does not look")
        time.sleep(1)
        assert running.stop() == 0
    assert cycles(store) == []
    assert store.runs().issuperset(runs)


@ON_SQLITE
def test_a_crash_loop_does_not_become_a_delete_loop(store: RealStore, tmp_path: Path) -> None:
    """A killed cycle is taken up again at once, but not for ever."""
    runs = deleted_runs(store, 20)
    before = Snapshot.of(store.database, store.root)
    assert gcd("init", uri=store.uri).returncode == 0
    set_due(store, time.time() * 1000 - HOUR_MS)
    wanted = settings(store, schedule="every 1h", run_at_start=True) | {"purge": {"batch_runs": 1}}
    deadly = Moment("before", "commit", PURGE, 2, signal="SIGKILL")
    for number in range(MOST_DEATHS):
        with daemon(tmp_path, wanted, deadly) as running:
            assert running.ended() == -signal.SIGKILL
        assert cycles(store) == ["killed"] * number + ["running"]
    left = store.runs()
    assert len(left) > 20 - 2 * MOST_DEATHS
    with daemon(tmp_path, wanted, deadly) as running:
        running.ready().until(lambda: "a next" in running.manager.status, "it does not look")
        time.sleep(1.5)
        assert running.process.poll() is None
        assert store.runs() == left
        assert running.stop() == 0

    set_due(store, time.time() * 1000 - 1000)
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: "done" in cycles(store), "the schedule starts no other")
        assert running.stop() == 0
    assert cycles(store) == ["killed"] * MOST_DEATHS + ["done"]
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []
    assert purged(store) == dict.fromkeys(runs, 1)


def closed() -> list[str]:
    """A window that does not open within the next hour."""
    hour = datetime.now(UTC).hour
    return [f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"]


@ON_SQLITE
def test_cycles_run_in_their_windows_only(store: RealStore, tmp_path: Path) -> None:
    runs = deleted_runs(store, 20)
    before = Snapshot.of(store.database, store.root)
    shut = settings(store, windows=closed()) | {"purge": SMALL}
    with daemon(tmp_path, shut, paused_at(tmp_path)) as running:
        opens = f"{closed()[0][:5]}:00 UTC"
        running.ready().until(lambda: opens in running.manager.status, "it waits for nothing")
        time.sleep(2)
        assert own_tables(store.database) == []

        running.reload(settings(store, windows=["00:00-24:00"]) | {"purge": SMALL})
        pause = paused(running, tmp_path)
        running.reload(shut)
        running.tells("the window closes: stopping")
        pause.unlink()
        running.until(lambda: cycles(store) == ["interrupted"], "it goes on")
        collected = set(runs) - store.runs()
        assert len(collected) == 1 + 2 * BATCH
        running.until(lambda: opens in running.manager.status, "it waits for nothing")
        time.sleep(1.5)
        assert running.stop() == 0
    assert cycles(store) == ["interrupted"]
    assert before.without(collected).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_a_window_closes_while_a_cycle_runs(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where the clock can be put forward."""
    runs = deleted_runs(store, 8)
    hour = datetime.now(UTC).hour
    wanted = settings(store, windows=[f"{hour:02}:00-{(hour + 2) % 24:02}:00"], run_at_start=True)
    path = write(tmp_path / "gcd.toml", wanted | {"purge": {"batch_runs": 1}})
    ahead = timedelta(0)
    inside = Daemon(lambda: load_config(path, environ={}), now=lambda: datetime.now(UTC) + ahead)
    monkeypatch.setattr("gcd.daemon.work.MOST_SKEW", timedelta(days=1))
    begun, goes_on = threading.Event(), threading.Event()
    original = type(inside.metrics).purged

    def pausing(*arguments: Any) -> None:
        begun.set()
        goes_on.wait(30)
        original(*arguments)

    monkeypatch.setattr(type(inside.metrics), "purged", pausing)
    inside.roster.start()
    try:
        inside.roster.assign(inside.duties)
        assert begun.wait(30)
        inside.tick()
        assert not any(s.stop.is_set() for s in inside.roster.states.values() if s.stop)
        ahead = timedelta(hours=2)
        inside.tick()
        goes_on.set()
        wait_until(lambda: inside.roster.running() == [], "the cycle goes on")
    finally:
        goes_on.set()
        inside.roster.stop()
        inside.messenger.close(wait=True)
    assert cycles(store) == ["interrupted"]
    assert len(set(runs) - store.runs()) == 1


# -- the watchdog ----------------------------------------------------------------------------------


@ON_SQLITE
def test_the_watchdog_is_fed_while_cycles_move(
    store: RealStore, tmp_path: Path, listen: str
) -> None:
    runs = deleted_runs(store, 20)
    wanted = settings(store, listen=listen, hung_after="2s") | {"purge": SMALL}
    with daemon(tmp_path, wanted, paused_at(tmp_path), watchdog=3) as running:
        pause = paused(running, tmp_path)
        assert running.get("/healthz")[0] == 200
        running.until(lambda: running.get("/healthz")[0] == 503, "it does not see that it hangs")
        assert running.get("/healthz")[1] == "the cycle of a hangs\n"
        fed = len(running.manager.heard("WATCHDOG=1"))
        time.sleep(3.5)  # by now systemd would have killed it
        assert len(running.manager.heard("WATCHDOG=1")) <= fed + 1
        assert "the watchdog is fed no more: the cycle of a hangs" in running.events()
        pause.unlink()
        running.until(lambda: gone(store, runs), "it does not go on")
        assert running.get("/healthz")[0] == 200
        number = len(running.manager.heard("WATCHDOG=1"))
        time.sleep(3)
        times = running.manager.times("WATCHDOG=1")[number:]
        assert len(times) >= 2
        assert max(b - a for a, b in pairwise(times)) < 2
        assert running.stop() == 0


@ON_SQLITE
def test_slow_is_not_hung(store: RealStore, tmp_path: Path, listen: str) -> None:
    """What a page of trees takes is longer than a cycle may stand still; what one takes is not."""
    runs = deleted_runs(store, 8)
    wanted = settings(store, listen=listen, hung_after="2s") | {"artifacts": {"hands": 1}}
    with daemon(tmp_path, wanted, Moment("never", slow=0.4)) as running:
        running.ready().until(lambda: gone(store, runs), "it does not collect")
        while cycles(store) == ["running"]:
            assert running.get("/healthz") == (200, "ok\n")
        assert running.stop() == 0
    [(took,)] = store.database.rows(
        "SELECT ended_ms - started_ms FROM alembic_gcd_cycle WHERE id = 1"
    )
    assert int(str(took)) > 4000


@ON_SQLITE
def test_a_stop_feeds_the_watchdog_too(store: RealStore, tmp_path: Path) -> None:
    deleted_runs(store, 20)
    wanted = settings(store, shutdown_timeout="4s") | {"purge": SMALL}
    with daemon(tmp_path, wanted, paused_at(tmp_path), watchdog=1.5) as running:
        paused(running, tmp_path)
        assert running.stop() == 0
        [stopping] = running.manager.times("STOPPING=1")
        assert sum(at > stopping for at in running.manager.times("WATCHDOG=1")) >= 3


# -- files later than rows -------------------------------------------------------------------------


def trees_left(trees: list[Path]) -> int:
    """How many of the trees have files."""
    return sum(any(p.is_file() for p in tree.rglob("*")) for tree in trees)


@ON_SQLITE
def test_files_go_later_than_rows(store: RealStore, tmp_path: Path, listen: str) -> None:
    experiment = store.experiment("e")
    runs = [store.run(experiment, metrics=1) for _ in range(6)]
    trees = [store.tree(run) for run in runs]
    store.delete(*runs)
    before = Snapshot.of(store.database, store.root)
    wanted = settings(store, listen=listen, sweep_delay="15s", hung_after="3s")
    with daemon(tmp_path, wanted, watchdog=3) as running:
        running.ready().until(lambda: gone(store, runs), "the rows stay")
        at = time.monotonic()
        while time.monotonic() < at + 3.5:
            assert running.get("/healthz")[0] == 200, "waiting is taken for hanging"
            time.sleep(0.1)
        assert trees_left(trees) == 6
        assert cycles(store) == ["running"]
        running.until(lambda: trees_left(trees) == 0, "the files stay")
        running.until(lambda: cycles(store)[0] == "done", "the cycle does not end")
        assert running.stop() == 0
    delays = store.database.rows(
        "SELECT due_ms - purged_ms FROM alembic_gcd_journal WHERE looks = 0"
    )
    waited = store.database.rows("SELECT swept_ms - purged_ms FROM alembic_gcd_journal")
    assert sum(int(str(ms)) >= 15_000 for (ms,) in waited) == 6, (waited, delays)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_a_stop_does_not_wait_for_the_delay(store: RealStore, tmp_path: Path) -> None:
    runs = deleted_runs(store, 6)
    before = Snapshot.of(store.database, store.root)
    wanted = settings(store, sweep_delay="1h")
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: gone(store, runs), "the rows stay")
        time.sleep(0.5)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 30
    assert cycles(store) == ["interrupted"]
    query = "SELECT COUNT(*) FROM alembic_gcd_journal WHERE swept_ms IS NULL"
    assert store.database.scalar(query) == 6
    store.database.execute("UPDATE alembic_gcd_journal SET due_ms = 0 WHERE swept_ms IS NULL")
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: store.database.scalar(query) == 0, "the files stay")
        running.until(lambda: cycles(store)[1:2] == ["done"], "the cycle does not end")
        assert running.stop() == 0
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


# -- what is told ----------------------------------------------------------------------------------


@ON_SQLITE
def test_the_fuse_of_the_daemon(store: RealStore, tmp_path: Path, listen: str) -> None:
    """Off by hand, and on in the daemon."""
    runs = deleted_runs(store, 3)
    before = Snapshot.of(store.database, store.root)
    failed = 'gcd_cycles_total{result="failed",store="a"}'
    with daemon(tmp_path, settings(store, listen=listen, max_share=0.4)) as running:
        running.ready().until(lambda: running.scrape()[failed] >= 2, "it does not blow")
        assert running.scrape()['gcd_halted{reason="fuse",store="a"}'] == 1
        assert running.get("/readyz") == (503, "the last cycle of a failed: fuse\n")
        assert before.against(Snapshot.of(store.database, store.root)) == []
        assert purged(store) == {}
        running.reload(settings(store, listen=listen, max_share=0.9))
        running.until(lambda: gone(store, runs), "it stays blown")
        running.until(lambda: running.get("/readyz")[0] == 200, "it is still called blown")
        assert running.scrape()['gcd_halted{reason="fuse",store="a"}'] == 0
        assert running.stop() == 0


class Monitor:
    """Somebody who is pinged."""

    def __init__(self) -> None:
        self.pings: list[tuple[str, dict[str, Any]]] = []
        pings = self.pings

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                pings.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/ping/token?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """Somebody who is pinged."""
    found = Monitor()
    yield found
    found.close()


@ON_SQLITE
def test_hooks_are_told_how_cycles_end(
    store: RealStore, tmp_path: Path, listen: str, monitor: Monitor
) -> None:
    script = 'cat > "$0/$GCD_HOOK_STATE-$GCD_HOOK_STORE-$GCD_HOOK_CYCLE"'
    told = tmp_path / "told"
    told.mkdir()

    def news(state: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(told.glob(f"{state}-a-*"))]

    def told_of(state: str) -> bool:
        return any(path.stat().st_size for path in told.glob(f"{state}-a-*"))

    runs = deleted_runs(store, 3)
    wanted = settings(store, listen=listen)
    wanted["hooks"] = {
        "command": ["/bin/sh", "-c", script, str(told)],
        "states": ["ok", "partial", "failed"],
        "ping_url": monitor.url,
    }
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: told_of("ok"), "nobody hears that all is well")
        running.until(lambda: len(monitor.pings) > 0, "nobody is pinged")
        assert news("ok")[0]["purged"]["run"] == 3
        assert (told / "ok-a-1").exists()
        path, body = monitor.pings[0]
        assert path == "/ping/token?x=1"
        assert (body["state"], body["store"], body["purged"]["run"]) == ("ok", "a", 3)

        unmounted = store.experiment("unmounted")
        lost = store.run(unmounted, metrics=1)
        shutil.rmtree(store.folder(unmounted))
        store.delete(lost)
        running.until(lambda: told_of("partial"), "nobody hears that something was left")
        running.until(lambda: monitor.pings[-1][1]["state"] == "partial", "nobody is pinged")
        assert monitor.pings[-1][0] == "/ping/token?x=1"
        assert running.scrape()['gcd_halted{reason="unhealthy",store="a"}'] == 1

        wanted["daemon"]["max_share"] = 0.01
        running.reload(wanted)
        more = deleted_runs(store, 3, "more")
        running.until(lambda: told_of("failed"), "nobody hears of a failure")
        running.until(lambda: monitor.pings[-1][0] == "/ping/token/fail?x=1", "nobody is pinged")
        assert "max_share" in monitor.pings[-1][1]["error"]
        assert set(store.runs()).issuperset(more)

        wanted["daemon"]["max_share"] = 1.0
        wanted["hooks"] = {"command": ["/bin/false"], "states": ["ok", "partial"]}
        running.reload(wanted)
        failures = 'gcd_hook_failures_total{hook="command"}'
        running.until(lambda: running.scrape()[failures] >= 1, "a hook that fails is not counted")
        running.until(lambda: gone(store, more), "a hook that fails stops the cycles")
        assert running.stop() == 0
    assert gone(store, runs)


@ON_SQLITE
def test_the_log_is_json_and_holds_no_secret(
    store: RealStore, tmp_path: Path, listen: str, monitor: Monitor
) -> None:
    runs = deleted_runs(store)
    # Its files are its own, or they might be those of the other store, which cannot be asked.
    accepted = gcd("doctor", "--accept-root", store.root.as_uri(), uri=store.uri)
    assert accepted.returncode == 0, shown(accepted)
    wanted = settings(store, listen=listen)
    uri = f"postgresql://mlflow:{SECRET}@127.0.0.1:{free_port()}/mlflow"
    wanted["stores.b"] = {"backend_store_uri": uri}
    wanted["hooks"] = {"ping_url": f"http://user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}"}
    with daemon(tmp_path, wanted) as running:
        running.ready().until(lambda: "done" in cycles(store), "it does not collect")
        running.until(
            lambda: running.scrape()['gcd_hook_failures_total{hook="ping"}'] >= 1, "no ping fails"
        )
        running.until(lambda: "of b failed" in running.get("/readyz")[1], "b is not missed")
        said = [running.get(path)[1] for path in ("/metrics", "/readyz", "/healthz", f"/{SECRET}")]
        said += [text for _, text in running.manager.said]
        assert running.stop() == 0
    assert gone(store, runs)
    text = running.log.read_text()
    assert SECRET not in text + "".join(said)
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)
    of_cycle = [line for line in lines if line.get("cycle") == 1]
    assert of_cycle[0]["event"] == "cycle 1 begins"
    assert any(line["event"].startswith("cycle 1 done: purged 3 of kind run") for line in of_cycle)
    assert {line.get("store") for line in of_cycle} == {"a"}
    failed = [line for line in lines if line["event"].startswith("cycle failed")]
    assert {line["store"] for line in failed} == {"b"}
    assert {line["level"] for line in failed} == {"error"}


@ON_SQLITE
def test_prometheus_understands_a_scrape(store: RealStore, tmp_path: Path, listen: str) -> None:
    runs = deleted_runs(store)
    with daemon(tmp_path, settings(store, listen=listen)) as running:
        running.ready().until(lambda: gone(store, runs), "it does not collect")
        running.until(lambda: "gcd_kept" in running.get("/metrics")[1], "no numbers")
        _, text = running.get("/metrics")
        assert running.stop() == 0
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["gcd_cycles"].type == "counter"
    assert families["gcd_cycle_duration_seconds"].type == "histogram"
    assert families["gcd_kept"].type == "gauge"
    labels = {n for f in families.values() for s in f.samples for n in s.labels}
    assert not [value for run in runs for value in (run,) if value in text]
    assert labels <= {
        "store", "mode", "reason", "decision", "state", "result", "kind", "version", "hook", "le",
    }  # fmt: skip
    done = run("promtool", "prometheus", "check", "metrics", stdin=text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
