"""Deletes artifact trees in Google Cloud Storage.

It must never rewrite a key, nor take a bucket that is missing, or may not be listed, for an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gcd.artifacts.base import Options, Remark
from gcd.artifacts.buckets import Bucket
from gcd.artifacts.gcs_bucket import LIST, GCSBucket
from gcd.artifacts.gcs_errors import CREDENTIALS, FOREIGN, MESSAGE_CHARACTERS, translated
from gcd.artifacts.gcs_inspect import remarks
from gcd.artifacts.gcs_session import Session, endpoint_name
from gcd.artifacts.object_store import ObjectArtifactStore
from gcd.artifacts.pace import Pace
from gcd.errors import TransientArtifactError, UnsafeTarget
from gcd.model import Place

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""What may stand for a bucket in a request as it is."""


class GCSArtifactStore(ObjectArtifactStore[GCSBucket]):
    """Scheme gs."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.session = Session(self.options.environment, self.options.requests)

    def check(self, place: Place) -> None:
        """Raise UnsafeTarget where a place names no bucket."""
        if not NAME.fullmatch(place.authority):
            raise UnsafeTarget(f"{place.scheme}://{place.authority} names no bucket")

    def open_bucket(self, place: Place, pace: Pace) -> GCSBucket:
        """The bucket of a place; all of them share a client."""
        self.check(place)
        name = place.authority
        try:
            client = self.session.client
        except (ValueError, OSError) as error:  # settings that do not go together, a file
            text = f"bucket {name}: no client can be made: {error}"[:MESSAGE_CHARACTERS]
            raise TransientArtifactError(text, hint=CREDENTIALS) from error
        except FOREIGN as error:
            raise translated(error, f"bucket {name}", LIST) from error
        return GCSBucket(
            name,
            client,
            f"{endpoint_name(client)}/{name}",
            all_versions=self.deletes_versions,
            lack=self.session.lack,
            slots=self.slots,
            pace=pace,
        )

    def close(self) -> None:
        """End the connections that are kept; the next bucket has a new client."""
        super().close()
        self.session.close()

    def _note(self, bucket: Bucket) -> str | None:
        """What stays; of what is kept after its deletion also where every version is deleted."""
        return bucket.keeps

    def inspect(self, root: Place) -> Iterator[Remark]:
        """Versioning, rules, retention, holds, missing permissions, and whence the credentials come."""
        return remarks(self.bucket(root), self.session)
