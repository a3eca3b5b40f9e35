"""`gcd demo`: a small store of MLflow's shape in a temporary folder, collected before your eyes.

It must never touch anything outside the folder that it makes.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click

from gcd import clock
from gcd.artifacts.base import MARK
from gcd.durations import to_millis

DAY = 86_400_000
EXPERIMENTS: tuple[tuple[int, str, int | None], ...] = ((1, "churn", None), (2, "first-try", 50))
"""Number, name, days since its deletion (None: active)."""
STORY: tuple[tuple[str, int, int | None, int, str], ...] = (
    ("baseline", 1, None, 3, "active"),
    ("champion", 1, 60, 4, "deleted 60 days ago, but version 1 of churn-model lies in it"),
    ("sweep-1", 1, 45, 5, "deleted 45 days ago"),
    ("sweep-2", 1, 40, 0, "deleted 40 days ago, never logged a file"),
    ("mistake", 1, 2, 4, "deleted 2 days ago: still within the grace period"),
    ("keep-me", 1, 90, 2, "deleted 90 days ago, tagged gcd.hold"),
    ("idea-1", 2, 50, 3, "went with its experiment first-try, deleted 50 days ago"),
    ("idea-2", 2, 50, 3, "went with its experiment first-try, deleted 50 days ago"),
)
"""Name, experiment, days since its deletion (None: active), files, and what to know of it."""


@dataclass(frozen=True)
class Demo:
    """The demonstration's folder: a database and an artifact root in it."""

    folder: Path

    @property
    def uri(self) -> str:
        """The store's URI, as a tracking server would be given it."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def root(self) -> Path:
        """Where the artifacts are."""
        return self.folder / "artifacts"


@click.command()
@click.option("--keep", is_flag=True, help="Leave the folder for you to look at.")
def demo(keep: bool) -> None:
    """Make a small store like MLflow's in a temporary folder, plan, collect and explain it.

    Needs nothing but gcd: no MLflow, no server, no network.
    """
    folder = Path(tempfile.mkdtemp(prefix="gcd-demo-"))
    try:
        tell(Demo(folder), keep=keep)
    finally:
        if not keep:
            shutil.rmtree(folder)


def tell(made: Demo, *, keep: bool) -> None:
    """The whole story."""
    runs = build(made)
    say(f"A store like MLflow's, in {made.folder}:")
    show(made)
    say("What would go, and what stays and why?")
    gcd(made, "plan")
    say("Collect. (On a terminal `gcd gc` shows the plan and asks; --yes does not.)")
    gcd(made, "gc", "--yes")
    say("What is left?")
    show(made)
    say("Why is `mistake` still there?")
    gcd(made, "explain", runs["mistake"])
    say("And what became of `sweep-1`?")
    gcd(made, "explain", runs["sweep-1"])
    say("How is the store doing?")
    gcd(made, "status")
    if keep:
        say(f"The store is left in {made.folder}; its URI is {made.uri}")
    else:
        say("That was all; the folder is gone again. Next: `gcd plan --backend-store-uri URI`.")


def say(text: str) -> None:
    """A line of the narration."""
    click.secho(f"\n{text}", bold=True)


def gcd(made: Demo, command: str, *arguments: str) -> None:
    """Run a command of gcd as a person would, as a process of its own."""
    click.secho(f"$ gcd {' '.join([command, *arguments])} --backend-store-uri …", fg="cyan")
    sys.stdout.flush()
    words = [sys.executable, "-m", "gcd", command, *arguments, "--backend-store-uri", made.uri]
    # Standard input is closed so that no step of the story waits for an answer.
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, cwd=made.folder)


# -- building ------------------------------------------------------------------------------------


def build(made: Demo) -> dict[str, str]:
    """The store of the story; name of each run to its id."""
    made.root.mkdir()
    now = to_millis(clock.utc_now())
    runs = {name: uuid.uuid4().hex for name, *_ in STORY}
    with sqlite3.connect(made.folder / "mlflow.db") as db:
        db.executescript((files("gcd.cli") / "demo_store.sql").read_text())
        for number, name, age in EXPERIMENTS:
            add_experiment(db, made.root / str(number), number, name, age, now)
        for name, number, age, count, _ in STORY:
            deleted = None if age is None else now - age * DAY
            add_run(db, made.root / str(number), number, runs[name], name, deleted, now)
            add_files(made.root / str(number) / runs[name] / "artifacts", count)
        add_claims(db, (made.root / "1").as_uri(), runs)
    db.close()
    return runs


def add_experiment(
    db: sqlite3.Connection, folder: Path, number: int, name: str, age: int | None, now: int
) -> None:
    """An experiment that logs to a folder."""
    touched = now - (99 if age is None else age) * DAY
    db.execute(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage,"
        " creation_time, last_update_time) VALUES (?, ?, ?, ?, ?, ?)",
        (number, name, folder.as_uri(), stage_of(age), now - 99 * DAY, touched),
    )


def stage_of(deleted: int | None) -> str:
    """MLflow's lifecycle stage."""
    return "active" if deleted is None else "deleted"


def add_run(
    db: sqlite3.Connection,
    folder: Path,
    experiment: int,
    run: str,
    name: str,
    deleted: int | None,
    now: int,
) -> None:
    """A finished run with metrics, parameters and tags."""
    started, uri = now - 95 * DAY, f"{folder.as_uri()}/{run}/artifacts"
    db.execute(
        "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage,"
        " artifact_uri, experiment_id, deleted_time) VALUES (?, ?, 'FINISHED', ?, ?, ?, ?, ?, ?)",
        (run, name, started, started, stage_of(deleted), uri, experiment, deleted),
    )
    history = [("loss", 1 / (step + 1), started + step, run, step) for step in range(50)]
    db.executemany(
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step) VALUES (?, ?, ?, ?, ?)",
        history,
    )
    db.execute(
        "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
        " VALUES ('loss', 0.02, ?, 49, 0, ?)",
        (started, run),
    )
    db.execute("INSERT INTO params VALUES ('lr', '0.01', ?)", (run,))
    db.execute("INSERT INTO tags VALUES ('mlflow.runName', ?, ?)", (name, run))


def add_files(tree: Path, count: int) -> None:
    """Some artifacts."""
    for number in range(count):
        path = tree / "model" / f"part-{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 4096)


def add_claims(db: sqlite3.Connection, location: str, runs: dict[str, str]) -> None:
    """A registered model that lies in `champion`, and a hold on `keep-me`."""
    db.execute("INSERT INTO registered_models (name) VALUES ('churn-model')")
    db.execute(
        "INSERT INTO model_versions (name, version, current_stage, source, run_id, status)"
        " VALUES ('churn-model', 1, 'Production', ?, ?, 'READY')",
        (f"{location}/{runs['champion']}/artifacts/model", runs["champion"]),
    )
    db.execute("INSERT INTO tags VALUES ('gcd.hold', 'asked by audit', ?)", (runs["keep-me"],))


# -- showing -------------------------------------------------------------------------------------


def show(made: Demo) -> None:
    """Every run of the story: its rows and its files, counted."""
    known = {name: (number, note) for name, number, _, _, note in STORY}
    with sqlite3.connect(made.folder / "mlflow.db") as db:
        for name, run, rows in present(db):
            number, note = known[name]
            count = sum(path.is_file() for path in (made.root / str(number) / run).rglob("*"))
            click.echo(f"  {name:9} {rows:3} rows  {count} files  {note}")
    db.close()
    left = sum(path.is_file() for path in made.root.rglob("*") if path.name != MARK)
    click.echo(f"  {left} files in all")


def present(db: sqlite3.Connection) -> Iterator[tuple[str, str, int]]:
    """(name, id, rows) of each run in the database."""
    yield from db.execute(
        "SELECT r.name, r.run_uuid, 1 + (SELECT count(*) FROM metrics m WHERE m.run_uuid = r.run_uuid)"
        " + (SELECT count(*) FROM params p WHERE p.run_uuid = r.run_uuid)"
        " + (SELECT count(*) FROM tags t WHERE t.run_uuid = r.run_uuid) FROM runs r ORDER BY r.rowid"
    )
