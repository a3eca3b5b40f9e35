"""The nursery: a fork is to a test what a process is that Python has just started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import nursery
from tests.program import environment
from tests.stopper import state, wait_until

Write = Callable[[str], list[str]]
PIPED = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def script(tmp_path: Path) -> Write:
    """Writes a program; its command line."""

    def write(text: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(text)
        return [sys.executable, str(path)]

    return write


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A fork, to its end."""
    env = environment(options.pop("env", None))
    assert nursery.may_fork(words, env, options)
    return nursery.run(words, env=env, timeout=60, **options)


TELL = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "env": dict(os.environ),
    "parent": os.getppid(), "main": __name__, "file": __file__, "encoding": sys.stdout.encoding,
    "group": os.getpgid(0), "mask": os.umask(0), "optimize": sys.flags.optimize,
    "fds": sorted(fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "read": sys.stdin.read(), "threads": len(os.listdir("/proc/self/task")),
}))
"""


def test_a_fork_finds_what_a_started_python_finds(script: Write, tmp_path: Path) -> None:
    words = [*script(TELL), "a word", "--flag"]
    env = {"GREETING": "h\u00e9llo"}
    before = os.umask(0o027)
    try:
        forked = json.loads(run(words, cwd=tmp_path, env=env).stdout)
        started = json.loads(
            nursery.run(
                words,
                cwd=tmp_path,
                env=environment({**env, "TEST_NURSERY": "off"}),
                timeout=60,
            ).stdout
        )
    finally:
        os.umask(before)
    del started["env"]["TEST_NURSERY"]
    assert forked == started
    assert forked["parent"] == os.getpid()
    assert forked["mask"] == 0o027


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("raise SystemExit(13)", 13),
        ("import sys; sys.exit('no')", 1),
        ("raise ValueError('no')", 1),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_its_end_is_told(script: Write, text: str, code: int) -> None:
    done = run(script(f"import atexit; atexit.register(print, 'at exit')\n{text}"))
    assert done.returncode == code, done.stderr
    is_sudden = "_exit" in text or (code < 0 and "kill" in text)
    assert done.stdout == ("" if is_sudden else "at exit\n")
    if "Error" in text:
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith("ValueError: no\n")


def test_it_can_be_signalled(script: Write) -> None:
    words = script("import time\nprint('there', flush=True)\ntime.sleep(60)")
    with nursery.popen(words, env=environment(), text=True, **PIPED) as process:
        assert isinstance(process, nursery.Fork)
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(process) == "T", "it never stops")
        assert process.poll() is None
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


def test_two_have_nothing_of_each_other(script: Write) -> None:
    words = script("import random, uuid, os\nprint(random.random(), uuid.uuid4(), os.getpid())")
    first, second = run(words).stdout.split(), run(words).stdout.split()
    assert not set(first) & set(second)


def test_gcd_is_never_there_beforehand(script: Write) -> None:
    words = script("import sys\nprint(sorted(m for m in sys.modules if m.split('.')[0] == 'gcd'))")
    assert run(words).stdout == "[]\n"


@pytest.mark.parametrize(
    "change",
    [
        {"PYTHONPATH": "/elsewhere"},
        {"LC_ALL": "C"},
        {"TEST_HIDE_MODULES": "a"},
        {"PYTHONUTF8": "0"},
    ],
)
def test_what_a_python_reads_at_its_start_is_not_left_to_a_fork(
    script: Write, change: dict[str, str]
) -> None:
    words = script("")
    assert nursery.may_fork(words, environment(), {})
    assert not nursery.may_fork(words, environment(change), {})
    assert not nursery.may_fork(words, environment(), {"user": 65534})
    assert not nursery.may_fork([*words[:1], "-c", "pass"], environment(), {})


def test_the_first_of_each_command_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "SEEN", set())
    for command in ("gc", "plan"):
        words = [sys.executable, "-m", "gcd", command]
        assert [nursery.may_fork(words, environment(), {}) for _ in range(3)] == [False, True, True]
