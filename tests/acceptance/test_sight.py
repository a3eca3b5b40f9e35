"""What gcd may not see it does not take for absent: schemas, policies, grants, views, other cases."""

from __future__ import annotations

import subprocess

import pytest

from gcd.store.tracking import TrackingStore
from tests.logins import role, user
from tests.mlflow_store import RealStore
from tests.program import collect, decisions, gcd, shown
from tests.snapshot import Snapshot

REFUSED = 14

only_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("server", ["postgresql"], indirect=True)
only_mariadb = pytest.mark.parametrize("server", ["mariadb"], indirect=True)
only_servers = pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)


def look(store: RealStore) -> Snapshot:
    """The store as it is."""
    return Snapshot.of(store.database, store.root)


def registered(store: RealStore) -> tuple[str, str]:
    """Two deleted runs, of which a model version uses the first."""
    experiment = store.experiment("e")
    used, free = store.run(experiment), store.run(experiment)
    store.version("m", store.client.get_run(used).info.artifact_uri + "/model", used)
    store.delete(used, free)
    return used, free


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 14, a hint, and these words."""
    assert done.returncode == REFUSED, shown(done)
    assert "hint:" in done.stderr, shown(done)
    assert "Traceback" not in done.stderr, shown(done)
    for word in words:
        assert word in done.stderr, shown(done)


def own_places(store: RealStore) -> set[str]:
    """The schemas that gcd's own tables are in."""
    query = (
        "SELECT table_schema FROM information_schema.tables WHERE table_name LIKE 'alembic_gcd%'"
    )
    return {str(row[0]) for row in store.database.rows(query)}


# -- schemas ---------------------------------------------------------------------------------------


@only_postgresql
def test_a_role_with_a_schema_of_its_own_name_shares_gcds_tables(store: RealStore) -> None:
    experiment = store.experiment("e")
    held, free = store.run(experiment), store.run(experiment)
    with role(store.database) as (name, uri):
        store.sql(f"CREATE SCHEMA AUTHORIZATION {name}")
        hold = ("hold", "add", held, "--reason", "keep it", "--backend-store-uri", uri)
        assert gcd(*hold).returncode == 0
        assert own_places(store) == {"public"}
        store.delete(held, free)
        collect(store.uri)
        assert store.runs() == {held}

        store.sql(
            "UPDATE alembic_gcd_lease SET holder = 'another', epoch = epoch + 1, acquired_ms = "
            "extract(epoch FROM now()) * 1000, expires_ms = extract(epoch FROM now()) * 1000 + 99999"
        )
        assert collect(uri, expect=None).returncode == 11


@only_postgresql
def test_a_second_set_of_gcds_tables_is_refused_by_both_names(store: RealStore) -> None:
    run = store.run(store.experiment("e"))
    store.delete(run)
    assert gcd("init", uri=store.uri).returncode == 0
    store.sql("CREATE SCHEMA ops", "CREATE TABLE ops.alembic_gcd_meta (LIKE alembic_gcd_meta)")
    for command in (("plan",), ("gc", "--yes", "--older-than", "0s"), ("status",)):
        refused(gcd(*command, uri=store.uri), "public and ops")
    store.sql("DROP TABLE alembic_gcd_meta")
    refused(collect(store.uri, expect=None), "ops", "public")
    assert store.runs() == {run}


TWINS = ("model_versions", "tags", "logged_models", "inputs")


@only_postgresql
def test_an_empty_twin_earlier_in_the_search_path_hides_nothing(store: RealStore) -> None:
    used, free = registered(store)
    tagged = store.run(store.experiment("t"), tags={"gcd.hold": "yes"})
    store.delete(tagged)
    with role(store.database) as (name, uri):
        store.sql(f"CREATE SCHEMA AUTHORIZATION {name}")
        for table in TWINS:
            store.sql(f"CREATE TABLE {name}.{table} (LIKE public.{table})")
        store.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {name}")
        found = decisions(uri)
        assert found == {used: "registered", free: "collect", tagged: "held"}
        collect(uri)
        assert store.runs() == {used, tagged}


@only_postgresql
def test_a_temporary_twin_hides_nothing(store: RealStore) -> None:
    registered(store)
    opened = TrackingStore(store.uri, read_only=False)
    try:
        with opened.engine.begin() as conn:
            conn.exec_driver_sql(
                "CREATE TEMPORARY TABLE model_versions (LIKE public.model_versions)"
            )
            conn.exec_driver_sql("CREATE TEMPORARY TABLE tags (LIKE public.tags)")
        assert [each.name for each in opened.news()[0].new()] == ["m"]
    finally:
        opened.close()


@only_postgresql
@pytest.mark.parametrize("table", TWINS)
def test_a_twin_with_rows_elsewhere_is_refused(store: RealStore, table: str) -> None:
    used, free = registered(store)
    store.logged_model(store.run(store.experiment("x")), "m")
    store.sql("CREATE SCHEMA other", f"CREATE TABLE other.{table} AS SELECT * FROM public.{table}")
    refused(collect(store.uri, expect=None), "other", table)
    assert {used, free} <= store.runs()
    store.sql(f"DELETE FROM other.{table}")
    collect(store.uri)
    assert free not in store.runs()


@only_postgresql
def test_a_table_of_another_application_with_a_common_name_is_none_of_mlflows(
    store: RealStore,
) -> None:
    _, free = registered(store)
    store.sql(
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.tags (key TEXT, value TEXT, article INTEGER)",
        "INSERT INTO shop.tags VALUES ('a', 'b', 1)",
        "CREATE TABLE shop.jobs (id INTEGER, status TEXT)",
        "INSERT INTO shop.jobs VALUES (1, 'done')",
    )
    collect(store.uri)
    assert free not in store.runs()


@only_postgresql
def test_two_sets_of_mlflows_tables_are_refused_until_the_uri_names_one(store: RealStore) -> None:
    used, free = registered(store)
    store.sql("CREATE SCHEMA copy")
    for table in ("runs", "experiments", "tags", "model_versions"):
        store.sql(f"CREATE TABLE copy.{table} AS SELECT * FROM public.{table}")
    for command in (("plan",), ("doctor",), ("gc", "--yes", "--older-than", "0s")):
        refused(gcd(*command, uri=store.uri), "copy and public", "?options=-csearch_path%3D")
    assert store.runs() == {used, free}
    collect(store.uri + "?options=-csearch_path%3Dpublic")
    assert store.runs() == {used}
    refused(collect(store.uri + "?options=-csearch_path%3Dnowhere", expect=None), "nowhere")


@only_postgresql
def test_a_schema_off_the_search_path_is_found_and_init_prints_its_name(
    store: RealStore,
) -> None:
    used, free = registered(store)
    store.sql('ALTER SCHEMA public RENAME TO "Ml Flow"', "CREATE SCHEMA public")
    collect(store.uri)
    assert own_places(store) == {"Ml Flow"}
    found = store.database.rows('SELECT run_uuid FROM "Ml Flow".runs')
    assert found == [(used,)]
    assert free != used
    store.sql('DROP TABLE "Ml Flow".alembic_gcd_root')
    printed = gcd("init", "--sql", uri=store.uri).stdout
    assert 'CREATE TABLE "Ml Flow".alembic_gcd_hold' in printed
    assert 'GRANT SELECT ON ALL TABLES IN SCHEMA "Ml Flow" TO gcd;' in printed
    assert "alembic_gcd" not in printed.replace('"Ml Flow".alembic_gcd', "").replace(
        "INDEX alembic_gcd", ""
    )


@only_servers
def test_what_init_prints_makes_a_login_that_collects(store: RealStore) -> None:
    _, free = registered(store)
    login = role if store.database.dialect == "postgresql" else user
    with login(store.database, "SELECT 1") as (name, uri):
        statements = gcd("init", "--sql", "--role", name, uri=store.uri).stdout.split(";\n")
        store.database.execute(*filter(str.strip, statements))
        collect(uri)
    assert free not in store.runs()


@only_postgresql
def test_a_schema_that_the_role_may_not_use_is_not_an_empty_database(store: RealStore) -> None:
    registered(store)
    store.sql("ALTER SCHEMA public RENAME TO mlflow", "REVOKE USAGE ON SCHEMA mlflow FROM PUBLIC")
    with role(store.database, "SELECT 1") as (name, uri):
        refused(gcd("plan", uri=uri), f"GRANT USAGE ON SCHEMA mlflow TO {name}")


# -- policies --------------------------------------------------------------------------------------


@only_postgresql
@pytest.mark.parametrize(
    "table", ["model_versions", "tags", "runs", "inputs", "notes", "alembic_gcd_hold"]
)
def test_row_level_security_that_applies_to_the_role_is_refused(
    store: RealStore, table: str
) -> None:
    used, free = registered(store)
    assert gcd("init", uri=store.uri).returncode == 0
    store.sql(
        "CREATE SCHEMA other",
        "CREATE TABLE other.notes (run VARCHAR(32) REFERENCES runs ON DELETE CASCADE)",
    )
    place = "other" if table == "notes" else "public"
    with role(store.database) as (name, uri):
        store.sql(
            f"GRANT ALL ON SCHEMA other TO {name}",
            f"GRANT ALL ON other.notes TO {name}",
            f"ALTER TABLE {place}.{table} ENABLE ROW LEVEL SECURITY",
        )
        refused(gcd("plan", uri=uri), f"{place}.{table}", f"ALTER ROLE {name} BYPASSRLS")
        refused(collect(uri, expect=None), f"{place}.{table}")
        assert store.runs() == {used, free}
        collect(store.uri)  # no policy applies to a superuser
    assert store.runs() == {used}


@only_postgresql
def test_a_policy_that_comes_later_stops_the_cycle_instead_of_hiding_rows(
    store: RealStore,
) -> None:
    registered(store)
    with role(store.database) as (_, uri):
        opened = TrackingStore(uri, read_only=True)
        try:
            assert [each.name for each in opened.news()[0].new()] == ["m"]
            for table in ("model_versions", "tags"):
                store.sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            with pytest.raises(Exception, match="row-level security"):
                list(opened.news()[0].new())
            with pytest.raises(Exception, match="row-level security"):
                list(opened.holds())
        finally:
            opened.close()


# -- tables that are hidden, or are none -----------------------------------------------------------


@pytest.mark.parametrize("table", ["model_versions", "inputs", "logged_models"])
def test_a_table_of_mlflows_revision_that_is_not_there_is_not_empty(
    store: RealStore, table: str
) -> None:
    used, free = registered(store)
    store.sql(f"ALTER TABLE {table} RENAME TO put_away")
    refused(collect(store.uri, expect=None), table, "not take it for empty")
    store.sql(f"CREATE VIEW {table} AS SELECT * FROM put_away WHERE 1 = 0")
    refused(collect(store.uri, expect=None), table, "view")
    store.sql(f"DROP VIEW {table}", f"ALTER TABLE put_away RENAME TO {table}")
    assert store.runs() == {used, free}
    collect(store.uri)
    assert store.runs() == {used}


@only_sqlite
def test_names_in_capitals_are_the_same_names(store: RealStore) -> None:
    used, free = registered(store)
    for table in ("model_versions", "runs", "tags"):
        store.sql(
            f"ALTER TABLE {table} RENAME TO put_away",
            f"ALTER TABLE put_away RENAME TO {table.upper()}",
        )
    store.sql("ALTER TABLE model_versions RENAME COLUMN run_id TO RUN_ID")
    store.sql("ALTER TABLE model_versions RENAME COLUMN source TO Source")
    assert decisions(store.uri) == {used: "registered", free: "collect"}
    collect(store.uri)
    assert store.runs() == {used}


@only_mariadb
def test_columns_in_capitals_are_the_same_columns(store: RealStore) -> None:
    used, free = registered(store)
    store.sql(
        "ALTER TABLE model_versions CHANGE run_id RUN_ID VARCHAR(32)",
        "ALTER TABLE model_versions CHANGE source Source VARCHAR(500)",
    )
    assert decisions(store.uri) == {used: "registered", free: "collect"}


ALL_OF_ONE = "GRANT SELECT, UPDATE, DELETE ON {{base}}.{} TO {{user}}"


@only_mariadb
def test_a_user_who_sees_only_some_tables_is_refused(store: RealStore) -> None:
    used, free = registered(store)
    tables = store.database.rows("SHOW TABLES")
    seen = [ALL_OF_ONE.format(name) for (name,) in tables if name != "model_versions"]
    with user(store.database, *seen) as (account, uri):
        refused(gcd("plan", uri=uri), f"GRANT SELECT ON `{store.database.name}`.* TO {account}")
        refused(collect(uri, expect=None), "only some tables")
    assert store.runs() == {used, free}


@only_mariadb
def test_a_key_of_a_table_that_the_user_may_only_read_is_seen(store: RealStore) -> None:
    used, free = registered(store)
    store.sql(
        "CREATE TABLE notes (run VARCHAR(32),"
        " FOREIGN KEY (run) REFERENCES runs (run_uuid) ON DELETE CASCADE)"
    )
    store.sql("INSERT INTO notes VALUES (:run)", run=free)
    with user(store.database, "SELECT 1") as (account, uri):
        statements = gcd("init", "--sql", "--role", account, uri=store.uri).stdout.split(";\n")
        store.database.execute(*filter(str.strip, statements))
        assert decisions(uri) == {used: "registered", free: "unknown_reference"}
        collect(uri)
    assert store.runs() == {used, free}
    assert store.database.rows("SELECT run FROM notes") == [(free,)]


def other_database(store: RealStore, run: str) -> str:
    """Another database with a table whose row goes when the run does."""
    other = store.keeper.create()
    other.execute(
        f"CREATE TABLE notes (run VARCHAR(32), FOREIGN KEY (run)"
        f" REFERENCES {store.database.name}.runs (run_uuid) ON DELETE CASCADE)"
    )
    other.execute("INSERT INTO notes VALUES (:run)", run=run)
    return other.name


@only_mariadb
def test_a_key_from_a_database_that_the_user_may_not_see(store: RealStore) -> None:
    used, free = registered(store)
    other = other_database(store, free)
    all_of_it = "GRANT ALL ON {base}.* TO {user}"
    with user(store.database, all_of_it) as (account, uri):
        told = gcd("doctor", uri=uri).stdout
        assert "other databases" in told
        assert f"GRANT REFERENCES ON *.* TO {account};" in told
        store.database.execute(f"GRANT REFERENCES ON *.* TO {account}")
        assert "GRANT REFERENCES" not in gcd("doctor", uri=uri).stdout
        refused(collect(uri, expect=None), "notes")
        store.database.execute(f"GRANT SELECT ON {other}.* TO {account}")
        assert decisions(uri) == {used: "registered", free: "unknown_reference"}
        store.database.execute(f"REVOKE SELECT ON {other}.* FROM {account}")
        store.database.execute(f"REVOKE REFERENCES ON *.* FROM {account}")
        # Who may list InnoDB's own catalogue is told of a key, but may not read the table.
        store.database.execute(f"GRANT PROCESS ON *.* TO {account}")
        refused(collect(uri, expect=None), f"{other}.notes")
    assert store.runs() == {used, free}
    store.database.execute(f"DROP TABLE {other}.notes")


@only_mariadb
def test_doctor_warns_of_triggers_that_the_user_may_not_see(store: RealStore) -> None:
    registered(store)
    with user(store.database, "GRANT SELECT, UPDATE, DELETE, CREATE ON {base}.* TO {user}") as (
        account,
        uri,
    ):
        grant = f"GRANT TRIGGER ON `{store.database.name}`.* TO {account};"
        assert grant in gcd("doctor", uri=uri).stdout
        store.database.execute(grant.rstrip(";"))
        assert "GRANT TRIGGER" not in gcd("doctor", uri=uri).stdout
