"""Hands rows that carry an experiment's number over to those whose they really are.

It must never delete a row that something outside the experiment still uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from gcd.store.eraser import SLICE, Eraser, slices

COPIES: tuple[tuple[str, str, str, str], ...] = (
    ("spans", "trace_id", "trace_info", "request_id"),
    ("assessments", "trace_id", "trace_info", "request_id"),
    ("logged_model_metrics", "model_id", "logged_models", "model_id"),
    ("logged_model_params", "model_id", "logged_models", "model_id"),
    ("logged_model_tags", "model_id", "logged_models", "model_id"),
    ("online_scoring_configs", "scorer_id", "scorers", "scorer_id"),
)
"""(table, column, owner's table, owner's key): each holds a copy of its owner's experiment, which
releases up to 3.16 wrote wrongly in places (schema of MLflow, rows that old releases wrote)."""


def hand_over(eraser: Eraser, experiments: Sequence[int]) -> int:
    """Correct what names the experiments by mistake, keep the datasets that others use.

    Called when the experiments' own entities are gone and their rows are about to go; how many rows
    were deleted. All at once: most copies have no index, and each look reads the whole table.
    """
    gone = 0
    for table, column, owner, key in COPIES:
        if eraser.schema.has(table, "experiment_id", column) and eraser.schema.has(owner, key):
            correct(eraser, experiments, table, column, owner, key)
            gone += delete_ownerless(eraser, experiments, table, column, owner, key)
    return gone + settle_datasets(eraser, experiments)


def correct(
    eraser: Eraser, experiments: Sequence[int], table: str, column: str, owner: str, key: str
) -> None:
    """Set the number in rows of a table to that of the owner they hang on."""
    rows, owners = eraser.schema.table(table), eraser.schema.table(owner)
    is_stray = rows.c.experiment_id.in_(experiments)
    strays = sa.select(rows.c[column]).where(is_stray).distinct()
    for part in slices(eraser.conn.execute(strays).scalars().all()):
        homes = sa.select(owners.c[key], owners.c.experiment_id).where(owners.c[key].in_(part))
        by_home: dict[int, list[str]] = defaultdict(list)
        for each, home in eraser.conn.execute(homes):
            by_home[home].append(each)
        for home, ids in by_home.items():
            eraser.update(table, {"experiment_id": home}, rows.c[column].in_(ids), is_stray)


def delete_ownerless(
    eraser: Eraser, experiments: Sequence[int], table: str, column: str, owner: str, key: str
) -> int:
    """Delete what names the experiments for an owner that is long gone; how many rows went.

    SQLite keeps such rows where a tool did not ask it to check foreign keys, and would then refuse
    to let an experiment go. The database compares the ids: it may fold case, and then so do its keys.
    """
    rows, owners = eraser.schema.table(table), eraser.schema.table(owner)
    has_owner = sa.exists().where(owners.c[key] == rows.c[column])
    lost = sa.select(rows.c[column]).where(rows.c.experiment_id.in_(experiments), ~has_owner)
    ids = eraser.conn.execute(lost.distinct()).scalars().all()
    return eraser.delete_belongings(owner, ids) if ids else 0


# -- datasets ------------------------------------------------------------------------------------


def settle_datasets(eraser: Eraser, experiments: Sequence[int]) -> int:
    """Delete the experiments' datasets, except those that a run of another experiment uses.

    Until 3.9 the first experiment that logged a dataset owned its row for all.
    """
    if not eraser.schema.has("datasets", "dataset_uuid", "experiment_id"):
        return 0
    gone = 0
    for part in slices(owned(eraser, experiments)):
        homes = users(eraser, [uuid for uuid, _, _ in part])
        gone += delete_datasets(eraser, [uuid for uuid, _, _ in part if uuid not in homes])
        for uuid, name, digest in part:
            if uuid in homes:
                gone += give_away(eraser, uuid, name, digest, homes[uuid])
    return gone


def owned(eraser: Eraser, experiments: Sequence[int]) -> Iterator[Row[*tuple[Any, ...]]]:
    """The experiments' datasets, a page at a time: those behind it may go meanwhile."""
    datasets = eraser.schema.table("datasets")
    mine = sa.select(datasets.c.dataset_uuid, datasets.c.name, datasets.c.digest)
    mine = mine.order_by(datasets.c.dataset_uuid).limit(SLICE)
    for number in sorted(experiments):
        page = mine.where(datasets.c.experiment_id == number)
        rows = eraser.conn.execute(page).all()
        while rows:
            yield from rows
            rest = page.where(datasets.c.dataset_uuid > rows[-1].dataset_uuid)
            rows = eraser.conn.execute(rest).all()


def delete_datasets(eraser: Eraser, uuids: Sequence[str]) -> int:
    """Delete datasets that nobody uses, with dangling rows that name them."""
    if not uuids:
        return 0
    datasets = eraser.schema.table("datasets")
    gone = eraser.delete_belongings("datasets", uuids)
    return gone + eraser.delete("datasets", datasets.c.dataset_uuid.in_(uuids))


def users(eraser: Eraser, uuids: Sequence[str]) -> dict[str, int]:
    """Dataset to the lowest-numbered experiment with a run that uses it."""
    homes: dict[str, int] = {}
    for query in uses(eraser, uuids):
        for uuid, home in eraser.conn.execute(query):
            homes[uuid] = min(home, homes.get(uuid, home))
    return homes


def uses(eraser: Eraser, uuids: Sequence[str]) -> Iterator[sa.Select[*tuple[str, int]]]:
    """(dataset, experiment of a run that uses it): as an input, and by a model's metrics."""
    runs = eraser.schema.table("runs")
    if eraser.schema.has("inputs", "source_id", "destination_id"):
        inputs = eraser.schema.table("inputs")
        yield (
            sa.select(inputs.c.source_id, sa.func.min(runs.c.experiment_id))
            .join(runs, runs.c.run_uuid == inputs.c.destination_id)
            .where(
                inputs.c.source_type == "DATASET",
                inputs.c.source_id.in_(uuids),
                inputs.c.destination_type == "RUN",
            )
            .group_by(inputs.c.source_id)
        )
    if eraser.schema.has("logged_model_metrics", "dataset_uuid", "run_id"):
        metrics = eraser.schema.table("logged_model_metrics")
        yield (
            sa.select(metrics.c.dataset_uuid, sa.func.min(runs.c.experiment_id))
            .join(runs, runs.c.run_uuid == metrics.c.run_id)
            .where(metrics.c.dataset_uuid.in_(uuids))
            .group_by(metrics.c.dataset_uuid)
        )


def give_away(eraser: Eraser, uuid: str, name: str, digest: str, home: int) -> int:
    """Let another experiment own a dataset, or let its users use the twin that it has already."""
    datasets = eraser.schema.table("datasets")
    twin = eraser.conn.scalar(
        sa.select(datasets.c.dataset_uuid).where(
            datasets.c.experiment_id == home,
            datasets.c.name == name,
            datasets.c.digest == digest,
        )
    )
    if twin is None:
        eraser.update("datasets", {"experiment_id": home}, datasets.c.dataset_uuid == uuid)
        return 0
    repoint(eraser, uuid, twin)
    return delete_datasets(eraser, [uuid])


def repoint(eraser: Eraser, uuid: str, twin: str) -> None:
    """Let everything that used one dataset use its twin; who used both keeps the twin's row."""
    if eraser.schema.has("logged_model_metrics", "dataset_uuid"):
        metrics = eraser.schema.table("logged_model_metrics")
        used = metrics.c.dataset_uuid == uuid
        eraser.update("logged_model_metrics", {"dataset_uuid": twin}, used)
    if not eraser.schema.has("inputs", "source_id", "destination_id"):
        return
    inputs = eraser.schema.table("inputs")

    def of(dataset: str) -> sa.Select[*tuple[str]]:
        return sa.select(inputs.c.destination_id).where(
            inputs.c.source_type == "DATASET",
            inputs.c.source_id == dataset,
            inputs.c.destination_type == "RUN",
        )

    there = set(eraser.conn.execute(of(twin)).scalars())
    moved = [run for run in eraser.conn.execute(of(uuid)).scalars() if run not in there]
    for part in slices(moved):
        eraser.update(
            "inputs",
            {"source_id": twin},
            inputs.c.source_type == "DATASET",
            inputs.c.source_id == uuid,
            inputs.c.destination_type == "RUN",
            inputs.c.destination_id.in_(part),
        )
