"""SIGTERM and SIGINT: the batch in hand is finished, the rest is for the next cycle."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.mlflow_store import RealStore
from tests.program import collect, shown, start
from tests.snapshot import Snapshot
from tests.stopper import BEGUN, PURGE, Moment, ended, resumed, started, stopped, wait_until

CYCLE = ("gc", "--older-than", "0s", "--yes")
BATCH = 3
SMALL = {"GCD_PURGE__BATCH_RUNS": str(BATCH)}
SECOND_BATCH = Moment("before", "commit", PURGE, number=3)
"""After the canary and one batch."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SIGNALS = pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
AT_ONCE = 10
"""Seconds that "at once" may take on a slow machine."""


def big_store(store: RealStore, count: int = 20) -> list[str]:
    """Many deleted runs and a live one."""
    experiment = store.experiment("e")
    store.run(experiment)
    runs = [store.run(experiment) for _ in range(count)]
    store.delete(*runs)
    return runs


def test_the_batch_in_hand_is_finished_and_the_rest_untouched(store: RealStore) -> None:
    runs = big_store(store)
    before = Snapshot.of(store.database, store.root)
    for number, (signum, code) in enumerate(CODES.items(), start=1):
        with stopped(SECOND_BATCH, *CYCLE, uri=store.uri, env=SMALL) as process:
            process.send_signal(signum)
            done = resumed(process)
        assert done.returncode == code, shown(done)
        assert "stopping after the batch in hand" in done.stderr
        assert "Traceback" not in done.stderr
        gone = set(runs) - store.runs()
        assert len(gone) == number * (1 + 2 * BATCH)
        assert before.without(gone).against(Snapshot.of(store.database, store.root)) == []
        cycles = store.database.rows("SELECT state FROM alembic_gcd_cycle")
        assert cycles == [("interrupted",)] * number
        assert store.database.rows("SELECT holder FROM alembic_gcd_lease") == [(None,)]

    collect(store.uri)

    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_a_giant_is_left_for_the_next_cycle(store: RealStore) -> None:
    experiment = store.experiment("e")
    giant = store.run(experiment, metrics=5000)
    store.delete(giant)
    before = Snapshot.of(store.database, store.root)
    small = {"GCD_PURGE__BATCH_ROWS": "1000"}
    moment = Moment("after", "commit", r"DELETE FROM metrics\b")
    with stopped(moment, *CYCLE, uri=store.uri, env=small) as process:
        process.terminate()
        done = resumed(process)
    assert done.returncode == 143, shown(done)
    assert store.database.rows("SELECT rows_left FROM alembic_gcd_journal") == [(2,)]
    assert store.database.scalar("SELECT COUNT(*) FROM metrics") == 4003
    collect(store.uri, env=small)
    assert before.without([giant]).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
@SIGNALS
def test_a_second_signal_ends_at_once(store: RealStore, signum: signal.Signals) -> None:
    """Not even the trees of the batch in hand are waited for: they are in the journal."""
    runs = big_store(store)
    before = Snapshot.of(store.database, store.root)
    with started(Moment("never", hangs_after=2), *CYCLE, uri=store.uri) as process:
        wait_until(lambda: len(store.runs()) < 5, "nothing is purged")
        process.send_signal(signum)
        time.sleep(2)  # two signals that arrive together are one
        assert process.poll() is None
        process.send_signal(signum)
        done = ended(process, within=AT_ONCE)
    assert done.returncode == CODES[signum], shown(done)
    assert "Traceback" not in done.stderr
    collect(store.uri)
    assert before.without(runs).against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_one_that_waits_for_the_lease_stops_when_it_is_told(store: RealStore) -> None:
    runs = big_store(store, 2)
    with stopped(Moment("after", "commit", BEGUN), *CYCLE, uri=store.uri) as holder:
        waiting = start(*CYCLE, "--wait", "10m", uri=store.uri)
        query = "SELECT wanted_ms FROM alembic_gcd_lease"
        wait_until(lambda: store.database.scalar(query) is not None, "it does not wait")
        waiting.terminate()
        try:
            waiting.wait(AT_ONCE)
        except subprocess.TimeoutExpired:
            waiting.kill()
        _, err = waiting.communicate()
        assert waiting.returncode == 143, err
        assert store.runs().issuperset(runs)
        assert resumed(holder).returncode == 0


@ON_SQLITE
@SIGNALS
def test_before_anything_is_purged_nothing_is(store: RealStore, signum: signal.Signals) -> None:
    runs = big_store(store, 3)
    before = Snapshot.of(store.database, store.root)
    with stopped(Moment("after", "commit", BEGUN), *CYCLE, uri=store.uri) as process:
        process.send_signal(signum)
        done = resumed(process)
    assert done.returncode == CODES[signum], shown(done)
    assert before.against(Snapshot.of(store.database, store.root)) == []
    collect(store.uri)
    assert not store.runs() & set(runs)
