"""One way to empty trees of a bucket, in a process of its own: what `bench_objects.py` starts.

It must never delete anything but what is below the prefixes that it is given.

    python tests/bench/contenders.py gcd|boto3 BUCKET FILE     (a prefix on each line of the file)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def gcd_sweep(bucket: str, prefixes: list[str]) -> Callable[[], None]:
    """As the sweep of a cycle drives gcd's backend."""
    from gcd.artifacts.base import Options
    from gcd.artifacts.s3 import S3ArtifactStore
    from gcd.model import Entry, EntryState, Kind, Place, Probe, Result, Root, Target
    from gcd.sweep import sweep

    now = datetime.now(UTC)
    root = Place("s3", bucket, "ml/")
    entries = [
        Entry(n, 1, Kind.RUN, f"{n}", "1", Target(Place("s3", bucket, prefix), root),
              EntryState.PENDING, 0, now, now)
        for n, prefix in enumerate(prefixes)
    ]  # fmt: skip

    def work() -> None:
        endpoint = {"MLFLOW_S3_ENDPOINT_URL": os.environ["MLFLOW_S3_ENDPOINT_URL"]}
        store = S3ArtifactStore(Options(environment=endpoint))
        outcomes = sweep(
            entries,
            open_store=lambda scheme: store,
            roots={root: Root(root, Probe(is_there=True))},
            veto=lambda entry: None,
            now=now,
            hands=4,
        )
        failed = [each for each in outcomes if each.result is not Result.SWEPT]
        if failed:
            raise SystemExit(f"{len(failed)} trees are not swept: {failed[0].error}")

    return work


def plain_boto3(bucket: str, prefixes: list[str]) -> Callable[[], None]:
    """As most people write it: list each tree, delete each page."""
    import boto3

    def work() -> None:
        client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
        lister = client.get_paginator("list_objects_v2")
        for prefix in prefixes:
            for page in lister.paginate(Bucket=bucket, Prefix=prefix):
                if found := [{"Key": each["Key"]} for each in page.get("Contents", ())]:
                    client.delete_objects(Bucket=bucket, Delete={"Objects": found})

    return work


WAYS = {"gcd": gcd_sweep, "boto3": plain_boto3}

if __name__ == "__main__":
    name, where, file = sys.argv[1:]
    work = WAYS[name](where, Path(file).read_text().splitlines())
    began = time.monotonic()  # what is imported is: a daemon imports once
    work()
    print(f"{time.monotonic() - began:.3f}")
