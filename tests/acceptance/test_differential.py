"""gcd against the real `mlflow gc`, on made-up stores: the same is gone, but for what MLflow leaves.

What MLflow leaves is in a table, row by row and exactly; anything else is a difference.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings

from gcd.cli import main
from tests.expectation import FINISHED, SOURCE_RUN, Row, Tables, member, unlisted
from tests.generated_stores import (
    LIMIT,
    Age,
    Experiment,
    Model,
    Run,
    Store,
    Trace,
    Version,
    Writer,
    stores,
)
from tests.mlflow_store import make_schema, mlflow, release
from tests.servers import Database, Keeper
from tests.snapshot import Snapshot, without_empty

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    from mlflow.cli import gc as mlflow_gc

EVERYTHING = Store(
    LIMIT,
    (
        Experiment(
            deleted=Age.OLD,
            runs=(Run(Age.OLD, None, 2, 1, (0,), 1), Run(Age.OLD, 0, 0, 0, (), 0)),
            models=(
                Model(None, 0, 0, (1,), (1,), 0, 1),
                Model(Age.OLD, 0, None, (), (), None, 1),
            ),
            traces=(Trace(0, 0, (1,), 2, 0, 1, True, 1),),
            datasets=1,
            has_apparatus=True,
            prompts=1,
        ),
        Experiment(
            runs=(Run(Age.OLD, None, 2, 1, (0,), 1), Run(None, 0, 1, 1, (0,), 1)),
            models=(
                Model(None, 0, 0, (1,), (0, 1), 0, 1),
                Model(Age.OLD, 1, 1, (1,), (1,), None, 1),
            ),
            traces=(Trace(0, 1, (0, 1), 1, 0, 0, True, 1), Trace(None, 0, (), 0, None, 0)),
            datasets=1,
            has_apparatus=True,
            prompts=1,
        ),
    ),
    (Version(1, run=1), Version(1, model=0), Version(0)),
)
"""A store on which MLflow leaves everything that it ever leaves."""


# -- what MLflow leaves ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Gone:
    """What `mlflow gc` took, by the ids of the rows."""

    runs: frozenset[str]
    models: frozenset[str]
    traces: frozenset[str]
    experiments: frozenset[str]
    datasets: frozenset[str]
    scorers: frozenset[str]
    with_experiment: frozenset[str]
    """Logged models that nobody had deleted: they went with their experiment."""

    @classmethod
    def between(cls, before: Tables, after: Tables) -> Gone:
        """What is in the one and not in the other."""

        def ids(table: str, key: str) -> frozenset[str]:
            there = {str(row[key]) for row in after[table]}
            return frozenset(str(row[key]) for row in before[table]) - there

        models = ids("logged_models", "model_id")
        active = {
            row["model_id"] for row in before["logged_models"] if row["lifecycle_stage"] == "active"
        }
        return cls(
            ids("runs", "run_uuid"),
            models,
            ids("trace_info", "request_id"),
            ids("experiments", "experiment_id"),
            ids("datasets", "dataset_uuid"),
            ids("scorers", "scorer_id"),
            models & active,
        )


def named(row: Row, side: str, gone: Gone) -> bool:
    """Whether an end of a link or of a use is something that went."""
    kinds: Mapping[str, frozenset[str]] = {
        "run": gone.runs,
        "model": gone.models,
        "trace": gone.traces,
        "experiment": gone.experiments,
        "RUN": gone.runs,
        "RUN_INPUT": gone.runs,
        "RUN_OUTPUT": gone.runs,
        "MODEL_INPUT": gone.models,
        "MODEL_OUTPUT": gone.models,
        "DATASET": gone.datasets,
    }
    return row[f"{side}_id"] in kinds.get(row[f"{side}_type"], ())


Left = Callable[[Row, Gone], bool]
LEFT_ROWS: Mapping[str, tuple[str, Left]] = {
    "uses of runs, models and datasets": (
        "inputs",
        lambda row, gone: named(row, "source", gone) or named(row, "destination", gone),
    ),
    "links": (
        "entity_associations",
        lambda row, gone: named(row, "source", gone) or named(row, "destination", gone),
    ),
    "assessments that a run is the source of": (
        "assessments",
        lambda row, gone: member(row["assessment_metadata"], SOURCE_RUN) in gone.runs,
    ),
    "marks of traces: the run": (
        "trace_request_metadata",
        lambda row, gone: row["key"] == "mlflow.sourceRun" and row["value"] in gone.runs,
    ),
    "marks of traces: the model": (
        "trace_request_metadata",
        lambda row, gone: row["key"] == "mlflow.modelId" and row["value"] in gone.models,
    ),
    "bindings of scorers": (
        "endpoint_bindings",
        lambda row, gone: row["resource_type"] == "scorer" and row["resource_id"] in gone.scorers,
    ),
    "finished jobs of experiments": (
        "jobs",
        lambda row, gone: (
            row["status"] in FINISHED and member(row["params"], "experiment_id") in gone.experiments
        ),
    ),
}
"""Rows that name what is gone, and that MLflow leaves: name to table and which."""


def without_rows(tables: Tables, gone: Gone, met: Counter[str]) -> Tables:
    """What MLflow should have deleted too is deleted."""
    for name, (table, is_left) in LEFT_ROWS.items():
        kept = [row for row in tables[table] if not is_left(row, gone)]
        met[name] += len(tables[table]) - len(kept)
        lost = [row for row in tables[table] if is_left(row, gone)]
        tables = {**tables, table: kept}
        if table == "inputs":
            uuids = {row["input_uuid"] for row in lost}
            tags = [row for row in tables["input_tags"] if row["input_uuid"] not in uuids]
            met["tags of uses"] += len(tables["input_tags"]) - len(tags)
            tables = {**tables, "input_tags": tags}
        if table == "assessments":
            tables = cleared(tables, "overrides", {row["assessment_id"] for row in lost}, met)
    return tables


def cleared(
    tables: Tables, column: str, ids: frozenset[str] | set[str], met: Counter[str]
) -> Tables:
    """Assessments without pointers to what is gone."""
    met[f"assessments.{column}"] += sum(row[column] in ids for row in tables["assessments"])
    rows = [
        {**row, column: None if row[column] in ids else row[column]}
        for row in tables["assessments"]
    ]
    return {**tables, "assessments": rows}


def unlisting(tables: Tables, gone: Gone, met: Counter[str]) -> Tables:
    """Prompts that list no experiment that is gone."""

    def changed(row: Row) -> Row:
        if row["key"] != "_mlflow_experiment_ids":
            return row
        value = unlisted(row["value"], gone.experiments)
        met["experiments of prompts"] += value != row["value"]
        return {**row, "value": value}

    rows = [changed(row) for row in tables["registered_model_tags"]]
    return {**tables, "registered_model_tags": rows}


def without_trees(files: Mapping[str, str], gone: Gone, met: Counter[str]) -> dict[str, str]:
    """No files of traces, nor of logged models that went with their experiment."""

    def is_left(name: str) -> bool:
        parts = Path(name).parts
        if len(parts) < 3 or parts[0] not in gone.experiments:
            return False
        ids = {"models": gone.with_experiment, "traces": gone.traces}.get(parts[1], ())
        met[f"files of {parts[1]}"] += parts[2] in ids
        return parts[2] in ids

    kept = {name: what for name, what in files.items() if not is_left(name)}
    filled = without_empty(kept)
    met["empty folders"] += len(kept) - len(filled)
    return filled


def less_leftovers(before: Snapshot, after: Snapshot, met: Counter[str]) -> Snapshot:
    """What `mlflow gc` would have made of the store, had it left nothing; `met` counts what it left."""
    gone = Gone.between(before.tables, after.tables)
    tables = without_rows(after.tables, gone, met)
    tables = cleared(tables, "run_id", gone.runs, met)
    tables = unlisting(tables, gone, met)
    return Snapshot(tables, without_trees(after.files, gone, met))


LEFTOVERS = frozenset(
    {
        *LEFT_ROWS,
        "tags of uses",
        "assessments.overrides",
        "assessments.run_id",
        "experiments of prompts",
        "files of models",
        "files of traces",
        "empty folders",
    }
)


# -- both sides ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Makes a store anew for each example, in a folder of its own."""

    template: Path
    folder: Path

    def run(self, made: Store) -> tuple[Snapshot, Snapshot, Snapshot]:
        """The store before, after `mlflow gc`, and, from the same state, after gcd."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        database = Database("sqlite", "made", f"sqlite:///{place / 'made.db'}")
        shutil.copyfile(self.template, place / "made.db")
        root = place / "artifacts"
        root.mkdir()
        try:
            engine = database.engine()
            Writer(root).write(made, engine)
            engine.dispose()
            before = Snapshot.of(database, root)
            shutil.copytree(place, self.folder / "copy")
            by_mlflow(database, made.older_than)
            mine = Snapshot.of(database, root)
            shutil.rmtree(place)
            (self.folder / "copy").rename(place)
            by_gcd(database, made.older_than)
            return before, mine, Snapshot.of(database, root)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(self.folder / "copy", ignore_errors=True)


def by_mlflow(database: Database, older_than: str | None) -> None:
    """`mlflow gc`, the real one, in this process."""
    words = ["--backend-store-uri", database.uri, "--tracking-uri", database.uri]
    words += ["--older-than", older_than] if older_than else []
    try:
        done = CliRunner().invoke(mlflow_gc, words)
    finally:
        mlflow.set_tracking_uri("")
        release(database.uri)
    print(f"--- mlflow gc {older_than}: exit {done.exit_code}\n{done.output}")
    assert done.exit_code == 0, f"mlflow gc does not do right here: {done.exception!r}"


def by_gcd(database: Database, older_than: str | None) -> None:
    """`gcd gc`, in this process; runs go although a live model has metrics of theirs, as MLflow's do."""
    words = ["gc", "--yes", "--backend-store-uri", database.uri, "--older-than", older_than or "0s"]
    words += ["--absent-roots", "collect"]
    env = {"GCD_RETENTION__RUNS_OF_LIVE_MODELS": "collect_run", "GCD_FUSE__MAX_SHARE": "1"}
    done = CliRunner().invoke(main, words, env=env)
    print(f"--- gcd gc {older_than}: exit {done.exit_code}\n{done.output}")
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A template of MLflow's schema, and a folder to work in."""
    from tests.servers import opened

    with opened("sqlite") as keeper:
        folder = tmp_path_factory.mktemp("differential")
        yield Bench(template(keeper), folder)


def template(keeper: Keeper) -> Path:
    """An empty store made by MLflow, as a file."""
    made = make_schema(keeper.create())
    path = Path(sa.engine.make_url(made.uri).database or "")
    made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def compared(bench: Bench, made: Store, met: Counter[str]) -> list[str]:
    """The differences between what MLflow made of a store, less its leftovers, and what gcd did."""
    before, mine, ours = bench.run(made)
    for name, side in (("mlflow gc", mine), ("gcd gc", ours)):
        lost = [line for line in before.against(side)]
        print(f"--- what {name} did\n" + "\n".join(lost))
    return less_leftovers(before, mine, met).against(ours)


SHARED = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=24, derandomize=True, database=None, **SHARED)
@given(made=stores())
@example(made=EVERYTHING)
def test_the_same_is_gone_as_by_mlflow_gc(bench: Bench, made: Store) -> None:
    assert compared(bench, made, Counter()) == []


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=600, database=None, **SHARED)
@given(made=stores())
def test_the_same_is_gone_as_by_mlflow_gc_on_hundreds_of_stores(bench: Bench, made: Store) -> None:
    assert compared(bench, made, Counter()) == []


@pytest.mark.filterwarnings("ignore")
def test_mlflow_leaves_what_the_table_of_leftovers_says(bench: Bench) -> None:
    met: Counter[str] = Counter()
    assert compared(bench, EVERYTHING, met) == []
    assert {name for name, count in met.items() if count} == LEFTOVERS
