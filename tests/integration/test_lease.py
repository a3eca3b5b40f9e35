"""The lease: one collector at a time, and nothing that a stalled one does can harm its successor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from gcd.store.connection import BUSY_TIMEOUT, IDLE_IN_TRANSACTION
from gcd.store.lease import MARGIN, RENEWAL, TERM, started_at, whoami
from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import NOBODY, collect, gcd, shown, start
from tests.snapshot import Snapshot
from tests.stopper import BEGUN, CONFIRM, PURGE, Moment, killed, resumed, started, stopped

CYCLE = ("gc", "--older-than", "0s", "--yes")
HOLDING = Moment("after", "commit", BEGUN)
"""The lease is held, and no transaction is open."""
SECOND_PURGE = Moment(
    "before", "commit", PURGE, number=2, seconds={"gcd.store.connection:IDLE_IN_TRANSACTION": 3}
)
"""In the transaction that purges what comes after the canary."""
HOUR = 3_600_000
ELSEWHERE = "elsewhere pid 1 [0-0-0 1 1]"
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
WITH_ROW_LOCKS = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)


def small_store(store: RealStore) -> list[str]:
    """Three deleted runs and a live one."""
    experiment = store.experiment("e")
    store.run(experiment)
    runs = [store.run(experiment) for _ in range(3)]
    store.delete(*runs)
    return runs


def pass_elsewhere(store: RealStore, expires_ms: int = 0) -> None:
    """The lease as a collector on another host left it; waits for a transaction that confirmed it."""
    store.sql(
        "UPDATE alembic_gcd_lease SET holder = :holder, expires_ms = :at",
        holder=ELSEWHERE,
        at=expires_ms,
    )


def entries(store: RealStore) -> list[str]:
    """The entity of each journal entry."""
    return sorted(
        str(row[0]) for row in store.database.rows("SELECT entity_id FROM alembic_gcd_journal")
    )


# -- who holds it --------------------------------------------------------------------------------


def test_a_second_collector_is_told_who_holds_it(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    with stopped(HOLDING, *CYCLE, uri=store.uri) as first:
        second = gcd(*CYCLE, uri=store.uri)

        assert second.returncode == 11, shown(second)
        assert f" pid {first.pid}," in second.stderr
        assert before.against(Snapshot.of(store.database, store.root)) == []
        done = resumed(first)
    assert done.returncode == 0, shown(done)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_planning_needs_no_lease(store: RealStore) -> None:
    small_store(store)
    with stopped(HOLDING, *CYCLE, uri=store.uri):
        for command in (("plan",), ("gc", "--dry-run")):
            done = gcd(*command, "--older-than", "0s", uri=store.uri)
            assert done.returncode == 0, shown(done)
            assert "to collect  3 runs" in done.stdout


def test_one_that_waits_gets_it_once_it_is_released(store: RealStore) -> None:
    small_store(store)
    with stopped(HOLDING, *CYCLE, uri=store.uri) as first:
        second = start(*CYCLE, "--wait", "2m", uri=store.uri)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(3)
        done = resumed(first)
        _, err = second.communicate(timeout=60)
    assert done.returncode == 0, shown(done)
    assert second.returncode == 0, err
    assert store.database.scalar("SELECT COUNT(*) FROM alembic_gcd_cycle WHERE state = 'done'") == 2


@ON_SQLITE
def test_one_that_waits_gives_up_in_time(store: RealStore) -> None:
    small_store(store)
    with stopped(HOLDING, *CYCLE, uri=store.uri) as first:
        second = gcd(*CYCLE, "--wait", "1s", uri=store.uri, timeout=30)
        assert second.returncode == 11, shown(second)
        assert f" pid {first.pid}," in second.stderr


@ON_SQLITE
def test_it_is_free_again_after_a_cycle_that_failed(store: RealStore) -> None:
    runs = small_store(store)
    with stopped(HOLDING, *CYCLE, uri=store.uri) as first:
        store.sql("UPDATE alembic_version SET version_num = 'newer'")
        done = resumed(first)
    assert done.returncode == 14, shown(done)
    assert store.runs().issuperset(runs)
    assert store.database.rows("SELECT holder FROM alembic_gcd_lease") == [(None,)]
    collect(store.uri)


# -- succession ----------------------------------------------------------------------------------


def test_one_that_was_killed_on_this_host_is_succeeded_at_once(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    for moment in (HOLDING, Moment("before", "commit", PURGE)):
        killed(moment, *CYCLE, uri=store.uri)
    began = time.monotonic()
    collect(store.uri)
    assert time.monotonic() - began < TERM.total_seconds() / 3
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_one_whose_clock_was_a_year_ahead_is_succeeded(store: RealStore) -> None:
    """No lease that is renewed now ends in a year: its holder's clock, or the one since, was wrong."""
    runs = small_store(store)
    assert gcd("init", uri=store.uri).returncode == 0
    pass_elsewhere(store, expires_ms=now_ms() + 365 * DAY)
    collect(store.uri)
    assert not store.runs() & set(runs)


@ON_SQLITE
def test_one_on_another_host_is_succeeded_when_its_time_is_over(store: RealStore) -> None:
    runs = small_store(store)
    assert gcd("init", uri=store.uri).returncode == 0
    pass_elsewhere(store, expires_ms=now_ms() + HOUR)
    held = gcd(*CYCLE, uri=store.uri)
    assert held.returncode == 11, shown(held)
    assert "elsewhere pid 1" in held.stderr
    assert store.runs().issuperset(runs)
    pass_elsewhere(store)
    collect(store.uri)
    assert not store.runs() & set(runs)


@ON_SQLITE
def test_a_process_with_the_number_of_a_dead_holder_is_not_taken_for_it(store: RealStore) -> None:
    small_store(store)
    killed(HOLDING, *CYCLE, uri=store.uri)
    holder = str(store.database.scalar("SELECT holder FROM alembic_gcd_lease"))
    host, _, _ = holder.partition(" pid ")
    store.sql(
        "UPDATE alembic_gcd_lease SET holder = :holder",
        holder=f"{host} pid {os.getpid()} [" + holder.partition("[")[2],
    )
    collect(store.uri)


# -- the fence -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a /proc")
def test_one_that_lives_is_not_dead_where_proc_hides_it() -> None:
    """A /proc with `hidepid` shows nobody the processes of others; systemd's ProtectProc= is the same."""
    ask = "import sys; from gcd.store.lease import is_dead; print(is_dead(sys.argv[1]))"
    right = "-all,+dac_read_search"  # or it could not start a Python that root keeps at home
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    nobody += [f"--{name}={right}" for name in ("inh-caps", "ambient-caps", "bounding-set")]
    hide = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'

    def is_dead(holder: str) -> str:
        words = ["unshare", "--mount", "sh", "-c", hide, "sh", *nobody, sys.executable, "-c", ask]
        done = subprocess.run([*words, holder], capture_output=True, text=True, check=False)
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip(f"no /proc of our own: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with subprocess.Popen(["sleep", "60"]) as other:
        holder = whoami().replace(f"pid {os.getpid()} ", f"pid {other.pid} ")
        holder = re.sub(r"\d+\]$", f"{started_at(other.pid)}]", holder)
        living = is_dead(holder)
        other.kill()
    assert (living, is_dead(holder)) == ("False", "True")


def test_one_that_stalled_between_transactions_purges_nothing_more(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    with stopped(Moment("after", "commit", PURGE), *CYCLE, uri=store.uri) as first:
        pass_elsewhere(store)
        collect(store.uri, "--run-ids", runs[0], expect=None)
        gone = set(runs) - store.runs()
        assert len(gone) in (1, 2)
        expected = before.without(gone)

        done = resumed(first)

    assert done.returncode == 11, shown(done)
    assert expected.against(Snapshot.of(store.database, store.root)) == []
    assert entries(store) == sorted(gone)
    collect(store.uri)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@WITH_ROW_LOCKS
def test_one_that_stalled_in_a_purge_loses_its_transaction(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    with stopped(SECOND_PURGE, *CYCLE, uri=store.uri) as first:
        gone = set(runs) - store.runs()
        assert len(gone) == 1
        began = time.monotonic()
        pass_elsewhere(store)
        assert time.monotonic() - began > 1, "the transaction did not hold the lease's row"
        restored, collected = sorted(set(runs) - gone)
        store.restore(restored)
        expected = Snapshot.of(store.database, store.root)
        collect(store.uri)

        done = resumed(first)

    assert done.returncode in (11, 12), shown(done)
    assert "Traceback" not in done.stderr
    found = Snapshot.of(store.database, store.root)
    assert expected.without({*gone, collected}).against(found) == []
    assert before.without({*gone, collected}).files == found.files
    assert entries(store) == sorted({*gone, collected})


@WITH_ROW_LOCKS
def test_one_that_stalled_before_it_confirmed_the_lease_purges_nothing(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    with stopped(Moment("before", "statement", CONFIRM), *CYCLE, uri=store.uri) as first:
        pass_elsewhere(store)
        done = resumed(first)
    assert done.returncode == 11, shown(done)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    assert entries(store) == []
    collect(store.uri)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_on_sqlite_nobody_gets_past_a_purge_that_stalled(store: RealStore) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    impatient = {"gcd.store.connection:BUSY_TIMEOUT": 1.0}
    with stopped(SECOND_PURGE, *CYCLE, uri=store.uri) as first:
        gone = set(runs) - store.runs()
        moment = Moment(sql="never", seconds=impatient)
        with started(moment, *CYCLE, uri=store.uri) as second:
            _, err = second.communicate(timeout=BUSY_TIMEOUT.total_seconds())
        assert second.returncode == 12, err
        assert "locked" in err
        assert set(runs) - store.runs() == gone

        done = resumed(first)

    assert done.returncode == 0, shown(done)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []
    assert entries(store) == sorted(runs)


@ON_SQLITE
def test_one_that_stalled_for_longer_than_its_lease_touches_no_file(store: RealStore) -> None:
    """Rows are fenced by the database, files by the lease's age alone."""
    runs = small_store(store)
    short = {"gcd.store.lease:TERM": 4, "gcd.store.lease:MARGIN": 3}
    purged = Moment("after", "commit", PURGE, seconds=short)
    with stopped(purged, *CYCLE, uri=store.uri) as first:
        (gone,) = set(runs) - store.runs()
        tree = store.root / "e" / gone
        assert tree.exists()
        time.sleep(1.5)
        pass_elsewhere(store, expires_ms=2**53)

        done = resumed(first)

    assert done.returncode == 11, shown(done)
    assert len([path for path in tree.rglob("*") if path.is_file()]) == 2
    assert store.runs().issuperset(set(runs) - {gone})


def test_a_stalled_transaction_ends_before_the_lease_does() -> None:
    assert IDLE_IN_TRANSACTION < TERM - RENEWAL
    assert MARGIN + RENEWAL < TERM
