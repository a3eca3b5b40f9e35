"""The units of systemd/ in a real systemd, against a store that MLflow made.

They are installed as they are shipped; drop-ins of the tests only shorten times. Root and a writable
cgroup v2 are needed.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.lab.site import DATABASES, Site, opened
from tests.mlflow_store import now_ms, release
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot, differences

ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("server", ["postgresql"], indirect=True)
OFTEN = "every 1s"
WRITABLE = f"[Service]\nReadWritePaths={DATABASES}\n"
"""SQLite's database is a file, for which no sample is shipped."""
MANY = 25
CYCLE, TIMER = "gcd-gc.service", "gcd-gc.timer"
IMPATIENT = "[Service]\nWatchdogSec=3s\nRestartSec=300ms\n"


@pytest.fixture
def site(server: Keeper, database: Database, tmp_path: Path) -> Iterator[Site]:
    """A host with gcd installed, and a store with a run that stays."""
    with opened(server, database, tmp_path) as found:
        found.store.run(found.store.experiment("e"))
        yield found
    release(database.uri)


def as_owner(site: Site, *samples: str, service: str = "gcd.service") -> None:
    """gcd runs as MLflow's user and may write where the store is."""
    site.hand_over()
    site.sample("artifacts", *samples, service=service)
    if site.database.dialect == "sqlite":
        site.drop_in(WRITABLE, service, "sqlite")


def deleted(site: Site, count: int = 1) -> list[str]:
    """Some runs of the store's one experiment, soft-deleted."""
    (experiment,) = site.store.experiments() - {"0"}
    files = {"a/b.txt": b"b"}
    runs = [site.store.run(experiment, metrics=0, files=files) for _ in range(count)]
    site.store.delete(*runs)
    return runs


def snapshot(site: Site) -> Snapshot:
    """The store now."""
    return Snapshot.of(site.database, site.root)


def version(site: Site) -> int:
    """systemd's."""
    found = re.match(r"systemd (\d+)", site.machine.run("systemctl", "--version").stdout)
    assert found
    return int(found[1])


def not_mlflows(site: Site) -> str:
    """The URI of a database that MLflow has never seen."""
    other = site.store.keeper.create()
    other.execute("CREATE TABLE guests (name TEXT)")
    return f"sqlite:///{DATABASES}/{other.name}.db"


def status_line(site: Site) -> str:
    """What `systemctl status gcd` says that it does."""
    return site.machine.show("gcd").get("StatusText", "")


def kernel_status(site: Site, pid: str) -> dict[str, str]:
    """What the kernel says of a process of the machine."""
    lines = site.machine.path(f"proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


@contextmanager
def in_the_middle(site: Site, runs: list[str]) -> Iterator[None]:
    """Stop the cycle between its first and its last batch: it waits for the database's lock."""
    path = site.database.uri.removeprefix("sqlite:///")

    def is_locked() -> bool:
        connection.execute("BEGIN IMMEDIATE")
        (left,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
        if left <= len(runs):
            return True
        connection.execute("ROLLBACK")
        return False

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        site.wait(is_locked, pause=0.002)
        assert set(runs) & {row[0] for row in connection.execute("SELECT run_uuid FROM runs")}
        yield


# -- the daemon --------------------------------------------------------------------------------------


@ON_SQLITE
def test_it_collects_on_schedule_in_its_whole_sandbox(site: Site) -> None:
    runs = deleted(site, 3)
    locked = site.store.tree(runs[0]) / "a"
    before = snapshot(site)
    as_owner(site, "exec", "network", *(["reload-253"] if version(site) >= 253 else []))
    locked.chmod(0o2555)  # as group folders are, and read-only
    site.configure(schedule=OFTEN)

    unit = site.start()

    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    with urllib.request.urlopen(f"http://{site.listen}/healthz", timeout=5) as answer:
        assert answer.status == 200
    status = kernel_status(site, unit["MainPID"])
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    assert status["Uid"].split() == [str(site.owner)] * 4
    assert site.machine.run("stat", "--format=%a %U", "/var/lib/gcd").stdout == "700 mlflow\n"
    site.wait(lambda: "main next 2" in status_line(site))
    site.wait(lambda: site.purged(runs))
    assert before.without(runs).against(snapshot(site)) == []


@ON_SQLITE
def test_a_reload_takes_a_valid_configuration_over_and_no_other(site: Site) -> None:
    runs = deleted(site)
    as_owner(site)
    site.configure(schedule="@yearly")
    unit = site.start()

    def is_told(pattern: str) -> bool:
        return bool(re.search(pattern, site.machine.told("gcd")))

    site.configure(schedule="sometimes")
    site.machine.run("systemctl", "reload", "gcd")
    site.wait(lambda: is_told(r"stays as it was: daemon\.schedule"))
    site.wait(lambda: site.machine.show("gcd")["ActiveState"] == "active")
    assert "-01-01 00:00:00" in status_line(site)
    assert not site.purged(runs)

    site.configure(schedule=OFTEN)
    site.machine.run("systemctl", "reload", "gcd")
    site.wait(lambda: is_told("reloaded: gcd looks after main"))
    site.wait(lambda: site.purged(runs))
    after = site.machine.show("gcd")
    assert (after["MainPID"], after["NRestarts"]) == (unit["MainPID"], "0")


@ON_SQLITE
def test_one_that_stands_still_is_killed_and_the_next_one_goes_on(site: Site) -> None:
    runs = deleted(site, MANY)
    before = snapshot(site)
    as_owner(site)
    site.drop_in(IMPATIENT)
    site.configure(schedule=OFTEN, more="[purge]\nbatch_runs = 1")
    stood = site.start()
    with in_the_middle(site, runs):
        site.machine.run("kill", "-STOP", stood["MainPID"])

    site.wait(lambda: site.machine.show("gcd")["NRestarts"] == "1")
    site.wait(lambda: site.machine.show("gcd")["ActiveState"] == "active")
    gone = set(runs) - site.store.runs()
    assert 0 < len(gone) < MANY
    # Of what was purged no row is left; files may be, and the journal has them.
    assert differences(before.without(gone).tables, snapshot(site).tables) == []
    # The minute passes that the lease of the dead one lives.
    site.database.execute("UPDATE alembic_gcd_lease SET expires_ms = 0")
    site.wait(lambda: site.purged(runs))

    assert before.without(runs).against(snapshot(site)) == []
    told = site.machine.told("gcd")
    assert "Watchdog timeout" in told
    assert "Fatal Python error: Aborted" in told  # where it stood, for the operator
    unit = site.machine.show("gcd")
    assert (unit["NRestarts"], unit["ActiveState"]) == ("1", "active")
    assert unit["MainPID"] != stood["MainPID"]


@ON_SQLITE
def test_a_stop_in_the_middle_loses_nothing(site: Site) -> None:
    runs = deleted(site, MANY)
    before = snapshot(site)
    as_owner(site)
    site.configure(schedule="@yearly", run_at_start=True, more="[purge]\nbatch_runs = 1")
    site.start()
    with in_the_middle(site, runs):
        site.machine.run("systemctl", "stop", "--no-block", "gcd")
        site.wait(lambda: site.machine.show("gcd")["ActiveState"] == "deactivating")
    site.wait(lambda: site.machine.show("gcd")["ActiveState"] != "deactivating")

    unit = site.machine.show("gcd")
    assert (unit["ActiveState"], unit["Result"]) == ("inactive", "success")
    gone = set(runs) - site.store.runs()
    assert 0 < len(gone) < MANY
    assert before.without(gone).against(snapshot(site)) == []
    assert site.database.rows("SELECT holder FROM alembic_gcd_lease") == [(None,)]

    site.start()
    site.wait(lambda: site.purged(runs))
    assert before.without(runs).against(snapshot(site)) == []


@ON_SQLITE
@pytest.mark.parametrize(
    ("schedule", "code"), [("sometimes", 10), ("@daily", 14)], ids=["configuration", "refused"]
)
def test_what_a_restart_would_not_mend_is_not_restarted(
    site: Site, schedule: str, code: int
) -> None:
    site.configure(not_mlflows(site), schedule=schedule)

    unit = site.start(ok=False)

    assert (unit["ExecMainStatus"], unit["Result"]) == (str(code), "exit-code")
    assert (unit["ActiveState"], unit["SubState"], unit["NRestarts"]) == ("failed", "failed", "0")
    errors = [e["MESSAGE"] for e in site.machine.journal("gcd") if e["PRIORITY"] == "3"]
    assert any(message.startswith("gcd: ") for message in errors), site.machine.told("gcd")


@ON_SQLITE
def test_the_journal_has_priorities_and_lines_of_json(site: Site) -> None:
    as_owner(site)
    other = f"[stores.other]\nbackend_store_uri = '{not_mlflows(site)}'"
    site.configure(schedule=OFTEN, more=other)
    pid = site.start()["MainPID"]

    site.wait(lambda: "cycle 1 done" in site.machine.told("gcd"))

    entries = [e for e in site.machine.journal("gcd") if e.get("_PID") == pid]
    lines = [(json.loads(entry["MESSAGE"]), entry["PRIORITY"]) for entry in entries]
    priorities = {"error": "3", "warning": "4", "info": "6"}
    assert all(priority == priorities[line["level"]] for line, priority in lines)
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"gcd"}
    (done,) = [line for line, _ in lines if line["event"].startswith("cycle 1 done")]
    assert (done["store"], done["cycle"]) == ("main", 1)
    assert "3" in {p for line, p in lines if line.get("store") == "other"}


@ON_POSTGRESQL
def test_a_secret_is_a_credential_that_its_user_cannot_read(site: Site) -> None:
    """The test's server trusts everybody, so what is secret here is the database's name."""
    runs = deleted(site)
    before = snapshot(site)
    as_owner(site, "credentials", "network")
    secret = "${credential:mlflow-db-password}"
    site.configure(site.uri.replace(site.database.name, secret), schedule=OFTEN)
    assert site.start(ok=False)["ExecMainStatus"] == "243"  # there is none

    place = "/etc/gcd/credentials/mlflow-db-password"
    site.machine.write(place, site.database.name + "\n", 0o600)
    site.machine.run("systemctl", "stop", "gcd")  # it would be tried again after a while
    unit = site.start()
    site.wait(lambda: site.purged(runs))

    assert before.without(runs).against(snapshot(site)) == []
    environ = site.machine.path(f"proc/{unit['MainPID']}/environ").read_text()
    assert "CREDENTIALS_DIRECTORY=" in environ
    assert site.database.name not in environ


# -- one cycle, and its timer ------------------------------------------------------------------------


@ON_SQLITE
def test_the_timer_makes_up_for_a_night_that_the_host_was_off(site: Site) -> None:
    runs = deleted(site)
    before = snapshot(site)
    as_owner(site, service=CYCLE)
    site.drop_in("[Timer]\nRandomizedDelaySec=0\nAccuracySec=1s\n", TIMER)
    site.configure()
    site.start(TIMER)  # for the first time: there is no night to make up for
    assert site.machine.show(CYCLE)["ExecMainStartTimestampMonotonic"] == "0"
    site.machine.run("systemctl", "stop", TIMER)
    site.machine.run("touch", "-d", "2 days ago", f"/var/lib/systemd/timers/stamp-{TIMER}")

    assert site.start(TIMER)["ActiveState"] == "active"

    site.wait(lambda: site.purged(runs), CYCLE)
    site.wait(lambda: site.machine.show(CYCLE)["ActiveState"] == "inactive", CYCLE)
    assert site.machine.show(CYCLE)["Result"] == "success"
    assert before.without(runs).against(snapshot(site)) == []
    assert site.machine.show(TIMER)["NextElapseUSecRealtime"].split()[2] == "03:00:00"


@ON_SQLITE
def test_the_result_of_one_cycle_is_the_state_of_its_unit(site: Site) -> None:
    (stuck,) = deleted(site)
    as_owner(site, service=CYCLE)
    folder = site.store.tree(stuck) / "a"
    os.chown(folder, 0, 0)  # somebody else's
    site.configure()

    assert outcome(site) == ("3", "failed")
    assert site.trees([stuck])
    entries = [e for e in site.machine.journal(CYCLE) if "Permission denied" in e["MESSAGE"]]
    assert {entry["PRIORITY"] for entry in entries} == {"4"}

    os.chown(folder, site.owner, site.owner)
    site.machine.run("runuser", "-u", "mlflow", "--", "/opt/gcd/bin/gcd", "retry")
    assert outcome(site) == ("0", "inactive")
    assert not site.trees([stuck])

    site.database.execute(
        "UPDATE alembic_gcd_lease SET holder = 'elsewhere pid 1 [- - 1]',"
        f" acquired_ms = 0, expires_ms = {now_ms() + 3_000_000}"
    )
    assert outcome(site) == ("0", "inactive")  # as 11 counts
    assert "another collector is at work" in site.machine.told(CYCLE)
    site.configure(not_mlflows(site))
    assert outcome(site) == ("14", "failed")
    site.configure(more="[nonsense]")
    assert outcome(site) == ("10", "failed")


def outcome(site: Site) -> tuple[str, str]:
    """Run one cycle by its unit: its exit code, which systemd forgets where all is well; and the state."""
    unit = site.start(CYCLE, ok=False)
    return unit["ExecMainStatus"], unit["ActiveState"]
