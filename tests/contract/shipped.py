"""What the tests of the files for operators share: the tools that judge them, and gcd's own judgement.

The files are those of `systemd/`, `config/kubernetes/`, `config/prometheus/` and `config/cron/`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from gcd.cli import registry
from gcd.config.sections import fields_of
from tests.servers import require

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
KUBERNETES = ROOT / "config/kubernetes"
PROMETHEUS = ROOT / "config/prometheus"
CRONTAB = ROOT / "config/cron/gcd"


def run(
    program: str, package: str, *words: object, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; the test is skipped without it, or fails where servers are required."""
    path = shutil.which(program)
    if path is None:
        require(f"no {program} (Debian package {package})")
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}
    return subprocess.run(
        [str(path), *map(str, words)],
        input=stdin,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def check_call(words: Sequence[str]) -> None:
    """gcd takes these words as a command and its options. Raises click.ClickException or LookupError."""
    command = registry.load(words[0])
    if command is None:
        raise LookupError(f"gcd has no command {words[0]!r}")
    with command.make_context(words[0], list(words[1:])):
        pass


def check_variable(name: str) -> None:
    """gcd knows the environment variable. Raises LookupError."""
    section, _, key = name.removeprefix("GCD_").lower().partition("__")
    if not name.startswith("GCD_") or key not in fields_of(section):
        raise LookupError(f"{name} sets no key of gcd's")


def shutdown_timeout() -> timedelta:
    """How long the daemon takes at most to stop, by default."""
    found: timedelta = fields_of("daemon")["shutdown_timeout"].default
    return found
