"""A host of gcd's: a machine on which it is installed as systemd/gcd.service says, and a store of MLflow's.

It must never change a unit that is installed: what a test needs otherwise is a drop-in.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab.machine import Machine, booted
from tests.mlflow_store import RealStore, local_path
from tests.servers import Database, Keeper, Sqlite

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
DATABASES = "/srv/mlflow/database"
ARTIFACTS = "/srv/mlflow/artifacts"
"""As the drop-in samples have it."""
OWNER = "mlflow"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PREFIX = Path(sys.base_prefix)
IS_SYSTEMS = str(PREFIX) == "/usr"
HOME = "/usr" if IS_SYSTEMS else "/opt/gcd/python"
"""Where the interpreter is in the machine: one below /root or /home is of no use to a unit."""
PROGRAM = """#!/opt/gcd/bin/python
import sys

sys.path.insert(0, "/opt/gcd/source")
from gcd.cli import main

main(prog_name="gcd")
"""


class MountedStore(RealStore):
    """A store whose artifacts are elsewhere for this process than its database says."""

    def experiment(self, name: str, location: str | None = None) -> str:
        """A new experiment, which logs below the place that the machine knows."""
        return super().experiment(name, location or f"file://{ARTIFACTS}/{name}")

    def tree(self, run: str) -> Path:
        """The run's artifact folder, as it is here."""
        there = local_path(self.client.get_run(run).info.artifact_uri)
        return self.root / there.relative_to(ARTIFACTS)


class Site:
    """gcd's host."""

    def __init__(self, machine: Machine, keeper: Keeper, database: Database, root: Path) -> None:
        self.machine, self.database, self.root = machine, database, root
        self.store = MountedStore(keeper, database, root)

    # -- installing --------------------------------------------------------------------------------

    def install(self) -> None:
        """What the head of gcd.service tells to do, and MLflow's user."""
        machine = self.machine
        machine.write("/opt/gcd/pyvenv.cfg", f"home = {HOME}/bin\nversion = {sys.version[:4]}\n")
        machine.write("/opt/gcd/bin/gcd", PROGRAM, 0o755)
        machine.run("ln", "-s", f"{HOME}/bin/{PYTHON}", "/opt/gcd/bin/python")
        machine.write("/etc/ld.so.conf.d/gcd.conf", f"{HOME}/lib\n")  # of a Python of its own
        machine.run("ldconfig")
        machine.write("/etc/sysusers.d/gcd.conf", (UNITS / "gcd.sysusers").read_text())
        machine.write("/etc/sysusers.d/mlflow.conf", f'u {OWNER} - "MLflow"\n')
        machine.run("systemd-sysusers")
        for name in ("gcd.service", "gcd-gc.service", "gcd-gc.timer"):
            machine.write(f"/etc/systemd/system/{name}", (UNITS / name).read_text())
        machine.run("systemctl", "daemon-reload")

    def sample(self, *names: str, service: str = "gcd.service") -> None:
        """Install drop-ins that are shipped, for this interpreter."""
        for name in names:
            text = (UNITS / f"gcd.service.d/{name}.conf.sample").read_text()
            text = text.replace("/usr/bin/python3.11", f"{HOME}/bin/{PYTHON}")
            self.machine.write(f"/etc/systemd/system/{service}.d/{name}.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def drop_in(self, text: str, unit: str = "gcd.service", name: str = "test") -> None:
        """A drop-in of the test's own."""
        self.machine.write(f"/etc/systemd/system/{unit}.d/{name}.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def configure(self, uri: str | None = None, more: str = "", **daemon: object) -> None:
        """Write gcd.toml: one store, all that is deleted is old enough, and keys of [daemon]."""
        keys = {"mode": "collect", "jitter": "0s", "sweep_delay": "0s", "max_share": 1.0}
        keys |= {"listen": self.listen, **daemon}
        lines = ["[stores.main]", f"backend_store_uri = '{uri or self.uri}'"]
        lines += ["[retention]", "older_than = '0s'", "[daemon]"]
        lines += [f"{key} = {value!r}" for key, value in keys.items()]
        text = "\n".join([*lines, more])
        self.machine.write("/etc/gcd/gcd.toml", re.sub(r"= (True|False)\b", lower, text))

    @property
    def uri(self) -> str:
        """The database as the machine knows it."""
        if self.database.dialect != "sqlite":
            return self.database.uri
        return f"sqlite:///{DATABASES}/{self.database.name}.db"

    @cached_property
    def listen(self) -> str:
        """A port that nobody listens to: the network is the host's."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"

    # -- MLflow --------------------------------------------------------------------------------------

    @property
    def owner(self) -> int:
        """The uid of MLflow's user, which is its gid too."""
        return int(self.machine.run("id", "-u", OWNER).stdout)

    def hand_over(self) -> None:
        """Everything of the store's belongs to MLflow's user, as if its server had made it."""
        gid = int(self.machine.run("id", "-g", OWNER).stdout)
        paths = [self.root, *self.root.rglob("*")]
        if self.database.dialect == "sqlite":
            paths.append(Path(self.database.uri.removeprefix("sqlite:///")))
        for path in paths:
            mode = path.lstat().st_mode
            os.chown(path, self.owner, gid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(mode & 0o7777)  # chown takes setgid off

    def purged(self, runs: list[str]) -> bool:
        """Whether rows and files of all these runs are gone."""
        return not set(runs) & self.store.runs() and not self.trees(runs)

    def trees(self, runs: list[str]) -> list[Path]:
        """What there is of the folders of these runs."""
        return [path for path in self.root.glob("*/*") if path.name in runs]

    # -- systemd -------------------------------------------------------------------------------------

    def start(self, unit: str = "gcd", *, ok: bool = True) -> dict[str, str]:
        """`systemctl start`, and what has become of the unit."""
        done = self.machine.run("systemctl", "start", unit, ok=False)
        assert not ok or done.returncode == 0, done.stderr + self.machine.told(unit)
        return self.machine.show(unit)

    def wait(self, happened: Callable[[], bool], unit: str = "gcd", pause: float = 0.05) -> None:
        """Wait until something has happened, looking again after a pause."""
        self.machine.wait(happened, unit, pause)


def lower(found: re.Match[str]) -> str:
    """A truth value as TOML has it."""
    return found[0].lower()


@contextmanager
def opened(keeper: Keeper, database: Database, folder: Path) -> Iterator[Site]:
    """A host with gcd installed and a store in this database; it is gone at the end."""
    artifacts, lab = folder / "artifacts", folder / "lab"
    for each in (artifacts, lab):
        each.mkdir()
    with booted(lab, {**program(), **places(keeper.server, artifacts)}) as machine:
        site = Site(machine, keeper, database, artifacts)
        site.install()
        yield site


def program() -> Mapping[str, Path]:
    """gcd with what it needs, as the tests have it."""
    found = {
        f"/opt/gcd/lib/{PYTHON}/site-packages:ro": Path(sysconfig.get_path("purelib")),
        "/opt/gcd/source/gcd:ro": ROOT / "gcd",
    }
    return found if IS_SYSTEMS else {f"{HOME}:ro": PREFIX, **found}


def places(server: Any, artifacts: Path) -> Mapping[str, Path]:
    """The store's folders."""
    found = {ARTIFACTS: artifacts}
    return {**found, DATABASES: server.folder} if isinstance(server, Sqlite) else found
