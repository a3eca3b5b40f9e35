"""Logins of a database server that may less than its administrator, made for one test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from tests.servers import PREFIX, Database, find_mariadb, find_postgresql, require


@contextmanager
def role(database: Database, *grants: str) -> Iterator[tuple[str, str]]:
    """A role of PostgreSQL and a URI with which it opens the database.

    `{role}` in a grant is its name; without grants it may do all with every table of `public`.
    """
    server = require(find_postgresql())
    name = PREFIX + secrets.token_hex(5)
    all_of_public = (
        "GRANT ALL ON SCHEMA public TO {role}",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    server.admin(f"CREATE ROLE {name} LOGIN")
    try:
        database.execute(*(each.format(role=name) for each in grants or all_of_public))
        yield name, with_login(database.uri, name)
    finally:
        database.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER", f"DROP OWNED BY {name}")
        server.admin(f"DROP ROLE {name}")


@contextmanager
def user(database: Database, *grants: str) -> Iterator[tuple[str, str]]:
    """A user of MariaDB, as it is written in a GRANT, and a URI with which it opens the database.

    `{user}` in a grant is the user, `{base}` the database.
    """
    server = require(find_mariadb())
    name = PREFIX + secrets.token_hex(5)
    account = f"'{name}'@'%'"
    escaped = account.replace("%", "%%")  # as the driver wants it
    server.admin(f"CREATE USER {escaped} IDENTIFIED BY 'secret'")
    try:
        server.admin(*(each.format(user=escaped, base=database.name) for each in grants))
        yield account, with_login(database.uri, name, "secret")
    finally:
        server.admin(f"DROP USER {escaped}")


def with_login(uri: str, name: str, password: str | None = None) -> str:
    """A URI with another login."""
    url = sa.make_url(uri).set(username=name, password=password)
    return url.render_as_string(hide_password=False)
