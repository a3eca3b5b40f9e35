"""Clocks that jump between cycles: nothing is collected by an age that a jump has made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gcd import clock
from gcd.store import lease
from gcd.store.lease import MARGIN, TERM, Lease
from tests.daemon import cycles, daemon, settings
from tests.mlflow_store import DAY, RealStore, now_ms
from tests.program import collect, command, empty_folder, environment, gcd, shown
from tests.stopper import PURGE, Moment, resumed, stopped

HOUR = 3_600_000
FAKETIME = shutil.which("faketime")
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
MAY_SKIP = os.environ.get("GCD_TEST_REQUIRE_SERVERS") != "1"
WITH_FAKETIME = pytest.mark.skipif(
    FAKETIME is None and MAY_SKIP,
    reason="no faketime here: Debian's package of that name brings it",
)


def skewed(
    shift: str, *arguments: object, uri: str, monotonic: bool = False
) -> subprocess.CompletedProcess[str]:
    """gcd as a process whose clocks are shifted, SQLite's included; the monotonic ones on demand."""
    more = {} if monotonic else {"DONT_FAKE_MONOTONIC": "1"}
    return subprocess.run(
        [str(FAKETIME), "-f", shift, *command(*arguments, uri=uri)],
        cwd=empty_folder(),
        env=environment(more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def readings(store: RealStore) -> list[tuple[str, int, int]]:
    """Boot, uptime and time of each reading that the store remembers."""
    rows = store.database.rows(
        "SELECT name, value FROM alembic_gcd_meta WHERE name LIKE 'clock %' ORDER BY name"
    )
    return [(str(name)[6:], *map(int, str(value).split())) for name, value in rows]


def pretend(store: RealStore, earlier_ms: int, boot: str | None = None) -> None:
    """Let the last cycle have seen the database's clock so much earlier, the uptime left as it was."""
    for name, running, at in readings(store):
        store.sql("DELETE FROM alembic_gcd_meta WHERE name = :name", name=f"clock {name}")
        store.sql(
            "INSERT INTO alembic_gcd_meta (name, value) VALUES (:name, :value)",
            name=f"clock {boot or name}",
            value=f"{running} {at - earlier_ms}",
        )


def deleted_run(store: RealStore) -> str:
    """A run that was deleted just now."""
    experiment = store.client.get_experiment_by_name("e")
    run = store.run(experiment.experiment_id if experiment else store.experiment("e"))
    store.delete(run)
    return run


# -- the host's clock, which is SQLite's -----------------------------------------------------------


@ON_SQLITE
@WITH_FAKETIME
@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("shift", ["+31d", "+40d"])
def test_a_clock_a_month_ahead_collects_nothing(
    store: RealStore, shift: str, monotonic: bool
) -> None:
    run = deleted_run(store)
    assert gcd("gc", "--yes", uri=store.uri).returncode == 0
    before = readings(store)
    tree = store.tree(run)

    done = skewed(shift, "gc", "--yes", uri=store.uri, monotonic=monotonic)

    assert done.returncode == 14, shown(done)
    assert "gone ahead" in done.stderr
    assert "--accept-clock" in done.stderr
    assert store.exists(run)
    assert (tree / "model" / "weights.bin").exists()
    assert readings(store) == before
    again = gcd("gc", "--yes", uri=store.uri)
    assert again.returncode == 0, shown(again)
    collect(store.uri)
    assert not store.exists(run)


@ON_SQLITE
@WITH_FAKETIME
def test_a_plan_by_a_clock_that_jumped_warns_and_doctor_accepts_it(store: RealStore) -> None:
    run = deleted_run(store)
    assert gcd("gc", "--yes", uri=store.uri).returncode == 0
    planned = skewed("+31d", "plan", uri=store.uri)
    assert planned.returncode == 0, shown(planned)
    assert "warning: the database's clock shows" in planned.stderr
    looked = skewed("+31d", "doctor", "--json", uri=store.uri)
    assert looked.returncode == 1
    assert "gone ahead" in looked.stdout
    assert store.exists(run)

    accepted = skewed("+31d", "doctor", "--accept-clock", uri=store.uri)

    assert accepted.returncode == 0, shown(accepted)
    assert "is trusted from now on" in accepted.stdout
    done = skewed("+31d", "gc", "--yes", uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert not store.exists(run)


@ON_SQLITE
@WITH_FAKETIME
def test_a_clock_before_the_newest_deletion_collects_nothing(store: RealStore) -> None:
    old = deleted_run(store)
    store.stamp(old, now_ms() - 10 * DAY)
    assert gcd("gc", "--yes", uri=store.uri).returncode == 0
    deleted_run(store)
    done = skewed("-2d", "gc", "--yes", "--older-than", "1d", uri=store.uri)
    assert done.returncode == 14, shown(done)
    assert "was set back" in done.stderr
    assert store.exists(old)
    assert gcd("gc", "--yes", "--older-than", "1d", uri=store.uri).returncode == 0
    assert not store.exists(old)


@ON_SQLITE
@WITH_FAKETIME
def test_a_clock_that_is_wrong_at_the_first_cycle_can_be_set_right(store: RealStore) -> None:
    """Nothing is deleted later than the clock shows: it was ahead, and is right now."""
    run = deleted_run(store)
    assert skewed("+3h", "gc", "--yes", uri=store.uri).returncode == 0
    assert gcd("gc", "--yes", uri=store.uri).returncode == 0
    assert skewed("+3h", "gc", "--yes", uri=store.uri).returncode == 14
    assert store.exists(run)


# -- any database's clock --------------------------------------------------------------------------


def test_a_clock_that_went_ahead_since_the_last_cycle_is_refused(store: RealStore) -> None:
    """On a server it is the server's clock, measured against this host's uptime."""
    first = deleted_run(store)
    collect(store.uri)
    assert not store.exists(first)
    run = deleted_run(store)
    pretend(store, 2 * HOUR)

    done = collect(store.uri, expect=14)

    assert "by 1h 59m" in done.stderr or "by 2h" in done.stderr, shown(done)
    assert store.exists(run)
    assert cycles(store)[-1] == "failed"
    assert gcd("doctor", "--accept-clock", uri=store.uri).returncode == 0
    collect(store.uri)
    assert not store.exists(run)


def test_a_small_step_another_boot_and_a_bad_row_are_no_reason(store: RealStore) -> None:
    bad = deleted_run(store)
    store.stamp(bad, now_ms() + 20 * DAY)
    for earlier, boot in ((HOUR // 2, None), (-HOUR // 2, None), (30 * DAY, "another")):
        run = deleted_run(store)
        collect(store.uri)
        assert not store.exists(run)
        pretend(store, earlier, boot)
    collect(store.uri)
    assert store.exists(bad)
    assert {each[0] for each in readings(store)} == {clock.boot_id(), "another"}


@pytest.mark.parametrize("boot", [None, "another"])
def test_a_clock_that_was_set_back_below_a_deletion_is_refused(
    store: RealStore, boot: str | None
) -> None:
    collect(store.uri, expect=None)
    old, new = deleted_run(store), deleted_run(store)
    store.stamp(new, now_ms() + 2 * HOUR)
    collect(store.uri)
    assert not store.exists(old), "one stamp in the future is one bad row"
    run = deleted_run(store)
    pretend(store, -3 * HOUR, boot)
    if boot is not None:
        store.sql(
            "DELETE FROM alembic_gcd_meta WHERE name = :name", name=f"clock {clock.boot_id()}"
        )
    done = collect(store.uri, expect=14)
    assert "was set back" in done.stderr
    assert store.exists(run)


def test_a_jump_in_the_middle_of_a_cycle_sweeps_nothing(store: RealStore) -> None:
    """Trees that wait for their delay are not due because the clock says so."""
    run = deleted_run(store)
    tree = store.tree(run)
    moment = Moment("after", "commit", PURGE)
    with stopped(moment, "gc", "--older-than", "0s", "--yes", uri=store.uri) as process:
        pretend(store, 2 * HOUR)
        done = resumed(process)
    assert done.returncode == 14, shown(done)
    assert (tree / "model" / "weights.bin").exists()
    assert gcd("doctor", "--accept-clock", uri=store.uri).returncode == 0
    collect(store.uri)
    assert not tree.exists()


@ON_SQLITE
def test_a_daemon_refuses_and_goes_on_once_the_clock_is_accepted(
    store: RealStore, tmp_path: Path
) -> None:
    collect(store.uri)
    run = deleted_run(store)
    pretend(store, 2 * HOUR)
    with daemon(tmp_path, settings(store)) as running:
        running.ready().tells("gone ahead")
        assert store.exists(run)
        assert gcd("doctor", "--accept-clock", uri=store.uri).returncode == 0
        running.until(lambda: not store.exists(run), "it does not go on")
        assert running.stop() == 0


@ON_SQLITE
def test_a_daemon_that_observes_tells_of_the_jump(store: RealStore, tmp_path: Path) -> None:
    collect(store.uri)
    pretend(store, 2 * HOUR)
    with daemon(tmp_path, settings(store, mode="observe")) as running:
        running.ready().tells("no cycle would be run: the database's clock shows")
        assert running.stop() == 0


# -- a machine that slept --------------------------------------------------------------------------


def test_a_lease_that_was_slept_through_is_not_fresh(
    store: RealStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's time went on while the machine slept; a monotonic clock did not."""
    collect(store.uri)
    engine = store.database.engine()
    held = lease.acquire(engine)
    try:
        assert isinstance(held, Lease)
        assert held.is_fresh()
        awake = clock.boottime
        slept = (TERM - MARGIN).total_seconds() + 1
        monkeypatch.setattr(clock, "boottime", lambda: awake() + slept)
        assert not held.is_fresh()
        held.renew()
        assert held.is_fresh()
    finally:
        monkeypatch.undo()
        held.release()
        engine.dispose()


def test_the_clock_of_time_outs_counts_time_asleep() -> None:
    """CLOCK_BOOTTIME where there is one: it is never behind the clock that stands still."""
    assert clock.boottime() >= clock.monotonic() - 1
    assert abs(clock.uptime() - clock.boottime()) < 5
