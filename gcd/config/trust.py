"""Tells whether somebody else may have written a file that decides what is deleted, or a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_trusted(path: Path) -> bytes:
    """The contents of a file that only this user or root may have written.

    Raises Distrusted where others may have, and OSError. The file that was opened is judged, and the
    link that led to it: another user may have made that.
    """
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and not is_own(link):
        raise Distrusted(f"is a link that {owner(link)} made; replace it")
    with path.open("rb") as file:
        reason = distrust(os.fstat(file.fileno()))
        if reason is not None:
            raise Distrusted(reason)
        return file.read()


class Distrusted(Exception):
    """Others may have written the file; the message says how, and what to do, as a clause."""


def distrust(found: os.stat_result) -> str | None:
    """Why others may have written a file, None where only this user or root may have."""
    if not is_own(found):
        return f"belongs to {owner(found)}, not to this user or root; change its owner by chown"
    if found.st_mode & OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        return f"can be written by others (mode {mode:04o}); run chmod go-w on it"
    return None


def is_own(found: os.stat_result) -> bool:
    """Whether a file belongs to this user or to root."""
    return found.st_uid in (0, os.geteuid())


def owner(found: os.stat_result) -> str:
    """Whose file it is; not every user has a name here."""
    return f"user {found.st_uid}"
