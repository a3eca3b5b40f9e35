"""Runs gcd the way its users do: as a process of its own, by `python -m gcd`."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests import nursery

TIMEOUT = 180.0
NOBODY = 65534


@cache
def empty_folder() -> Path:
    """A folder without a gcd.toml, to run in."""
    folder = Path(tempfile.mkdtemp(prefix="gcd-cwd-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process gets: the tests' environment, without colours, plus `env`."""
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "LC_ALL": "C.UTF-8", **(env or {})}


def command(*arguments: object, uri: str | None = None, driver: Path | None = None) -> list[str]:
    """The command line; `uri` goes behind the subcommand as --backend-store-uri."""
    words = [str(argument) for argument in arguments]
    if uri is not None:
        words[1:1] = ["--backend-store-uri", uri]
    program = [str(driver)] if driver else ["-m", "gcd"]
    return [sys.executable, *program, *words]


def gcd(
    *arguments: object,
    uri: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run gcd to its end; `options` are those of subprocess.run (user, group, ...)."""
    return nursery.run(
        command(*arguments, uri=uri),
        cwd=cwd or empty_folder(),
        env=environment(env),
        timeout=timeout,
        **options,
    )


def gcd_as_nobody(*arguments: object, uri: str) -> subprocess.CompletedProcess[str]:
    """The same as a user who owns nothing; only root can do this.

    It keeps the right to read everything, or it could not start a Python that root keeps at home.
    """
    right = "-all,+dac_read_search"
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        + [f"--{name}={right}" for name in ("inh-caps", "ambient-caps", "bounding-set")]
        + command(*arguments, uri=uri),
        cwd=empty_folder(),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def start(
    *arguments: object, uri: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start gcd and go on; the caller waits for it."""
    return nursery.popen(
        command(*arguments, uri=uri),
        cwd=empty_folder(),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def collect(
    uri: str, *arguments: object, expect: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """One cycle over everything that is deleted; fails unless it ends with `expect`."""
    done = gcd("gc", "--older-than", "0s", "--yes", *arguments, uri=uri, **options)
    if expect is not None:
        assert done.returncode == expect, shown(done)
    return done


def decisions(uri: str, *arguments: object, **options: Any) -> dict[str, str]:
    """What `gcd plan` decides on each candidate: "collect", or the first keep reason."""
    done = gcd("plan", "--older-than", "0s", "--json", *arguments, uri=uri, **options)
    assert done.returncode in (0, 3), shown(done)
    return {
        item["id"]: item["reasons"][0]["reason"] if item["reasons"] else item["decision"]
        for item in json.loads(done.stdout)["items"]
    }


def report(uri: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """The report of one cycle over everything that is deleted."""
    return dict(json.loads(collect(uri, "--json", *arguments, **options).stdout))


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed assertion prints about a process."""
    return (
        f"exit {done.returncode}: {' '.join(done.args[1:])}\n"
        f"--- stdout\n{done.stdout[-4000:]}\n--- stderr\n{done.stderr[-4000:]}"
    )
