"""Opens a folder that an open folder holds, and refuses a mount point.

Invariant: a folder that is opened here is on the very mount of the one that holds it. A bind mount
has the device number of what it shows, so that number alone would let it pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from functools import cache

from gcd.mounts import read_mounts, true_path

OPENAT2 = 437
"""The number of the system call on each of `MACHINES`; other machines have other numbers."""
MACHINES = frozenset({"x86_64", "i686", "aarch64", "armv7l", "ppc64le", "s390x", "riscv64"})
NO_XDEV, NO_MAGIC_LINKS, NO_SYMBOLIC_LINKS = 0x01, 0x02, 0x04
REFUSED = NO_XDEV | NO_MAGIC_LINKS | NO_SYMBOLIC_LINKS


class _How(ctypes.Structure):
    """What the system call is asked for: `struct open_how` of Linux 5.6."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_below(folder: int, name: str, flags: int) -> int:
    """Open the folder `name` in an open folder. Raises OSError, EXDEV where it is a mount point.

    The kernel refuses while it opens: a mount that appears at the last moment is not entered.
    """
    if has_openat2():
        return _openat2(folder, name, flags)
    fd = os.open(name, flags, dir_fd=folder)
    try:
        if is_other_mount(folder, fd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


@cache
def has_openat2() -> bool:
    """Whether the kernel has the system call, and nothing (seccomp) forbids it."""
    if os.uname().sysname != "Linux" or os.uname().machine not in MACHINES:
        return False
    try:
        os.close(_openat2(-1, "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _openat2(folder: int, name: str, flags: int) -> int:
    how, raw = _how(flags), os.fsencode(name)
    while True:
        fd: int = _syscall(OPENAT2, folder, raw, how, ctypes.sizeof(_How))
        if fd >= 0:
            return fd
        if (number := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number), name)


@cache
def _how(flags: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(bytes(_How(flags, 0, REFUSED)), ctypes.sizeof(_How))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_syscall.restype = ctypes.c_long


def is_other_mount(folder: int, fd: int) -> bool:
    """Whether an open folder is on another mount than the one that holds it."""
    mine, other = mount_id(folder), mount_id(fd)
    if mine is None or other is None:  # no /proc, or one without ids: gVisor, systems but Linux
        return true_path(fd) in {row.point for row in read_mounts().rows}
    return mine != other


def mount_id(fd: int) -> int | None:
    """The number of the mount by which an open folder was reached, None where the system has none."""
    with suppress(OSError), open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next((int(line[7:]) for line in lines if line.startswith(b"mnt_id:")), None)
    return None
