"""Clients that change a store in every way that MLflow has while collectors without an age work on it.

Each client knows what it was told and what was whole at that moment: that has to be whole ever after.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from mlflow import MlflowException
from mlflow.entities import LoggedModelTag, Metric, Param, RunTag
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.entities.run_status import RunStatus
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

from gcd.errors import GcdError
from gcd.model import Kind
from gcd.store import steering
from gcd.store.tracking import TrackingStore
from tests.mlflow_store import RealStore, local_path, now_ms
from tests.snapshot import canonical

POOL = 6
"""Runs that a client makes, deletes and acts on together."""
KEPT = 12
"""Things of a client's that must stay, at a time; then it lets the oldest go."""
WAITING = (0, 15, 30, 60)
"""How many deleted things a client leaves for later, by chance: meanwhile gcd may come first."""
OF_RUN = ("metrics", "latest_metrics", "params", "tags", "logged_model_metrics")
OF_MODEL = ("logged_model_tags", "logged_model_params", "logged_model_metrics")
ROWS = {
    **{f"run {table}": (table, "run_uuid") for table in OF_RUN[:4]},
    "run logged_model_metrics": ("logged_model_metrics", "run_id"),
    **{f"model {table}": (table, "model_id") for table in OF_MODEL},
    "run runs": ("runs", "run_uuid"),
    "model logged_models": ("logged_models", "model_id"),
}
WANTED = (
    "restore run",
    "restore experiment",
    "register run by id",
    "register run by place",
    "hold run",
    "hold experiment",
    "tag model",
    "log a late file",
    "delete run that measured",
)
"""Changes of which some must have been acknowledged."""
BUSY = (
    "locked",
    "deadlock",
    "lock wait",
    "serializ",
    "concurrent",
    "try restarting",
    "timeout",
    "record has changed",
)
"""What databases say to a client that has to try again: nothing was acknowledged."""
NOT_THERE = (
    "not found",
    "no run with id",
    "no experiment with id",
    "already collected",
    "there is no",
    "does not exist",
    "foreign key",
    "0 were matched",  # it went between MLflow's look and its UPDATE
)


@dataclass
class Thing:
    """A run or a logged model, with all that belongs to it."""

    kind: str
    id: str
    tree: Path
    rows: dict[str, list[str]]
    files: dict[str, bytes]
    experiment: str


@dataclass
class Kept:
    """A thing that must stay from a moment on, because somebody was told so."""

    thing: Thing
    because: str
    rows: bool
    """Whether its rows were there, and in no purge's hands, when that was told."""
    at_ms: int
    release: Callable[[], object] | None = None
    """What lets it go again."""


@dataclass
class Storm:
    """One store, and all that happens to it."""

    store: RealStore
    seconds: float
    """How long it lasts at least."""
    enough: int
    """Acknowledged changes without which it goes on."""
    patience: float
    """Seconds more after which it ends although too little happened."""
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.engine = self.store.database.engine()
        self.tracking = stored(Tracking, self.store.uri, self.store.root.as_uri())
        self.registry = stored(Registry, self.store.uri)
        self.operator = TrackingStore(self.store.uri, read_only=False)
        self.operator.prepare()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        self.operator.close()
        for each in (self.tracking, self.registry):
            each.engine.dispose()

    @property
    def acknowledged(self) -> int:
        """How many changes somebody was told of that they were made."""
        return sum(count for name, count in self.done.copy().items() if name.startswith("yes: "))

    def is_over(self) -> bool:
        """Its time is over and enough has happened, or nothing helps."""
        late = time.monotonic() - self.began - self.seconds
        return late > self.patience or (late > 0 and self.has_enough())

    def has_enough(self) -> bool:
        """Whether enough was acknowledged, some of each kind, and gcd was first now and then."""
        kinds = all(self.done[f"yes: {each}"] for each in WANTED)
        gone = sum(count for name, count in self.done.copy().items() if name.startswith("gone: "))
        return kinds and gone + self.done["too late"] > 0 and self.acknowledged >= self.enough

    # -- what is there -----------------------------------------------------------------------------

    def rows(self, kind: str, entity: str) -> dict[str, list[str]]:
        """The rows of a run or a logged model by table, without what a deletion changes."""
        found = {}
        with self.engine.connect() as conn:
            for name, (table, column) in ROWS.items():
                if name.startswith(kind):
                    query = sa.text(f"SELECT * FROM {table} WHERE {column} = :entity")
                    rows = conn.execute(query, {"entity": entity}).mappings()
                    found[name] = sorted(canonical(stable(dict(row))) for row in rows)
        return found

    def is_there(self, thing: Thing) -> bool:
        """Whether its own row is there, and no transaction has it in its hands."""
        table, column = ROWS["run runs" if thing.kind == "run" else "model logged_models"]
        wait = "" if self.engine.dialect.name == "sqlite" else " FOR UPDATE NOWAIT"
        query = sa.text(f"SELECT 1 FROM {table} WHERE {column} = :entity{wait}")
        try:
            with self.engine.connect() as conn:
                return conn.scalar(query, {"entity": thing.id}) is not None
        except sa.exc.DBAPIError:
            return False

    def broken(self, kept: Kept) -> str | None:
        """What is lost of something that must stay."""
        thing = kept.thing
        for name, content in thing.files.items():
            path = thing.tree / name
            if not path.is_file() or path.read_bytes() != content:
                return f"the file {name}"
        found = self.rows(thing.kind, thing.id) if kept.rows else thing.rows
        lost = [table for table, rows in thing.rows.items() if not set(rows) <= set(found[table])]
        return f"rows of {', '.join(lost)}" if lost else None

    def check(self, kept: Kept) -> None:
        """Note what is lost of it."""
        lost = self.broken(kept)
        if lost is not None:
            self.problems.append(
                f"{kept.thing.kind} {kept.thing.id} lost {lost}: {kept.because},"
                f" {self.swept_after(kept)}"
            )

    def swept_after(self, kept: Kept) -> str:
        """How long after the acknowledgement the journal says that its tree was deleted."""
        query = sa.text(
            "SELECT purged_ms, swept_ms, state FROM alembic_gcd_journal WHERE entity_id = :entity"
        )
        with self.engine.connect() as conn:
            rows = conn.execute(query, {"entity": kept.thing.id}).all()
        told = [
            f"purged {row.purged_ms - kept.at_ms} ms and swept"
            f" {row.swept_ms and row.swept_ms - kept.at_ms} ms after that, {row.state}"
            for row in rows
        ]
        return "; ".join(told) or "the journal does not know it"

    def check_all(self) -> None:
        """At the end all that must stay is whole."""
        for kept in self.kept:
            self.check(kept)


def stored(kind: Any, *arguments: str) -> Any:
    """A store of MLflow's, behind its client: many threads share one."""
    return kind(*arguments)


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what MLflow itself changes when it deletes and restores."""
    changing = ("lifecycle_stage", "deleted_time", "last_updated_timestamp_ms")
    return {name: value for name, value in row.items() if name not in changing}


class Client:
    """One thread that makes, deletes, restores, registers, holds and measures things of its own."""

    def __init__(self, storm: Storm, seed: int) -> None:
        self.storm, self.chance = storm, random.Random(seed)
        self.name = f"registered-{seed}"
        self.number = 0
        self.mine: list[Kept] = []
        """What of its own must stay, oldest first."""
        self.of_models = cycle((self.tag, self.register, self.hold, self.register, self.leave))
        self.holds_experiment = cycle((True, False, False))
        self.waiting: list[Callable[[], object]] = []
        """What it will do with what it has deleted."""

    def work(self) -> None:
        """Go on until the storm is over."""
        try:
            self.retried(self.storm.registry.create_registered_model, self.name)
            self.live = self.experiment()
            turns = (self.models, self.runs, self.experiments, self.runs, self.moves, self.runs)
            self.models()
            while not self.storm.is_over():
                self.chance.choice(turns)()
                self.act(self.chance.choice(WAITING))
                while len(self.mine) > KEPT:
                    self.let_go()
        except Exception as error:
            self.storm.problems.append(f"client: {type(error).__name__}: {error}")

    def act(self, left: int) -> None:
        """Do what was meant with things: deleted just now, or some time ago while gcd worked."""
        while len(self.waiting) > left and not self.storm.is_over():
            last = len(self.waiting) - 1
            self.waiting.pop(self.chance.choice((0, self.chance.randint(0, last), last)))()

    # -- asking MLflow -----------------------------------------------------------------------------

    def told(self, what: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What a call that changes something returns, True for nothing; None where it was refused."""
        try:
            found = call(*arguments, **named)
        except (MlflowException, sa.exc.SQLAlchemyError, GcdError) as error:
            text = str(error).lower()
            if any(word in text for word in BUSY):
                self.storm.done["busy"] += 1
            elif any(word in text for word in NOT_THERE):
                self.storm.done[f"gone: {what}"] += 1
            else:
                self.storm.problems.append(f"{what}: {type(error).__name__}: {error}")
            return None
        self.storm.done[f"yes: {what}"] += 1
        return True if found is None else found

    def retried(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What a call returns, once the database has time for it."""
        while True:
            try:
                return call(*arguments, **named)
            except (MlflowException, sa.exc.SQLAlchemyError) as error:
                if not any(word in str(error).lower() for word in BUSY):
                    raise
                time.sleep(0.05)

    # -- making ------------------------------------------------------------------------------------

    def experiment(self) -> str:
        """A new experiment of its own."""
        self.number += 1
        name = f"{self.name}-{self.number}"
        place = (self.storm.store.root / name).as_uri()
        return str(self.retried(self.storm.tracking.create_experiment, name, place))

    def run(self, experiment: str, model: Thing | None = None, tag: str | None = None) -> Thing:
        """A finished run with rows and files; it measures the model, if one is given."""
        tracking, stamp = self.storm.tracking, now_ms()
        info = self.retried(tracking.create_run, experiment, "ann", stamp, [], "r").info
        metrics = [Metric("loss", self.chance.random(), stamp, step) for step in range(3)]
        if model is not None:
            metrics.append(Metric("f1", 0.5, stamp, 0, model_id=model.id))
        tags = [RunTag(tag, "yes")] if tag else []
        self.retried(tracking.log_batch, info.run_id, metrics, [Param("lr", "0.1")], tags)
        self.retried(tracking.update_run_info, info.run_id, RunStatus.FINISHED, stamp, None)
        return self.thing("run", info.run_id, info.artifact_uri, experiment)

    def model(self, experiment: str, run: Thing) -> Thing:
        """A logged model that a run made."""
        tracking = self.storm.tracking
        tags = [LoggedModelTag("k", "v")]
        found = self.retried(tracking.create_logged_model, experiment, "m", run.id, tags)
        self.retried(tracking.finalize_logged_model, found.model_id, LoggedModelStatus.READY)
        return self.thing("model", found.model_id, found.artifact_location, experiment)

    def thing(self, kind: str, entity: str, uri: str, experiment: str) -> Thing:
        """What was made, with files."""
        tree = local_path(uri)
        files = {f"d{n}/f{n}": self.chance.randbytes(40) for n in range(3)}
        made = Thing(kind, entity, tree, {}, files, experiment)
        for name, content in files.items():
            self.write(tree / name, content)
        made.rows = self.storm.rows(kind, entity)
        return made

    def write(self, path: Path, content: bytes) -> None:
        """Write a file as a client that uploads does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    # -- keeping -----------------------------------------------------------------------------------

    def keep(self, thing: Thing, because: str, release: Callable[[], object] | None) -> None:
        """From now on it must stay, as far as it is whole just after somebody was told so."""
        kept = Kept(thing, because, True, now_ms(), release)
        kept.rows = self.storm.is_there(thing)
        whole = all((thing.tree / name).is_file() for name in thing.files)
        self.storm.done["whole" if whole else "too late"] += 1
        if whole:
            self.storm.kept.append(kept)
            self.mine.append(kept)

    def keep_whole(self, thing: Thing, because: str, release: Callable[[], object] | None) -> None:
        """From now on it must stay, and everything of it must be there."""
        kept = Kept(thing, because, True, now_ms(), release)
        self.storm.check(kept)
        self.storm.done["whole"] += 1
        self.storm.kept.append(kept)
        self.mine.append(kept)

    def let_go(self) -> None:
        """Look at the oldest thing once more, and let it go."""
        kept = self.mine.pop(0)
        self.storm.check(kept)
        if kept.release is not None:
            self.storm.kept.remove(kept)
            kept.release()

    # -- what it does ------------------------------------------------------------------------------

    def runs(self) -> None:
        """Delete runs, and some time later restore, register or hold each, or log to it."""
        made = [self.run(self.live) for _ in range(POOL)]
        tagged = self.run(self.live, tag="gcd.hold")
        for each in (*made, tagged):
            self.told("delete run", self.storm.tracking.delete_run, each.id)
        self.keep_whole(tagged, "tagged gcd.hold", None)
        ways = (self.restore, self.register, self.register, self.hold, self.late, self.leave)
        self.waiting += [partial(self.chance.choice(ways), each) for each in made]

    def restore(self, run: Thing) -> None:
        """Restore a run; it is deleted again when it is let go."""
        if self.told("restore run", self.storm.tracking.restore_run, run.id):
            self.keep_whole(run, "restored", self.deletion(run))

    def deletion(self, thing: Thing) -> Callable[[], object]:
        """What deletes it again."""
        call = "delete_run" if thing.kind == "run" else "delete_logged_model"
        call = getattr(self.storm.tracking, call)
        return lambda: self.told(f"delete {thing.kind} again", call, thing.id)

    def register(self, thing: Thing) -> None:
        """A version by id, by place, or by both; the version is deleted when it is let go."""
        place = (thing.tree / "d0").as_uri()
        by_run = {"run_id": thing.id}
        source, named = self.chance.choice(
            (("s3://elsewhere/model", by_run), (place, {}), (place, by_run))
            if thing.kind == "run"  # MLflow registers no deleted model by its URI of models:/
            else ((f"s3://elsewhere/{thing.id}/artifacts", {}), (place, {}))
        )
        registry = self.storm.registry
        way = f"register {thing.kind} by {'id' if source != place else 'place'}"
        made = self.told(way, registry.create_model_version, self.name, source, **named)
        if made is not None:
            version = made.version
            because = f"version {version} of {self.name} with source {source} and {named}"
            self.keep(
                thing,
                because,
                lambda: self.told(
                    "delete version", registry.delete_model_version, self.name, version
                ),
            )

    def hold(self, thing: Thing) -> None:
        """`gcd hold add`, without a process of its own."""
        kind = Kind.RUN if thing.kind == "run" else Kind.LOGGED_MODEL
        if self.placed(f"hold {thing.kind}", kind, thing.id):
            arguments = (self.storm.operator, kind, thing.id)
            self.keep_whole(thing, "held", lambda: self.retried(steering.remove_hold, *arguments))

    def placed(self, what: str, kind: Kind, entity: str) -> Any:
        """Whether a hold was placed."""
        place: dict[str, Any] = {"reason": None, "placed_by": "storm", "until": None}
        return self.told(what, steering.place_hold, self.storm.operator, kind, entity, **place)

    def late(self, run: Thing) -> None:
        """Upload to a deleted run, then restore or register it: the late file counts too."""
        content = self.chance.randbytes(30)
        with suppress(OSError):  # gcd may remove the folder just now
            self.write(run.tree / "late" / "f", content)
            run.files["late/f"] = content
            self.storm.done["yes: log a late file"] += 1
        if self.chance.random() < 0.5:
            self.register(run)
        elif self.told("restore run", self.storm.tracking.restore_run, run.id):
            lost = "late/f" in run.files and not (run.tree / "late" / "f").is_file()
            if lost:  # the purge had taken the run when the file came, or it would be there
                self.storm.problems.append(f"run {run.id} was restored without its late file")
            self.keep_whole(run, "restored after a late file", self.deletion(run))

    def leave(self, thing: Thing) -> None:
        """Let gcd collect it."""

    def experiments(self) -> None:
        """Delete an experiment."""
        tracking, experiment = self.storm.tracking, self.experiment()
        runs = [self.run(experiment) for _ in range(3)]
        things = [*runs, self.model(experiment, runs[0])]
        if self.told("delete experiment", tracking.delete_experiment, experiment):
            self.waiting.append(partial(self.return_of, experiment, things))

    def return_of(self, experiment: str, things: Sequence[Thing]) -> None:
        """Restore an experiment, or hold it."""
        tracking = self.storm.tracking
        if next(self.holds_experiment):
            done, release = self.placed("hold experiment", Kind.EXPERIMENT, experiment), None
        else:
            done = self.told("restore experiment", tracking.restore_experiment, experiment)
            release = self.deletion_of_experiment(experiment)
        # In the middle of its collection it comes back with what was not yet purged.
        for thing in things if done else ():
            if self.storm.is_there(thing):
                self.keep_whole(thing, f"its experiment {experiment} came back", release)

    def deletion_of_experiment(self, experiment: str) -> Callable[[], object]:
        """What lets an experiment go: everything in it is looked at first."""

        def release() -> None:
            for kept in [each for each in self.mine if each.thing.experiment == experiment]:
                self.storm.check(kept)
                self.mine.remove(kept)
                self.storm.kept.remove(kept)
            call = self.storm.tracking.delete_experiment
            self.told("delete experiment again", call, experiment)

        return release

    def models(self) -> None:
        """Delete a logged model; some time later register, hold or tag it."""
        run = self.run(self.live)
        model = self.model(self.live, run)
        tracking = self.storm.tracking
        if self.told("delete model", tracking.delete_logged_model, model.id):
            self.waiting.append(partial(next(self.of_models), model))
        self.deletion(run)()

    def tag(self, model: Thing) -> None:
        """Hold a deleted logged model by a tag; runs and experiments take none when they are deleted."""
        tags = [LoggedModelTag("gcd.hold", "storm")]
        call = self.storm.tracking.set_logged_model_tags
        if self.told("tag model", call, model.id, tags):
            self.keep_whole(model, "tagged gcd.hold", None)

    def moves(self) -> None:
        """Runs measure a model of another run and are deleted; the model keeps what they measured."""
        tracking = self.storm.tracking
        maker = self.run(self.live)
        model = self.model(self.live, maker)
        others = [self.run(self.live, model) for _ in range(2)]
        model.rows = self.storm.rows("model", model.id)
        for each in (maker, *others):
            self.told("delete run that measured", tracking.delete_run, each.id)
        if self.chance.random() < 0.7:
            self.keep_whole(model, "live, measured by deleted runs", self.deletion(model))
        elif self.placed("hold model", Kind.LOGGED_MODEL, model.id):
            for each in (model, *others):
                self.keep_whole(each, f"the model {model.id} is held", None)
            self.told("delete model that is held", tracking.delete_logged_model, model.id)


def rage(storm: Storm, clients: int, collectors: Sequence[Callable[[], None]]) -> None:
    """Let clients and collectors loose, until the storm is over."""
    seed = random.randrange(10**6)
    threads = [threading.Thread(target=Client(storm, seed + n).work) for n in range(clients)]
    threads += [threading.Thread(target=each) for each in collectors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
