"""Deletes artifact trees in Azure's Blob Storage, data lakes (hierarchical namespaces) included.

It must never rewrite a name, nor take a container that is missing, or may not be listed, for an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from gcd.artifacts.azure_bucket import AzureContainer
from gcd.artifacts.azure_errors import FOREIGN, of_library
from gcd.artifacts.azure_inspect import remarks
from gcd.artifacts.azure_session import Session, address_of, endpoint_name
from gcd.artifacts.base import Deleted, Deletion, Options, Order, Remark
from gcd.artifacts.buckets import Bucket
from gcd.artifacts.bulk import GROUP
from gcd.artifacts.object_store import ObjectArtifactStore
from gcd.artifacts.pace import Pace
from gcd.errors import UnsafeTarget
from gcd.model import Place, Target

LAYOUT = ("models", "traces")
"""The folders that MLflow makes in an experiment's, besides those of its runs."""


class AzureArtifactStore(ObjectArtifactStore[AzureContainer]):
    """Schemes wasb, wasbs, abfs and abfss."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.session = Session(self.options.environment, self.options.requests)

    def check(self, place: Place) -> None:
        """Raise UnsafeTarget where a place names no container of an account."""
        address_of(place)

    def resolve(self, place: Place) -> Place:
        """The place by its one name: hosts have no case. Raises UnsafeTarget if it is none."""
        self.check(place)
        return Place(place.scheme, place.authority.lower(), place.path)

    def open_bucket(self, place: Place, pace: Pace) -> AzureContainer:
        """The container of a place, with clients of its own."""
        address = address_of(place)
        try:
            service, lake = self.session.service(address), self.session.lake(address)
        except FOREIGN as error:
            raise of_library(error, f"container {address.container}") from None  # may hold a key
        return AzureContainer(
            address.container,
            service,
            lake,
            f"{endpoint_name(service)}/{address.container}",
            slots=self.slots,
            pace=pace,
        )

    def close(self) -> None:
        """End the connections that are kept; the next container has new clients."""
        super().close()
        self.session.close()

    def _note(self, bucket: Bucket) -> str | None:
        if self.deletes_versions and isinstance(bucket, AzureContainer):
            return bucket.settings.keeps_deleted
        return super()._note(bucket)

    def inspect(self, root: Place) -> Iterator[Remark]:
        """Folders, versions, policies, missing permissions, and where the credentials come from."""
        settings, address = self.bucket(root).settings, address_of(root)
        return remarks(settings, address, self.session, all_versions=self.deletes_versions)

    # -- folders -----------------------------------------------------------------------------------

    def delete_many(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """Delete many trees; where folders are real, also the tree's and the entity's own."""
        deletions = super().delete_many(orders)
        with ThreadPoolExecutor(self.options.requests, thread_name_prefix="gcd-folder") as hands:
            while group := list(islice(deletions, GROUP)):
                yield from hands.map(self._without_folder, group)

    def _without_folder(self, deletion: Deletion) -> Deletion:
        """The deletion, once the folders around what it deleted are gone too."""
        order = deletion.order
        if not isinstance(deletion.result, Deleted):
            return deletion
        try:
            bucket = self.bucket(order.target.place)
            if bucket.settings.has_folders:
                tree = order.target.place.path.rstrip("/")
                if error := bucket.remove_folder(tree, order.permit):
                    return Deletion(order, error)
                bucket.remove_folder(tree.rpartition("/")[0], order.permit)
        except Exception as error:  # whoever forbids says it by whatever it raises
            return Deletion(order, error)
        return deletion

    def prune(self, folder: Target) -> None:
        """Remove an experiment's folder, with MLflow's own empty ones in it, where folders are real.

        A folder that is the storage root itself stays.
        """
        place, root = folder.place, folder.root
        same_bucket = (place.scheme, place.authority) == (root.scheme, root.authority)
        if not (same_bucket and place.path.startswith(root.path)):
            raise UnsafeTarget(f"{place.path!r} is not below {root.path!r}")
        bucket = self.bucket(place)
        if not bucket.settings.has_folders:
            return
        for name in LAYOUT:
            bucket.remove_folder(place.path + name)
        if place != root:
            bucket.remove_folder(place.path.rstrip("/"))
