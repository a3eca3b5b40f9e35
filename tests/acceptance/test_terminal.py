"""gcd on a terminal: it shows the plan, asks, and collects what was agreed to and no more."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from tests.mlflow_store import RealStore
from tests.program import collect, command, empty_folder, environment, gcd, shown
from tests.snapshot import Snapshot
from tests.stopper import Moment, resumed, stopped

CYCLE = ("gc", "--older-than", "0s")
QUESTION = "Permanently delete"
ESCAPE = "\x1b["
PATIENCE = 60.0
ON_SQLITE = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


@dataclass
class Terminal:
    """A program on a pseudo terminal, and the person before it."""

    process: subprocess.Popen[str]
    screen: int
    text: str = field(default="")
    """Everything that was shown so far."""

    def read(self, *, until: str | None = None) -> str:
        """Look until a text is shown, or to the program's end; all that was shown."""
        limit = time.monotonic() + PATIENCE
        while until is None or until not in self.text:
            ready, _, _ = select.select([self.screen], [], [], limit - time.monotonic())
            assert ready, f"nothing more is shown: {self.text}"
            try:
                found = os.read(self.screen, 65536)
            except OSError:  # how Linux says that nobody has the terminal open any more
                found = b""
            if not found:
                assert until is None, f"{until!r} was not shown: {self.text}"
                break
            self.text += found.decode()
        return self.text

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.screen, keys.encode())

    def end(self, answer: str | None = None) -> int:
        """The exit code, once it has ended; after an answer if one is given."""
        if answer is not None:
            self.read(until="[y/N]: ")
            time.sleep(0.5)  # Ctrl-C just before Python begins to read is seen only after the line
            self.type(answer)
        self.read()
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(
    *arguments: object, uri: str, env: dict[str, str] | None = None, **streams: int
) -> Iterator[Terminal]:
    """gcd on a terminal of its own, `streams` apart."""
    screen, line = pty.openpty()
    session = ["setsid"] if "stdin" in streams else ["setsid", "--ctty"]  # so that Ctrl-C arrives
    process = subprocess.Popen(
        [*session, *command(*arguments, uri=uri)],
        cwd=empty_folder(),
        env=colourful(env),
        **{"stdin": line, "stdout": line, "stderr": line, **streams},
        text=True,
    )
    os.close(line)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):
            os.close(screen)


def colourful(env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of somebody whose terminal shows colours."""
    found = {**environment(), "TERM": "xterm-256color"}
    del found["NO_COLOR"]
    return {**found, **(env or {})}


def small_store(store: RealStore) -> list[str]:
    """Three deleted runs and two live ones."""
    experiment = store.experiment("e")
    runs = [store.run(experiment) for _ in range(5)]
    store.delete(*runs[:3])
    return runs[:3]


def own_tables(store: RealStore) -> list[str]:
    """gcd's tables, as far as they are there."""
    with store.database.begin() as conn:
        return [n for n in sa.inspect(conn).get_table_names() if n.startswith("alembic_gcd_")]


# -- asking --------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize(
    ("answer", "code"),
    [("n\n", 1), ("\n", 1), ("\x04", 1), ("\x03", 130)],
    ids=["n", "Enter", "Ctrl-D", "Ctrl-C"],
)
def test_without_a_yes_nothing_is_deleted(store: RealStore, answer: str, code: int) -> None:
    runs = small_store(store)
    before = Snapshot.of(store.database, store.root)
    with terminal(*CYCLE, uri=store.uri) as person:
        assert person.end(answer) == code, person.text
        assert all(run in person.text for run in runs)
        assert "3 runs" in person.text
        assert "Traceback" not in person.text
    assert before.against(Snapshot.of(store.database, store.root)) == []
    assert own_tables(store) == []


def test_a_yes_collects_what_was_shown_whatever_happens_meanwhile(store: RealStore) -> None:
    runs = small_store(store)
    (later, _) = sorted(store.runs() - set(runs))
    with terminal(*CYCLE, uri=store.uri) as person:
        person.read(until=QUESTION)
        assert later not in person.text
        store.delete(later)
        store.restore(runs[0])
        expected = Snapshot.of(store.database, store.root).without(runs[1:])

        assert person.end("y\n") == 0, person.text

        assert "2 runs purged" in person.text
    assert expected.against(Snapshot.of(store.database, store.root)) == []


@ON_SQLITE
def test_a_machines_report_is_no_yes(store: RealStore) -> None:
    """Plan and question are on stderr, so that a person may well ask for JSON on stdout."""
    runs = small_store(store)
    with terminal(*CYCLE, "--json", uri=store.uri, stdout=subprocess.PIPE) as person:
        assert person.end("n\n") == 1, person.text
        assert person.process.stdout is not None
        person.process.stdout.close()
    assert store.runs().issuperset(runs)


@ON_SQLITE
def test_what_an_interrupted_cycle_left_of_the_rows_is_finished(store: RealStore) -> None:
    giant = store.run(store.experiment("e"), metrics=3000)
    store.delete(giant)
    small = {"GCD_PURGE__BATCH_ROWS": "1000"}
    chunk = Moment("after", "commit", r"DELETE FROM metrics\b")
    with stopped(chunk, *CYCLE, uri=store.uri, env=small) as process:
        process.terminate()
        assert resumed(process).returncode == 143
    assert store.database.scalar("SELECT COUNT(*) FROM metrics") == 2003

    with terminal(*CYCLE, uri=store.uri) as person:
        person.type("y\n")  # should it ask
        assert person.end() == 0, person.text

    assert store.database.scalar("SELECT COUNT(*) FROM metrics") == 0, person.text


@ON_SQLITE
def test_a_forgotten_prompt_holds_nobody_up(store: RealStore) -> None:
    runs = small_store(store)
    with terminal(*CYCLE, uri=store.uri) as person:
        person.read(until=QUESTION)
        collect(store.uri)
        assert not store.runs() & set(runs)
        assert person.end("y\n") == 0, person.text
        assert "nothing purged" in person.text


# -- not asking ----------------------------------------------------------------------------------


@ON_SQLITE
def test_a_yes_beforehand_is_enough(store: RealStore) -> None:
    runs = small_store(store)
    with terminal(*CYCLE, "--yes", uri=store.uri) as person:
        assert person.end() == 0, person.text
        assert QUESTION not in person.text
    assert not store.runs() & set(runs)


@ON_SQLITE
@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_where_nobody_can_answer_it_does_not_ask(store: RealStore, stream: str) -> None:
    runs = small_store(store)
    other = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}[stream]
    with terminal(*CYCLE, uri=store.uri, **{stream: other}) as person:
        assert person.end() == 0, person.text
        assert QUESTION not in person.text
        if person.process.stderr:
            assert QUESTION not in person.process.stderr.read()
            person.process.stderr.close()
    assert not store.runs() & set(runs)


@ON_SQLITE
def test_without_any_terminal_it_does_not_ask(store: RealStore) -> None:
    runs = small_store(store)
    done = gcd(*CYCLE, uri=store.uri)
    assert done.returncode == 0, shown(done)
    assert QUESTION not in done.stdout + done.stderr
    assert not store.runs() & set(runs)


@ON_SQLITE
def test_where_there_is_nothing_to_agree_to_it_does_not_ask(store: RealStore) -> None:
    runs = small_store(store)
    for arguments in (("gc", "--dry-run", "--older-than", "0s"), ("gc",)):
        with terminal(*arguments, uri=store.uri) as person:
            assert person.end() == 0, person.text
            assert QUESTION not in person.text
    assert "--older-than 0s" in person.text, "the age is gcd's own, and it does not say so"
    assert store.runs().issuperset(runs)


# -- colours -------------------------------------------------------------------------------------


@ON_SQLITE
def test_colours_are_for_terminals(store: RealStore) -> None:
    small_store(store)
    with terminal("plan", "--older-than", "0s", uri=store.uri) as person:
        assert person.end() == 0
        assert ESCAPE in person.text
    with terminal("plan", "--older-than", "0s", uri=store.uri, env={"NO_COLOR": "1"}) as person:
        assert person.end() == 0
        assert f"{ESCAPE}3" not in person.text
    for arguments in (("plan", "--older-than", "0s"), ("doctor",), CYCLE, ("explain", "0" * 32)):
        done = subprocess.run(
            command(*arguments, uri=store.uri),
            cwd=empty_folder(),
            env=colourful(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr, shown(done)


@ON_SQLITE
def test_the_report_can_be_redirected_and_the_question_is_still_seen(store: RealStore) -> None:
    runs = small_store(store)
    with terminal(*CYCLE, uri=store.uri, stdout=subprocess.PIPE) as person:
        assert person.end("y\n") == 0, person.text
        assert person.process.stdout is not None
        report = person.process.stdout.read()
        person.process.stdout.close()
    assert "3 runs purged" in report
    assert runs[0] not in report
    assert "\x1b" not in report
