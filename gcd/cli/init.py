"""`gcd init`: makes gcd's own tables, or prints the statements for a database administrator.

It must never touch a table of MLflow's.
"""

from __future__ import annotations

from typing import Any

import click

from gcd.cli.options import store_options
from gcd.cli.session import open_session
from gcd.store import tables


@click.command()
@store_options
@click.option("--sql", is_flag=True, help="Print the statements and grants, and change nothing.")
@click.option("--role", default="gcd", show_default=True, help="The role that --sql grants to.")
def init(sql: bool, role: str, **options: Any) -> None:
    """Make gcd's own tables in MLflow's database (their names begin with alembic_gcd_).

    The first `gcd gc` makes them by itself where it may.
    """
    with open_session(options, read_only=sql) as session:
        if sql:
            schema, engine = session.store.schema, session.store.engine
            place = schema.catalogue.schema
            for statement in tables.statements(engine, role, schema.purged_tables(), place):
                click.echo(statement)
            return
        made = session.store.has_own_tables
        session.store.prepare()
    click.echo("gcd's tables are there already" if made else "gcd's tables are made")
