"""A machine with a real systemd for one test: namespaces of their own over a throwaway overlay of `/`.

It must never leave a process, a mount or a control group behind, nor change a file of the host but
those of the folders that it is given. The network is the host's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from tests.servers import require

BOOT = Path(__file__).with_name("boot.sh")
PATIENCE = 30.0
NAMESPACES = ("--pid", "--mount", "--cgroup", "--uts", "--ipc")
PROGRAMS = {"systemctl": "systemd", "journalctl": "systemd", "kill": "procps"}


@cache
def obstacle() -> str | None:
    """Why no machine can be booted here, None where one can."""
    if os.geteuid() != 0:
        return "a private systemd needs root"
    try:
        control_group("gcd-lab-probe").rmdir()
    except (OSError, LookupError) as error:
        return f"a private systemd needs a writable cgroup v2: {error}"
    mount = ["mount", "-t", "tmpfs", "probe", "/mnt"]
    words = ["unshare", *NAMESPACES, "--fork", "--kill-child", *mount]
    probe = subprocess.run(words, capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"a private systemd needs namespaces: {probe.stderr.strip()}"
    return None


def control_group(name: str) -> Path:
    """A new control group of the unified hierarchy. Raises OSError, LookupError."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    place = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if place is None:
        raise LookupError("none is mounted")
    group = place / name
    group.mkdir()
    return group


class Machine:
    """A running machine."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self.pid = folder, pid

    def path(self, place: str) -> Path:
        """Where a place in the machine is for this process; no link of it may be absolute."""
        return Path(f"/proc/{self.pid}/root") / place.lstrip("/")

    def write(self, place: str, text: str, mode: int = 0o644) -> None:
        """Put a file into it."""
        path = self.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in it as root, to its end; it has to succeed unless `ok` is False."""
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES, "--"]
        done = subprocess.run(
            [*enter, *map(str, words)],
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or not ok, f"{words}: {done.stdout}{done.stderr}"
        return done

    def show(self, unit: str) -> dict[str, str]:
        """The properties of a unit."""
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str) -> list[dict[str, str]]:
        """What the journal has of a unit, the oldest first."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "--unit", unit, "--output=json", "--no-pager").stdout
        return [json.loads(line) for line in lines.splitlines()]

    def told(self, unit: str) -> str:
        """The messages of a unit, and of systemd about it."""
        return "\n".join(str(entry["MESSAGE"]) for entry in self.journal(unit))

    def wait(self, happened: Callable[[], bool], unit: str, pause: float = 0.05) -> None:
        """Wait until something has happened; fail with the unit's journal where it does not."""
        until = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < until, f"in vain\n{self.told(unit)}"
            time.sleep(pause)


@contextmanager
def booted(folder: Path, binds: Mapping[str, Path]) -> Iterator[Machine]:
    """A machine with these folders in it, each by its place, where ":ro" means read-only.

    The test is skipped where none can be had.
    """
    why = obstacle()
    if why is not None:
        pytest.skip(why)
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            require(f"no {program} (Debian package {package})")
    group = control_group(f"gcd-lab-{os.getpid()}-{time.monotonic_ns()}")
    pairs = [word for place, source in binds.items() for word in (str(source), place)]
    # It joins the group first, to be at the top of it inside; and it dies with this process.
    enter = f'echo $$ >"{group}/cgroup.procs" && exec setpriv --pdeathsig=KILL "$@"'
    words = ["sh", "-c", enter, "sh", "unshare", *NAMESPACES, "--fork", "--kill-child"]
    with (folder / "console").open("w+") as console:
        supervisor = subprocess.Popen(
            [*words, str(BOOT), str(folder), *pairs],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield up(folder, supervisor)
        finally:
            supervisor.kill()
            supervisor.wait()
            dismantle(group)


def up(folder: Path, supervisor: subprocess.Popen[bytes]) -> Machine:
    """Wait until systemd has started what it starts by itself."""
    until = time.monotonic() + PATIENCE
    state = ""
    while state not in ("running", "degraded"):
        gone = supervisor.poll() is not None or time.monotonic() > until
        assert not gone, f"no systemd ({state}): {(folder / 'console').read_text()}"
        time.sleep(0.05)
        with suppress(OSError, ValueError):
            machine = Machine(folder, int((folder / "pid").read_text()))
            if Path(f"/proc/{machine.pid}/comm").read_text().strip() == "systemd":
                state = machine.run("systemctl", "is-system-running", ok=False).stdout.strip()
    return machine


def dismantle(group: Path) -> None:
    """Remove a control group once the last process in it has died, which the kernel sees to."""
    until = time.monotonic() + PATIENCE
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            for pid in Path(folder, "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with suppress(OSError):  # busy
                os.rmdir(folder)
        assert time.monotonic() < until, f"{group} is still busy"
        time.sleep(0.02)
