"""Model versions that something here says exist, and that this database does not have.

MLflow writes the tag `mlflow.modelVersions` on a logged model when a version of it is registered, in
whichever registry that is, and never takes it back. A version that is not here may be in a registry
that gcd was not told of.

Invariant: what such a version may refer to is held: the logged model, and the runs that made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd.model import Hold, KeepReason
from gcd.store.eraser import slices
from gcd.store.schema import Schema, is_deleted, workspace_of
from gcd.store.streaming import stream

TAG = "mlflow.modelVersions"
HINT = (
    "if the registry is another database, name it with --registry-store-uri; if it is this one and "
    "the version was deleted with its registered model, name this one"
)
PART = 500
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")

Version = tuple[str, int, str | None]
"""Name, number, and workspace where versions have one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That a version of a logged model exists."""

    model: str
    source_run: str | None
    workspace: str | None
    name: str
    number: str

    def version(self, *, has_workspace: bool) -> Version | None:
        """The version that it means, None for what is no number."""
        if not self.number.isdecimal() or len(self.number) > 9:
            return None
        return self.name, int(self.number), self.workspace if has_workspace else None


def holds(conn: Connection, schema: Schema, ids: Sequence[str] | None = None) -> Iterator[Hold]:
    """What versions that are not here may refer to; of these models, and of these runs', if given."""
    if not schema.has("logged_model_tags", "model_id", "tag_key", "tag_value"):
        return
    if not schema.has("logged_models", "source_run_id"):
        return
    models = None if ids is None else [*ids, *made_by(conn, schema, ids)]
    claims = (claim for row in stream(conn, query(schema, models)) for claim in claims_of(*row))
    for part in slices(list(claims), PART):
        here = versions_here(conn, schema, part)
        absent = [claim for claim in part if not is_here(claim, here, has_workspace(schema))]
        makers = made(conn, schema, [claim.model for claim in absent])
        for claim in absent:
            yield from holds_of(claim, makers.get(claim.model, ()))


def query(schema: Schema, models: Sequence[str] | None) -> sa.Select[*tuple[Any, ...]]:
    """The tags of these logged models, or of all that are deleted, or whose run or experiment is."""
    tags, found = schema.table("logged_model_tags"), schema.table("logged_models")
    experiments, runs = schema.table("experiments"), schema.table("runs")
    joined = (
        tags.join(found, found.c.model_id == tags.c.model_id)
        .outerjoin(experiments, experiments.c.experiment_id == found.c.experiment_id)
        .outerjoin(runs, runs.c.run_uuid == found.c.source_run_id)
    )
    chosen = (
        sa.or_(*(is_deleted(each) for each in (found, experiments, runs)))
        if models is None
        else found.c.model_id.in_(models)
    )
    columns = (found.c.model_id, found.c.source_run_id, workspace_of(schema), tags.c.tag_value)
    return sa.select(*columns).select_from(joined).where(tags.c.tag_key == TAG, chosen)


def claims_of(
    model: str, run: str | None, workspace: str | None, text: str | None
) -> Iterator[Claim]:
    """The versions that a tag names; one without a name where it cannot be read."""
    try:
        found = json.loads(text or "")
    except ValueError:
        found = [None]
    for each in found if isinstance(found, list) else [None]:
        named = each if isinstance(each, dict) else {}
        name, number = str(named.get("name", "?")), str(named.get("version", "?"))
        yield Claim(model, run, workspace, name, number)


def has_workspace(schema: Schema) -> bool:
    """Whether versions belong to workspaces here."""
    return schema.has("model_versions", "workspace") and schema.has("experiments", "workspace")


def versions_here(
    conn: Connection, schema: Schema, claims: Sequence[Claim]
) -> dict[Version, frozenset[str] | None]:
    """The versions that are in this database, with the models that they name; None where deleted."""
    if not schema.has("model_versions", "name", "version", "source", "current_stage"):
        return {}
    table, with_workspace = schema.table("model_versions"), has_workspace(schema)
    wanted = {claim.version(has_workspace=with_workspace) for claim in claims} - {None}
    key = [table.c.name, table.c.version] + ([table.c.workspace] if with_workspace else [])
    place = table.c.storage_location if "storage_location" in table.c else sa.null()
    found: dict[Version, frozenset[str] | None] = {}
    query = sa.select(table.c.current_stage, table.c.source, place, *key).where(
        sa.tuple_(*key).in_([each[: len(key)] for each in wanted if each])
    )
    for stage, source, at, name, number, *workspace in conn.execute(query) if wanted else ():
        named = frozenset(MODEL_ID.findall(f"{source} {at}"))
        version = (name, number, workspace[0] if workspace else None)
        found[version] = None if stage == "Deleted_Internal" else named
    return found


def is_here(claim: Claim, here: dict[Version, frozenset[str] | None], with_workspace: bool) -> bool:
    """Whether the version of a claim is one of these, and not another model's of the same name."""
    version = claim.version(has_workspace=with_workspace)
    if version is None or version not in here:
        return False
    named = here[version]
    return not named or claim.model in named


def holds_of(claim: Claim, runs: Sequence[str]) -> Iterator[Hold]:
    """What the version of a claim may refer to."""
    because = (
        f"the tag {TAG} of the logged model {claim.model} names version {claim.number} of "
        f"{claim.name}, which this database does not have: {HINT}"
    )
    for entity in dict.fromkeys(filter(None, (claim.model, claim.source_run, *runs))):
        yield Hold(KeepReason.REGISTERED, because, entity_id=entity)


def made_by(conn: Connection, schema: Schema, runs: Sequence[str]) -> list[str]:
    """The logged models that these runs made."""
    if not schema.has("inputs", "source_id", "destination_id"):
        return []
    inputs = schema.table("inputs")
    query = sa.select(inputs.c.destination_id).where(
        inputs.c.source_type == "RUN_OUTPUT",
        inputs.c.source_id.in_(runs),
        inputs.c.destination_type == "MODEL_OUTPUT",
    )
    return list(conn.execute(query).scalars())


def made(conn: Connection, schema: Schema, models: Sequence[str]) -> dict[str, list[str]]:
    """Logged model to the runs that made it."""
    found: dict[str, list[str]] = {}
    if not models or not schema.has("inputs", "source_id", "destination_id"):
        return found
    inputs = schema.table("inputs")
    query = sa.select(inputs.c.destination_id, inputs.c.source_id).where(
        inputs.c.destination_type == "MODEL_OUTPUT",
        inputs.c.destination_id.in_(models),
        inputs.c.source_type == "RUN_OUTPUT",
    )
    for model, run in conn.execute(query):
        found.setdefault(model, []).append(run)
    return found
