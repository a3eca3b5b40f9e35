"""`gcd daemon` as a process: with a manager like systemd around it, and somebody who scrapes it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests import nursery
from tests.mlflow_store import RealStore
from tests.program import command, empty_folder, environment
from tests.servers import Database
from tests.stopper import Moment, wait_until

STOPPER = Path(__file__).with_name("stopper.py")
NEVER = Moment("never")
PATIENCE = 30.0
AT_ONCE: Mapping[str, object] = {
    "mode": "collect",
    "schedule": "every 1s",
    "jitter": "0s",
    "sweep_delay": "0s",
    "max_share": 1.0,
}
"""[daemon] of a daemon that collects whenever there is something."""
Settings = Mapping[str, Mapping[str, object]]


def settings(*stores: RealStore, listen: str = "", **daemon: object) -> dict[str, dict[str, Any]]:
    """A configuration for stores called a, b, c...; `daemon` are keys of [daemon]."""
    found: dict[str, dict[str, Any]] = {
        f"stores.{name}": {"backend_store_uri": store.uri}
        for name, store in zip("abcdef", stores, strict=False)
    }
    found["retention"] = {"older_than": "0s"}
    found["log"] = {"level": "debug", "format": "json"}
    found["daemon"] = {**AT_ONCE, "listen": listen, **daemon}
    return found


def write(path: Path, wanted: Settings) -> Path:
    """The configuration as a file."""
    lines = []
    for section, keys in wanted.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Manager:
    """The end of the notification socket that systemd holds."""

    def __init__(self) -> None:
        self.address = f"@gcd-test-{secrets.token_hex(8)}"
        self.said: list[tuple[float, str]] = []
        """When, by the monotonic clock, and what."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:])
        self._socket.settimeout(0.1)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._is_closed.is_set():
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.said.append((time.monotonic(), text))

    def close(self) -> None:
        """Listen no more."""
        self._is_closed.set()
        self._thread.join()
        self._socket.close()

    def heard(self, start: str) -> list[str]:
        """Every message that begins like this."""
        return [text for _, text in list(self.said) if text.startswith(start)]

    def times(self, start: str) -> list[float]:
        """When they came."""
        return [at for at, text in list(self.said) if text.startswith(start)]

    @property
    def status(self) -> str:
        """What it says that it is doing."""
        return (self.heard("STATUS=") or ["STATUS="])[-1].removeprefix("STATUS=")


@dataclass
class Running:
    """A daemon that runs."""

    process: subprocess.Popen[bytes]
    config: Path
    log: Path
    manager: Manager
    port: int
    pauses: list[Path] = field(default_factory=list)

    # -- what it says ----------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]

    def events(self, *, store: str | None = None) -> list[str]:
        """What its log tells, of one store if it is named."""
        return [
            str(line["event"])
            for line in self.lines()
            if store is None or line.get("store") == store
        ]

    def tells(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until it has told something."""
        self.until(lambda: text in self.log.read_text(), f"it never tells {text!r}", patience)

    def until(self, happened: Any, otherwise: str, patience: float = PATIENCE) -> None:
        """Wait until something has happened, and show its log where it does not."""
        try:
            wait_until(happened, otherwise, patience)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-4000:]}") from None

    def ready(self, number: int = 1) -> Running:
        """Wait until it has said for the n-th time that it is ready."""
        self.until(
            lambda: len(self.manager.heard("READY=1")) >= number or self.process.poll() is not None,
            "it is never ready",
        )
        assert self.process.poll() is None, self.log.read_text()
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an answer by HTTP."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=10
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def scrape(self) -> dict[str, float]:
        """Every sample, under its name and labels as they are written."""
        status, text = self.get("/metrics")
        assert status == 200, text
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    # -- what is done to it ----------------------------------------------------------------------

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def reload(self, wanted: Settings | None = None) -> None:
        """Let it read its configuration again, a new one if that is given."""
        before = len(self.manager.heard("READY=1"))
        if wanted is not None:
            write(self.config, wanted)
        self.signal(signal.SIGHUP)
        self.ready(before + 1)

    def ended(self, within: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(within)

    def stop(self, within: float = PATIENCE) -> int:
        """Ask it to stop, and wait; its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended(within)

    def kill(self) -> None:
        """End it on the spot."""
        self.process.kill()
        self.process.wait()


@contextmanager
def daemon(
    folder: Path,
    wanted: Settings,
    moment: Moment = NEVER,
    *,
    env: Mapping[str, str] | None = None,
    watchdog: float | None = None,
    name: str = "gcd",
) -> Iterator[Running]:
    """A daemon with this configuration, in which a moment may be chosen; killed at the end."""
    config = write(folder / f"{name}.toml", wanted)
    log = folder / f"{name}.log"
    manager = Manager()
    more = {"NOTIFY_SOCKET": manager.address, **(env or {})}
    if watchdog is not None:
        more["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
    words = command("daemon", "--config", config, driver=STOPPER)
    with log.open("wb") as err:
        process = nursery.popen(
            [*words[:2], json.dumps(asdict(moment)), *words[2:]],
            cwd=empty_folder(),
            env=environment(more),
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
        )
    listen = str(wanted.get("daemon", {}).get("listen", ""))
    port = int(listen.rpartition(":")[2] or 0)
    try:
        yield Running(process, config, log, manager, port)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        manager.close()


def refused(folder: Path, wanted: Settings, moment: Moment = NEVER) -> tuple[int, str]:
    """Exit code and words of a daemon that does not start."""
    with daemon(folder, wanted, moment) as running:
        code = running.ended()
        assert running.manager.heard("READY=1") == []
        return code, running.log.read_text()


# -- what is found in the store --------------------------------------------------------------------


def own_tables(database: Database) -> list[str]:
    """The tables that gcd has made."""
    with database.begin() as conn:
        return [t for t in sa.inspect(conn).get_table_names() if t.startswith("alembic_gcd")]


def cycles(store: RealStore) -> list[str]:
    """How each cycle ended, oldest first; none where gcd has no tables yet."""
    if "alembic_gcd_cycle" not in own_tables(store.database):
        return []
    return [
        str(row[0])
        for row in store.database.rows("SELECT state FROM alembic_gcd_cycle ORDER BY id")
    ]


def purged(store: RealStore) -> Counter[str]:
    """How many entries the journal has of each entity."""
    return Counter(
        str(row[0]) for row in store.database.rows("SELECT entity_id FROM alembic_gcd_journal")
    )


def next_due(store: RealStore) -> int | None:
    """When the store says that its next cycle is due, in milliseconds."""
    query = "SELECT value FROM alembic_gcd_meta WHERE name = 'next_due_ms'"
    found = store.database.rows(query)
    return int(str(found[0][0])) if found else None


def set_due(store: RealStore, at_ms: float) -> None:
    """Let the store say something else; gcd's tables must be there."""
    store.database.execute("DELETE FROM alembic_gcd_meta WHERE name = 'next_due_ms'")
    store.database.execute(
        "INSERT INTO alembic_gcd_meta (name, value) VALUES ('next_due_ms', :at)", at=str(int(at_ms))
    )


def descriptors(process: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))
