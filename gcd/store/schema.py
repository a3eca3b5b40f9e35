"""What hangs on what in MLflow's schema, and whether gcd knows all of it in the live database.

It must never guess: a table or a trigger on what would be purged that is not in its table is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.errors import SchemaUnsupported, StoreRefused
from gcd.model import Kind
from gcd.store.catalogue import Catalogue, ForeignKey, read_catalogue


class Action(StrEnum):
    """What happens to the row that holds a reference to a purged entity."""

    DELETE = "delete"
    """The row exists only to describe the entity or to link it."""
    CLEAR = "clear"
    """The row is somebody else's; the pointer in it becomes NULL."""
    REDACT = "redact"
    """As MLflow does when a model version is deleted."""
    UNLIST = "unlist"
    """The column is a comma-separated list; the id is taken out of it."""
    DELETE_IF_MEMBER = "delete_if_member"
    """The column is a JSON object; the row goes if its member `member` is the id."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One way in which a row refers to an entity, with or without a foreign key.

    `is_scanned` references have no index that serves them: they are looked for once a cycle in one
    pass over the table, after the purge, rather than once a batch under its locks.
    """

    table: str
    column: str
    action: Action
    meaning: str
    where: tuple[tuple[str, str], ...] = ()
    is_scanned: bool = False
    member: str = ""


_SOURCE_RUN = "mlflow.assessment.sourceRunId"
_PROMPT_RUNS = (("key", "mlflow.prompt.associatedRunIds"),)

RUN_REFERENCES: tuple[Reference, ...] = (
    Reference("metrics", "run_uuid", Action.DELETE, "every value of every metric"),
    Reference("latest_metrics", "run_uuid", Action.DELETE, "the last value of every metric"),
    Reference("params", "run_uuid", Action.DELETE, "its parameters"),
    Reference("tags", "run_uuid", Action.DELETE, "its tags"),
    Reference("logged_model_metrics", "run_id", Action.DELETE, "metrics it measured of a model"),
    Reference(
        "entity_associations", "source_id", Action.DELETE, "its links", (("source_type", "run"),)
    ),
    Reference(
        "entity_associations",
        "destination_id",
        Action.DELETE,
        "links to it",
        (("destination_type", "run"),),
    ),
    Reference("issues", "source_run_id", Action.CLEAR, "issues found by it"),
    Reference("assessments", "run_id", Action.CLEAR, "assessments made in it"),
    Reference(
        "assessments",
        "assessment_metadata",
        Action.DELETE_IF_MEMBER,
        "assessments it is the source of; MLflow deletes them with the run, later ones escape it",
        is_scanned=True,
        member=_SOURCE_RUN,
    ),
    Reference(
        "trace_request_metadata",
        "value",
        Action.DELETE,
        "the mark that a trace was made in it; the trace stays",
        (("key", "mlflow.sourceRun"),),
        is_scanned=True,
    ),
    Reference(
        "model_versions",
        "run_id",
        Action.REDACT,
        "deleted model versions made from it",
        (("current_stage", "Deleted_Internal"),),
        is_scanned=True,
    ),
    Reference("registered_model_tags", "value", Action.UNLIST, "prompts used", _PROMPT_RUNS, True),
    Reference("model_version_tags", "value", Action.UNLIST, "prompts used", _PROMPT_RUNS, True),
)
"""All that refers to a run, inputs apart (they have a table of tags of their own; see purge).

Left as they are, by design: `tags` mlflow.parentRunId and `logged_models.source_run_id`, rows of
other entities that merely name the run; and every mention in free text.
"""

INPUT_ROLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("destination_type", "destination_id", ("RUN",)),
    ("source_type", "source_id", ("RUN_INPUT", "RUN_OUTPUT")),
)
"""How a row of `inputs` names a run: as what a dataset went into, or as what used or made a model."""

UNBOUNDED = ("metrics", "logged_model_metrics", "latest_metrics", "params", "tags")
"""Children that one run may have any number of; counted before a purge."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "experiments": ("experiment_id", "artifact_location", "lifecycle_stage"),
    "runs": ("run_uuid", "experiment_id", "artifact_uri", "lifecycle_stage", "status"),
    "metrics": ("run_uuid",),
    "params": ("run_uuid",),
    "tags": ("run_uuid", "key", "value"),
}


@dataclass(frozen=True, slots=True)
class Schema:
    """The live catalogue with what gcd makes of it."""

    catalogue: Catalogue
    strangers: tuple[ForeignKey, ...]
    """Foreign keys on `runs` from tables that gcd does not know: what they name is kept."""

    def references(self, *, scanned: bool) -> Iterator[Reference]:
        """The references to runs that exist here."""
        for reference in RUN_REFERENCES:
            columns = (reference.column, *(column for column, _ in reference.where))
            if reference.is_scanned == scanned and self.catalogue.has(reference.table, *columns):
                yield reference

    def table(self, name: str) -> sa.TableClause:
        """The table with the columns that it has here."""
        return self.catalogue.tables[name]

    def has(self, table: str, *columns: str) -> bool:
        """Whether the table is there with all of these columns."""
        return self.catalogue.has(table, *columns)

    def purged_tables(self) -> tuple[str, ...]:
        """The tables that a collection deletes from or changes."""
        names = [reference.table for reference in RUN_REFERENCES] + ["inputs", "input_tags", "runs"]
        return tuple(sorted({name for name in names if self.catalogue.has(name)}))


def read_schema(conn: Connection) -> Schema:
    """The live schema; StoreRefused where it is not MLflow's, SchemaUnsupported where unknown."""
    catalogue = read_catalogue(conn)
    check_mlflow(catalogue)
    known = {(ref.table, ref.column) for ref in RUN_REFERENCES}
    strangers = [
        key
        for key in catalogue.foreign_keys
        if key.to_table == "runs"
        and (key.schema is not None or (key.table, key.column) not in known)
    ]
    schema = Schema(catalogue, tuple(strangers))
    refuse_unknown(schema)
    return schema


def check_mlflow(catalogue: Catalogue) -> None:
    """Refuse an empty database and one that is not MLflow's tracking store."""
    if not any(not name.startswith(("alembic_", "sqlite_")) for name in catalogue.tables):
        raise StoreRefused(
            "the database is empty",
            hint="start the tracking server once, or check the URI: gcd never creates a store",
        )
    for table, columns in REQUIRED.items():
        missing = [name for name in columns if not catalogue.has(table, name)]
        if missing:
            raise StoreRefused(
                f"this is not MLflow's tracking store: there is no {table}.{missing[0]}",
                hint="give the database that the tracking server uses as its backend store",
            )


def refuse_unknown(schema: Schema) -> None:
    """SchemaUnsupported where something unknown would fire or break on a purge of any run."""
    purged = set(schema.purged_tables())
    deleted = purged - {"issues", "model_versions", "registered_model_tags", "model_version_tags"}
    for table, trigger in schema.catalogue.delete_triggers.items():
        if table in deleted:
            raise SchemaUnsupported(
                f"the trigger {trigger} fires when rows of {table} are deleted; gcd does not know it",
                hint="drop the trigger, or keep collecting by hand",
            )
    for key in schema.catalogue.foreign_keys:
        if key.to_table in deleted - {"runs", "assessments"}:
            raise SchemaUnsupported(
                f"the table {'.'.join(filter(None, (key.schema, key.table)))} refers to "
                f"{key.to_table}, which gcd would delete from; gcd does not know it",
                hint="drop the foreign key, or keep collecting by hand",
            )


def kind_table(kind: Kind) -> tuple[str, str]:
    """The table of a kind of entity and its key column."""
    return {
        Kind.RUN: ("runs", "run_uuid"),
        Kind.LOGGED_MODEL: ("logged_models", "model_id"),
        Kind.EXPERIMENT: ("experiments", "experiment_id"),
    }[kind]
