"""A storm of clients against two collectors without an age: nothing that was acknowledged loses a part."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.daemon import daemon, settings
from tests.mlflow_store import RealStore
from tests.program import collect, shown
from tests.storm import Storm, rage

CLIENTS = 6
SMALL = {"GCD_PURGE__BATCH_RUNS": "20"}


def weather(store: RealStore, folder: Path, seconds: float, enough: int) -> Storm:
    """A storm, with `gcd gc` in a loop and a daemon beside it; all that must stay is looked at."""
    storm = Storm(store, seconds, enough, patience=600)

    def collector() -> None:
        while not storm.is_over():
            done = collect(store.uri, expect=None, env=SMALL)
            storm.done[f"exit {done.returncode}"] += 1
            if done.returncode not in (0, 3, 11) or "Traceback" in done.stderr:
                storm.problems.append(shown(done))
            time.sleep(0.2)

    wanted = settings(store, sweep_delay="1s") | {"purge": {"batch_runs": 20}}
    wanted["log"] = {"level": "info", "format": "json"}
    with store.as_tracking(), daemon(folder, wanted) as running:
        running.ready()
        rage(storm, CLIENTS, [collector])
        assert running.stop(60) == 0
        assert "Traceback" not in running.log.read_text()
    for _ in range(2):  # what the daemon left for later is due by now
        time.sleep(1.5)
        done = collect(store.uri, expect=None)
        assert done.returncode in (0, 3), shown(done)
    storm.check_all()
    storm.close()
    print(f"{store.database.dialect}: {storm.acknowledged:,} changes acknowledged")
    for name, count in sorted(storm.done.items()):
        print(f"  {count:6,}  {name}")
    return storm


def settle(storm: Storm) -> None:
    """Nothing was lost, and enough went on for that to mean something."""
    assert storm.problems == [], "\n".join(storm.problems)
    assert storm.has_enough(), storm.done


@pytest.mark.timeout(1200)
def test_nothing_acknowledged_loses_a_part_in_a_storm(store: RealStore, tmp_path: Path) -> None:
    settle(weather(store, tmp_path, 10, 100))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_acknowledged_loses_a_part_in_a_storm_of_minutes(
    store: RealStore, tmp_path: Path
) -> None:
    settle(weather(store, tmp_path, 300, 2000))
