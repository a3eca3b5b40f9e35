"""Deletes artifact trees in S3 and in stores that speak its protocol.

It must never rewrite a key, nor take a bucket that is missing, or may not be listed, for an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator

from gcd.artifacts.base import Options, Remark
from gcd.artifacts.object_store import ObjectArtifactStore
from gcd.artifacts.pace import Pace
from gcd.artifacts.s3_bucket import S3Bucket
from gcd.artifacts.s3_errors import FOREIGN
from gcd.artifacts.s3_inspect import remarks
from gcd.artifacts.s3_session import Session, address_of, endpoint_name
from gcd.artifacts.s3_wire import Wire
from gcd.errors import TransientArtifactError
from gcd.model import Place


class S3ArtifactStore(ObjectArtifactStore[S3Bucket]):
    """Schemes s3, r2 and b2."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.session = Session(self.options.environment, self.options.requests)

    def check(self, place: Place) -> None:
        """Raise UnsafeTarget where a place names no bucket."""
        address_of(place)

    def open_bucket(self, place: Place, pace: Pace) -> S3Bucket:
        """The bucket of a place, with a client of its own."""
        address = address_of(place)
        try:
            client = self.session.client(address)
        except FOREIGN as error:
            hint = "check endpoint, region, profile and addressing style"
            raise TransientArtifactError(f"bucket {address.bucket}: {error}", hint=hint) from error
        return S3Bucket(
            address.bucket,
            client,
            f"{endpoint_name(client)}/{address.bucket}",
            owner=self.session.owner,
            slots=self.slots,
            pace=pace,
            wire=Wire(client, self.session.credentials(), self.session.trust),
        )

    def inspect(self, root: Place) -> Iterator[Remark]:
        """Versioning, rules, locks, missing permissions, and where the credentials come from."""
        return remarks(
            self.bucket(root), root.path, self.session, all_versions=self.deletes_versions
        )
