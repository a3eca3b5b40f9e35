"""A database is told from its copies by what the server or the file system says of it."""

from __future__ import annotations

import pytest

from gcd.planning.lineage import Facts, Lineage, compare

FILE = {"kind": "sqlite", "fs": "ext4:1", "inode": "10", "path": "/a/ml.db", "at": "/m/a/ml.db"}
XFS = {**FILE, "fs": "xfs:/dev/sda1", "host": "one"}
FUSE = {**FILE, "fs": "fuse.x:y", "inode": ""}
PG = {"kind": "postgresql", "server": "77", "oid": "16385", "name": "ml"}
BLIND = {key: value for key, value in PG.items() if key != "server"}
MY = {"kind": "mysql", "server": "uuid", "name": "ml"}

SAME, COPY, DOUBT = Lineage.SAME, Lineage.COPY, Lineage.DOUBT


@pytest.mark.parametrize(
    ("before", "now", "is_old_there", "expected"),
    [
        pytest.param(FILE, FILE, False, SAME, id="the same file"),
        pytest.param(FILE, FILE, True, SAME, id="the same file under two names"),
        pytest.param(FILE, {**FILE, "path": "/b.db"}, False, SAME, id="moved"),
        pytest.param(FILE, {**FILE, "path": "/b.db"}, True, COPY, id="inode given to a copy"),
        pytest.param(FILE, {**FILE, "inode": "11"}, False, SAME, id="replaced by a backup"),
        pytest.param(FILE, {**FILE, "inode": "11", "path": "/b.db"}, True, COPY, id="cp"),
        pytest.param(FILE, {**FILE, "inode": "11", "path": "/b.db"}, False, COPY, id="cp, rm"),
        pytest.param(FILE, {**FILE, "fs": "ext4:2"}, False, COPY, id="another file system"),
        pytest.param(XFS, {**XFS, "host": "two"}, False, SAME, id="a volume at another host"),
        pytest.param(
            XFS, {**XFS, "host": "two", "inode": "11"}, False, COPY, id="the same path elsewhere"
        ),
        pytest.param(
            XFS, {**XFS, "host": "two", "path": "/b.db"}, False, COPY, id="an inode elsewhere"
        ),
        pytest.param(FUSE, FUSE, False, SAME, id="fuse, where inodes are made up"),
        pytest.param(FUSE, {**FUSE, "path": "/b.db"}, False, COPY, id="fuse, another path"),
        pytest.param(PG, PG, True, SAME, id="postgresql, a standby too"),
        pytest.param(PG, {**PG, "name": "old"}, True, SAME, id="renamed"),
        pytest.param(PG, {**PG, "oid": "2", "name": "copy"}, True, COPY, id="template"),
        pytest.param(PG, {**PG, "oid": "2"}, True, COPY, id="the old one was renamed"),
        pytest.param(PG, {**PG, "oid": "2"}, False, SAME, id="restored in its place"),
        pytest.param(PG, {**PG, "oid": "2", "name": "b"}, False, COPY, id="restored elsewhere"),
        pytest.param(PG, {**PG, "server": "78"}, True, COPY, id="pg_upgrade, another server"),
        pytest.param(PG, BLIND, True, DOUBT, id="a role that may not read it any more"),
        pytest.param(BLIND, PG, True, SAME, id="a role that may now"),
        pytest.param(BLIND, BLIND, True, SAME, id="a role that never might"),
        pytest.param(BLIND, {**BLIND, "oid": "2", "name": "b"}, True, COPY, id="and a template"),
        pytest.param(MY, MY, True, SAME, id="mysql"),
        pytest.param(MY, {**MY, "name": "copy"}, True, COPY, id="mysql, a dump"),
        pytest.param(MY, {**MY, "server": "other"}, True, COPY, id="mysql, another server"),
        pytest.param(MY, PG, True, COPY, id="migrated to another kind of server"),
    ],
)
def test_what_a_database_is_to_the_one_before(
    before: Facts, now: Facts, is_old_there: bool, expected: Lineage
) -> None:
    assert compare(before, now, is_old_there=is_old_there) is expected
