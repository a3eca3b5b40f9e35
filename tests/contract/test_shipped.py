"""What the files for operators say of gcd is true: every command and every key that they name is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from apscheduler.triggers.cron import CronTrigger

from gcd.cli.registry import BUILTIN
from gcd.config.sections import MODELS, fields_of
from tests.contract.shipped import (
    CRONTAB,
    KUBERNETES,
    PROMETHEUS,
    ROOT,
    SYSTEMD,
    check_call,
    check_variable,
)

FOLDERS = (SYSTEMD, KUBERNETES, PROMETHEUS, CRONTAB.parent)
LINES = [line for line in CRONTAB.read_text().splitlines() if line and line[0] != "#"]
ASSIGNMENTS = [line for line in LINES if re.match(r"\w+=", line)]
JOBS = [line for line in LINES if line not in ASSIGNMENTS]
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(ROOT)))
def text(request: pytest.FixtureRequest) -> str:
    """Each file in turn, its prose unwrapped."""
    path: Path = request.param
    return re.sub(r"\n *#? *", " ", path.read_text())


def test_every_command_that_is_named_is_there(text: str) -> None:
    for call in re.findall(r"`gcd ([^`]*)`|/bin/gcd (.*?) (?:--|/)", text):
        words = "".join(call).split()
        assert words[0] in BUILTIN, words


def test_every_key_that_is_named_is_there(text: str) -> None:
    sections = "|".join(name for name in MODELS if name != "stores")  # a store's name follows
    for section, key in re.findall(rf"\b({sections})\.([a-z]+(?:_[a-z]+)*)\b", text):
        # `artifacts.conf` is a file.
        assert key in fields_of(section) or key == "conf", f"{section}.{key}"


def test_every_extra_that_is_named_is_there(text: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"gcd\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_there_is_something_to_look_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in FILES}
    assert {"systemd/gcd.service", "config/kubernetes/cronjob.yaml", "config/cron/gcd"} <= names


class TestTheCrontab:
    """cron ignores what it does not understand, and tells nobody."""

    def test_cron_would_read_it(self) -> None:
        # No dot in the name, a newline at the end, and "%" is a newline in a command.
        assert re.fullmatch(r"[A-Za-z0-9_-]+", CRONTAB.name)
        assert CRONTAB.read_text().endswith("\n")
        assert len(JOBS) == 1
        assert "%" not in JOBS[0]

    def test_its_time_is_one(self) -> None:
        CronTrigger.from_crontab(" ".join(JOBS[0].split()[:5]))

    def test_its_user_is_the_one_that_is_made(self) -> None:
        user = JOBS[0].split()[5]
        assert re.search(rf"^u {user} ", (SYSTEMD / "gcd.sysusers").read_text(), re.MULTILINE)

    def test_gcd_understands_it(self) -> None:
        program, *words = JOBS[0].split()[6:]
        assert program == "/opt/gcd/bin/gcd"
        assert words.pop() == ">/dev/null"
        check_call(words)
        assert "--yes" in words

    def test_its_variables_are_known(self) -> None:
        for name in [line.partition("=")[0] for line in ASSIGNMENTS]:
            if name != "MAILTO":
                check_variable(name)


def test_what_is_wrong_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        check_call(["gc", "--yess"])
    with pytest.raises(LookupError):
        check_call(["demon"])
    for name in ("GCD_LOG__LEVLE", "LOG__LEVEL", "GCD_LOGS__LEVEL"):
        with pytest.raises(LookupError):
            check_variable(name)
