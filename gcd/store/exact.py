"""Compares texts byte for byte, whatever the collation of the database's column.

The default collations of MariaDB and MySQL ignore case and trailing spaces: 'DELETED' and 'deleted '
equal 'deleted'. SQL Server's do the same.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Exact(FunctionElement[Any]):
    """A column whose comparisons see each byte; on MariaDB and MySQL no index serves them."""

    name = "exact"
    type = sa.String()
    inherit_cache = True


@compiles(Exact)
def _as_it_is(element: Exact, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite and PostgreSQL compare byte for byte."""
    return compiler.process(element.clauses, **options)


@compiles(Exact, "mysql", "mariadb")
def _as_bytes(element: Exact, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **options)} AS BINARY)"


@compiles(Exact, "mssql")
def _by_code_point(element: Exact, compiler: SQLCompiler, **options: Any) -> str:
    """SQL Server ignores trailing spaces even so; gcd deletes nothing there."""
    return f"{compiler.process(element.clauses, **options)} COLLATE Latin1_General_BIN2"
