"""Starts Python programs as forks of a process that has imported other people's libraries already.

Most of what a start of gcd takes is the import of SQLAlchemy and its like, some thousand times. A fork
is a process as any other, and a child of the one that asks: with its own pid, environment, streams,
signals, exit code. gcd itself is never imported beforehand: each fork does that, from its source.
The first of each kind is no fork but a start as users start it, and all are with TEST_NURSERY=off.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = (
    "apscheduler.schedulers.background",
    "apscheduler.triggers.combining",
    "apscheduler.triggers.cron",
    "apscheduler.triggers.interval",
    "click",
    "concurrent.futures.thread",
    "difflib",
    "gzip",
    "http.server",
    "importlib.metadata",
    "prometheus_client",
    "psycopg",
    "pydantic.functional_validators",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.plugin._loader",
    "pymysql",
    "rich.console",
    "rich.progress",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tomllib",
    "urllib.request",
)
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "TZ", "TEST_HIDE_MODULES")
"""How the names of variables begin that a Python reads once, when it starts."""
PR_SET_CHILD_SUBREAPER = 36
MOST = 1 << 17
"""Bytes of a request."""


# -- for the tests -------------------------------------------------------------------------------


def popen(words: Sequence[str], *, env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    """As subprocess.Popen, of a Python that is a fork where it may be one."""
    kind = Fork if may_fork(words, env, options) else subprocess.Popen
    return kind(words, env=env, **options)


def run(
    words: Sequence[str], *, env: Mapping[str, str], timeout: float, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, with nothing to read and all output caught."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with popen(words, env=env, text=True, **streams, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


SEEN: set[tuple[str, ...]] = set()


def may_fork(words: Sequence[str], env: Mapping[str, str], options: Mapping[str, Any]) -> bool:
    """Whether a fork is the same to the test; what is `python -m gcd` for the first time is not."""
    if sys.platform != "linux" or env.get("TEST_NURSERY") == "off" or words[0] != sys.executable:
        return False
    if set(options) - {"cwd", "stdin", "stdout", "stderr", "text"}:
        return False
    if at_start(env) != START:
        return False
    if words[1] != "-m":
        return words[1].endswith(".py")
    is_first = tuple(words[1:4]) not in SEEN
    SEEN.add(tuple(words[1:4]))
    return not is_first


def at_start(env: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a running Python cannot be told any more."""
    return {name: value for name, value in env.items() if name.startswith(AT_START)}


START = at_start({**os.environ, "LC_ALL": "C.UTF-8"})
"""What of its environment the nursery has read."""


class Fork(subprocess.Popen[Any]):
    """A process of the nursery, to which nothing else is different."""

    def _execute_child(
        self,
        args: Sequence[str],
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Any,
        cwd: Path | None,
        env: Mapping[str, str],
        startupinfo: Any,
        creationflags: int,
        shell: bool,
        *streams_and_rest: Any,
    ) -> None:
        streams = streams_and_rest[:6]
        theirs = [
            fd if fd != -1 else inherited
            for fd, inherited in zip((streams[0], streams[3], streams[5]), range(3), strict=True)
        ]
        request = {"words": list(args), "cwd": str(cwd or os.getcwd()), "env": dict(env)}
        self.pid = Nursery.only().born(request, theirs)
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]


class Nursery:
    """The process that forks; one for each test process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**{k: v for k, v in os.environ.items() if not k.startswith(AT_START)}, **START},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self.close)

    @staticmethod
    @cache
    def only() -> Nursery:
        """The one of this process, started when it is first asked for."""
        return Nursery()

    def born(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """The process id of a new child, of this process: it adopts what the nursery lets go."""
        with self.lock:
            adopt(True)
            try:
                umask = os.umask(0o077)
                os.umask(umask)
                text = json.dumps({**request, "umask": umask}).encode()
                socket.send_fds(self.channel, [text], streams)
                return int(self.channel.recv(100))
            finally:
                adopt(False)

    def close(self) -> None:
        """End it: it has nothing more to read."""
        self.channel.close()
        self.process.wait()


def adopt(is_wanted: bool) -> None:
    """Whether this process becomes the parent of its children's orphans."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# -- in the nursery ------------------------------------------------------------------------------


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns in the fork, with what it is to do, and with None at the end."""
    while True:
        text, streams, _, _ = socket.recv_fds(channel, MOST, 3)
        if not text:
            return None
        reading, writing = os.pipe()
        waiting, letting = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if child:
                os.write(writing, str(child).encode())
                os._exit(0)
            os.read(waiting, 1)
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            channel.detach()
            return dict(json.loads(text))
        os.waitpid(between, 0)  # from here on the child is the tests' own
        os.write(letting, b".")
        channel.send(os.read(reading, 100))
        for fd in (reading, writing, waiting, letting, *streams):
            os.close(fd)


def become(words: Sequence[str], cwd: str, env: Mapping[str, str], umask: int) -> None:
    """Be the Python that was asked for, from its start."""
    os.chdir(cwd)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(env)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if words[1] == "-m":
        sys.argv[:] = words[2:]
        sys.path.insert(0, cwd)
        runpy._run_module_as_main(words[2])  # type: ignore[attr-defined]
        return
    script = words[1]
    sys.argv[:] = words[1:]
    sys.path.insert(0, os.path.dirname(script))
    main.__file__ = script
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)


def serve_and_become() -> None:
    """The nursery's whole life, or a child's."""
    del sys.path[0]  # the folder of the tests
    for library in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(library)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        become(**request)


if __name__ == "__main__":
    serve_and_become()
