"""systemd understands the units, and finds them as closed as they are meant to be."""

from __future__ import annotations

import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from gcd.errors import ConfigError, FuseBlown, LeaseHeld, StoreRefused, UsageError
from tests.contract.shipped import SYSTEMD, check_call, run, shutdown_timeout

SERVICES = ("gcd.service", "gcd-gc.service")
UNITS = (*SERVICES, "gcd-gc.timer")
PROGRAM = "/opt/gcd/bin/gcd"
DROP_INS = SYSTEMD / "gcd.service.d"
FROM_253 = "reload-253.conf"
OF_THE_DAEMON = {FROM_253, "hooks.conf"}
"""Drop-ins that say nothing to gcd-gc.service."""
EXPOSURE = 1.3

Unit = dict[str, list[str]]


def read(text: str, section: str = "Service") -> Unit:
    """The keys of a section, each with all of its values."""
    found: Unit = {}
    where = ""
    for line in text.splitlines():
        if line.startswith("["):
            where = line.strip("[]")
        elif where == section and line and line[0] != "#":
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


def analyze(*words: object) -> tuple[int, str, str]:
    """systemd-analyze: exit code, output, errors."""
    done = run("systemd-analyze", "systemd", *words)
    return done.returncode, done.stdout, done.stderr


def version() -> int:
    """systemd's."""
    found = re.match(r"systemd (\d+)", analyze("--version")[1])
    assert found
    return int(found[1])


def span(text: str) -> timedelta:
    """A time span as systemd reads it."""
    found = re.search(r".s: (\d+)$", analyze("timespan", text)[1], re.MULTILINE)
    assert found, text
    return timedelta(microseconds=int(found[1]))


def exposure(unit: Path) -> float:
    """How open systemd finds a service: 0 is closed, 10 is wide open."""
    code, out, errors = analyze("security", "--offline=true", "--threshold=100", unit)
    found = re.search(rf"Overall exposure level for {re.escape(unit.name)}: ([0-9.]+)", out)
    assert code == 0, errors
    assert found, out + errors
    return float(found[1])


def judged(unit: Path) -> str:
    """What `systemd-analyze verify` has to say; its exit code is 0 for unknown keys."""
    code, out, errors = analyze("verify", "--man=no", unit)
    return out + errors or ("" if code == 0 else f"exit {code}")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units; the program, which is not installed here, is one that is there."""
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(text.replace(f"={PROGRAM} ", f"={shutil.which('true')} "))
    return tmp_path


@pytest.fixture
def with_drop_ins(units: Path) -> Path:
    """The same with every drop-in that this systemd can know."""
    for service in SERVICES:
        folder = units / f"{service}.d"
        folder.mkdir()
        for sample in DROP_INS.iterdir():
            name = sample.name.removesuffix(".sample")
            if service != "gcd.service" and name in OF_THE_DAEMON:
                continue
            if name != FROM_253 or version() >= 253:
                shutil.copyfile(sample, folder / name)
    return units


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_every_line(units: Path, name: str) -> None:
    assert judged(units / name) == ""


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_understands_every_drop_in(with_drop_ins: Path, name: str) -> None:
    assert judged(with_drop_ins / name) == ""


def test_a_line_that_it_does_not_understand_is_found(units: Path) -> None:
    with (units / "gcd.service").open("a") as unit:
        unit.write("\n[Service]\nProtectSytem=strict\n")
    assert "ProtectSytem" in judged(units / "gcd.service")


def test_a_drop_in_that_it_does_not_understand_is_found(with_drop_ins: Path) -> None:
    (with_drop_ins / "gcd.service.d/x.conf").write_text("[Service]\nExecPath=/\n")
    assert "ExecPath" in judged(with_drop_ins / "gcd.service")


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_closed(units: Path, name: str) -> None:
    assert exposure(units / name) <= EXPOSURE


@pytest.mark.parametrize("name", SERVICES)
def test_the_drop_ins_open_nothing(units: Path, with_drop_ins: Path, name: str) -> None:
    folder = with_drop_ins / f"{name}.d"
    with_all = exposure(with_drop_ins / name)
    (folder / "network.conf").unlink()  # it closes more
    without = exposure(with_drop_ins / name)
    shutil.rmtree(folder)
    assert with_all < without == exposure(units / name)


def test_what_is_open_is_found(units: Path) -> None:
    text = (units / "gcd.service").read_text()
    (units / "gcd.service").write_text(re.sub(r"(?m)^(Protect|Private|System).*\n", "", text))
    assert exposure(units / "gcd.service") > EXPOSURE


def test_both_services_have_the_same_sandbox() -> None:
    daemon, once = (read((SYSTEMD / name).read_text()) for name in SERVICES)
    start = {"Type", "NotifyAccess", "ExecStart", "ExecReload", "Environment"}
    failure = {"Restart", "RestartSec", "RestartPreventExitStatus", "SuccessExitStatus"}
    times = {"TimeoutStartSec", "WatchdogSec", "TimeoutAbortSec"}
    for differs in start | failure | times:
        daemon.pop(differs, None)
        once.pop(differs, None)
    assert daemon == once


@pytest.mark.parametrize("name", SERVICES)
def test_gcd_understands_its_command_line(name: str) -> None:
    (line,) = read((SYSTEMD / name).read_text())["ExecStart"]
    program, *words = line.split()
    assert program == PROGRAM
    assert words[-2:] == ["--config", "/etc/gcd/gcd.toml"]
    check_call(words)


def test_what_the_next_start_would_find_again_is_not_restarted() -> None:
    (codes,) = read((SYSTEMD / "gcd.service").read_text())["RestartPreventExitStatus"]
    lasting = (UsageError, ConfigError, StoreRefused)
    assert {int(code) for code in codes.split()} == {error.exit_code for error in lasting}


def test_a_crash_loop_comes_to_an_end() -> None:
    text = (SYSTEMD / "gcd.service").read_text()
    service, unit = read(text), read(text, "Unit")
    assert service["Restart"] == ["on-failure"]
    longest = int(unit["StartLimitBurst"][0]) * span(service["RestartSec"][0])
    assert longest < span(unit["StartLimitIntervalSec"][0])


def test_of_one_cycle_only_what_needs_nobody_counts_as_success() -> None:
    (codes,) = read((SYSTEMD / "gcd-gc.service").read_text())["SuccessExitStatus"]
    assert codes.split() == [str(LeaseHeld.exit_code), "143"]
    assert str(FuseBlown.exit_code) not in codes


@pytest.mark.parametrize("name", SERVICES)
def test_it_has_the_time_to_stop_that_it_takes(name: str) -> None:
    (limit,) = read((SYSTEMD / name).read_text())["TimeoutStopSec"]
    assert span(limit) > shutdown_timeout()


def test_the_timer_fires_every_night_and_makes_up_for_one() -> None:
    timer = read((SYSTEMD / "gcd-gc.timer").read_text(), "Timer")
    code, out, errors = analyze("calendar", "--iterations=2", *timer["OnCalendar"])
    assert code == 0, errors
    assert "03:00:00" in out
    assert timer["Persistent"] == ["true"]
    assert timedelta(0) < span(timer["RandomizedDelaySec"][0]) < timedelta(hours=1)
    # A cycle that hangs must not be the last one.
    service = read((SYSTEMD / "gcd-gc.service").read_text())
    assert span(service["TimeoutStartSec"][0]) < timedelta(days=1)


@pytest.mark.parametrize("sample", sorted(DROP_INS.iterdir()), ids=lambda path: path.name)
def test_a_drop_in_says_where_it_goes(sample: Path) -> None:
    assert sample.suffix == ".sample"  # systemd reads none that the operator has not chosen
    target = f"/etc/systemd/system/gcd.service.d/{sample.stem}"
    assert re.search(rf"{re.escape(target)}$", sample.read_text(), re.MULTILINE)


def test_the_user_can_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "etc/sysusers.d"
    folder.mkdir(parents=True)
    shutil.copyfile(SYSTEMD / "gcd.sysusers", folder / "gcd.conf")
    done = run("systemd-sysusers", "systemd", f"--root={tmp_path}")
    assert done.returncode == 0, done.stderr
    name, *_, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    for service in SERVICES:
        assert [name] == read((SYSTEMD / service).read_text())["User"]
    assert home == "/var/lib/gcd"
    assert shell.endswith("nologin")
