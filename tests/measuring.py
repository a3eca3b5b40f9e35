"""Runs gcd as a process of its own and says how much memory it had at its peak, and how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.program import command, empty_folder, environment

# A small process between: the peak of a child counts what its parent had when it forked.
MEASURE = """
import json, resource, subprocess, sys, time
began = time.monotonic()
with open(sys.argv[1], "wb") as out:
    done = subprocess.run(sys.argv[2:], stdout=out)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([done.returncode, peak, time.monotonic() - began]))
"""


@dataclass(frozen=True)
class Measured:
    """What a run of gcd printed, and what it took: bytes at the peak, seconds."""

    code: int
    stdout: str
    stderr: str
    peak: int
    seconds: float

    @property
    def mib(self) -> float:
        """The peak in a unit for people."""
        return self.peak / 2**20


def measured(out: Path, *arguments: object, uri: str, timeout: float = 300) -> Measured:
    """Run gcd to its end; what it prints goes through the file `out`."""
    words = [sys.executable, "-c", MEASURE, str(out), *command(*arguments, uri=uri)]
    done = subprocess.run(
        words,
        cwd=empty_folder(),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    code, peak, seconds = json.loads(done.stdout)
    return Measured(code, out.read_text(), done.stderr, peak, seconds)
