"""Real MLflow servers that keep artifacts for their clients, each on a free port of the loop-back.

It must never leave a process behind: a server is ended with what it started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow

from tests.mlflow_store import RealStore
from tests.object_servers import free_port
from tests.servers import Database, Keeper

PATIENCE = 120
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
}


@contextmanager
def mlflow_server(
    folder: Path, *words: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """An MLflow server with these options; its URL, once it answers. Its log is in the folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1", *words],
            env={**os.environ, **SETTINGS, **(environment or {})},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(url, process, folder / "log")
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers are in its group
        process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """MLflow is imported before a server listens."""
    until = time.monotonic() + PATIENCE
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(url + "/health", timeout=5):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"no MLflow server: {error}\n{log.read_text()[-2000:]}"
                ) from error
            time.sleep(0.1)


class ServedStore(RealStore):
    """An MLflow store that its client reaches by a server, which keeps the artifacts too."""

    def __init__(self, keeper: Keeper, database: Database, root: Path, url: str) -> None:
        super().__init__(keeper, database, root)
        self.url = url
        self.client = mlflow.MlflowClient(url, url)

    @contextmanager
    def as_tracking(self) -> Iterator[None]:
        """What knows the process's tracking URI only goes by the server too."""
        uri, self.uri = self.uri, self.url
        try:
            with super().as_tracking():
                yield
        finally:
            self.uri = uri


def files_below(folder: Path) -> dict[str, int]:
    """Path and size of every file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def empty(folder: Path) -> None:
    """Remove everything in a folder, but not the folder."""
    for each in folder.iterdir():
        shutil.rmtree(each)
