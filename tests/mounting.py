"""Mounts for tests: real ones, in whatever mount namespace the tests run in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Mount:
    """Mounts a tmpfs, or what is said, on a folder; what is left is unmounted by its path."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, folder: Path, *how: object) -> Path:
        command = ["mount", *map(str, how or ("-t", "tmpfs", "gcd-test")), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and (os.geteuid() != 0 or "permi" in done.stderr):
            pytest.skip("mounting is not permitted here: run as root of the mount namespace")
        assert done.returncode == 0, done.stderr
        self.folders.append(folder)
        return folder

    def bind(self, shown: Path, folder: Path) -> Path:
        """Show a folder at another path, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        return self(folder, "--bind", shown)

    def unmount(self, folder: Path) -> None:
        """Take off what was mounted last on a folder."""
        subprocess.run(["umount", str(folder)], check=True)
        self.folders.remove(folder)


@contextmanager
def mounting() -> Iterator[Mount]:
    """A way to mount, of which nothing is left in the end."""
    mounted = Mount()
    try:
        yield mounted
    finally:
        for folder in reversed(list(mounted.folders)):
            mounted.unmount(folder)
