"""MLflow logs by FTP, where it cannot delete, and gcd collects: what the server's disk holds then is exactly the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ftp_server import ftp_server
from tests.mlflow_store import RealStore
from tests.remote_artifacts import OnDisk, collect_part_of_what_was_logged

pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def test_what_mlflow_logged_for_what_is_deleted_goes_and_nothing_else(
    store: RealStore, tmp_path: Path
) -> None:
    with ftp_server(tmp_path) as served:
        collect_part_of_what_was_logged(OnDisk(store, tmp_path / "served", f"{served.uri}/served"))
