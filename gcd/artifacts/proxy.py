"""Deletes artifact trees by asking the MLflow server that keeps them, where an operator wants that.

It must never ask for more than one entity's own tree, nor believe the server's word: it answers that all
is well where its own store refused, so a tree is gone when it lists empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from gcd import clock
from gcd.artifacts.base import Deleted, Deletion, Options, Order, Remark
from gcd.artifacts.pace import Pace
from gcd.artifacts.proxy_errors import DESTINATION, Refused
from gcd.artifacts.proxy_server import ATTEMPTS, Server, checked, is_served
from gcd.artifacts.proxy_session import INSECURE, Session
from gcd.errors import (
    ArtifactError,
    BackendError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.model import Place, Probe, Root, Target, Usage
from gcd.planning.guard import place_uri, proxy_at

LOOKED_FOR = 500
"""Trees that a probe looks for, each with a request."""
ROUNDS = 3
"""How often a tree is asked to be deleted while something of it is listed."""
WALKED, DEEPEST = 10_000, 64
"""Folders of a tree that are looked into to count what it holds, and how deep: links may go in circles."""
FRESH = 60.0
"""Seconds for which something seen at the server proves that its store is there."""
AHEAD = 4
"""Trees handed out per hand."""


class ProxyArtifactStore:
    """Scheme mlflow-artifacts: an authority is the server, a path what it is asked for."""

    def __init__(self, url: str, options: Options | None = None) -> None:
        self.options = options or Options()
        self.authority = proxy_at(url).authority
        self.session = Session(url, self.options.environment, self.options.requests)
        pace = Pace(self.options.objects_per_second)
        self.server = Server(f"MLflow server {self.authority}", self.session, pace)
        self._seen_at: float | None = None

    @classmethod
    def with_options(cls, options: Options) -> ProxyArtifactStore:
        """A store as the operator wants it. Raises BackendError where no server is named."""
        if options.proxy is None:
            raise BackendError(
                "an MLflow server is to delete these files, and artifacts_proxy is not set",
                hint="set it, or --artifacts-proxy, until they are deleted",
            )
        return cls(options.proxy, options)

    def close(self) -> None:
        """End the connections that are kept."""
        self.session.close()

    # -- looking -----------------------------------------------------------------------------------

    def resolve(self, place: Place) -> Place:
        """The place itself: what is behind a name, only the server knows."""
        return place

    def storage_root(self, location: Place, root: Place) -> Place:  # noqa: ARG002
        """The root itself."""
        return root

    def probe(self, root: Place, named: Iterable[Place]) -> Probe:
        """Look whether a named tree is there, and whether the server can delete at all.

        A root has no identity: what the server stands before may be an empty mount point tomorrow. So
        a named tree is looked for each time.
        """
        try:
            self._refuse_another(root)
            self.server.is_empty(root.path)  # it answers with a listing
            below = islice((p.path for p in named if is_tree(p, root)), LOOKED_FOR)
            is_found = any(not self.server.is_empty(path) for path in below)
            return Probe(True, is_named_found=is_found, problem=self._cannot_delete(root))
        except ArtifactError as error:
            is_there = isinstance(error, PermanentArtifactError)  # it answers, and refuses
            text = f"{error.message}; {error.hint}" if error.hint else error.message
            return Probe(is_there, problem=text)

    def _cannot_delete(self, root: Place) -> str | None:
        offered = self.server.offers(f"{root.path}0/gcd/")
        if not offered or "DELETE" in offered:
            return None
        return f"{self.server.name} is too old to delete: MLflow 2.0 can; {DESTINATION}"

    def inspect(self, root: Place) -> Iterator[Remark]:  # noqa: ARG002
        """How the server is spoken to."""
        kind = self.session.credentials
        yield Remark(
            f"asked over HTTP, {f'with {kind} credentials' if kind else 'without credentials'}"
        )
        if not self.session.checks_tls:
            yield Remark("certificates are not checked", f"unset {INSECURE}")
        if kind and not self.session.is_encrypted and not is_loopback(self.session.host):
            yield Remark("credentials are sent without encryption", "give artifacts_proxy as https")

    def examine(self, target: Target) -> None:
        """Refuse a root, what is not below it, and what the server would take for another path."""
        self._path(target)

    def measure(self, target: Target) -> Usage:
        """Objects and bytes below the place, as the server tells; folders that go in circles once."""
        path = self._path(target)
        self._refuse_another(target.place)
        return self._counted(path)[0]

    def _counted(self, path: str) -> tuple[Usage, bool]:
        """What a tree holds, and whether anything at all is listed there.

        What cannot be listed by its name inside is not counted: the server deletes it all the same.
        """
        top = self.server.folder(path)
        usage = top.usage
        waiting = [f"{path}{name}/" for name in top.folders]
        for _ in range(WALKED):
            if not waiting:
                break
            inner = waiting.pop()
            try:
                found = self.server.folder(inner)
            except PermanentArtifactError:
                continue  # a link that leads out of the server's store
            usage += found.usage
            if inner.count("/") - path.count("/") < DEEPEST and len(waiting) < WALKED:
                waiting += [f"{inner}{name}/" for name in found.folders]
        is_listed = bool(top.usage.objects or top.folders or not top.is_whole)
        if is_listed:
            self._seen_at = clock.boottime()
        return usage, is_listed

    # -- deleting ----------------------------------------------------------------------------------

    def delete(self, target: Target, root: Root) -> Deleted:
        """Have everything below the place deleted, and see that it lists empty."""
        return self._delete(Order(target, root, permit=lambda: None))

    def delete_many(self, orders: Iterable[Order]) -> Iterator[Deletion]:
        """Have many trees deleted, each by a request of its own, several at once."""
        waiting = iter(orders)
        hands = self.options.requests
        with ThreadPoolExecutor(hands, thread_name_prefix="gcd-proxy") as pool:
            out: set[Future[Deletion]] = set()
            try:
                while True:
                    ready = islice(waiting, hands * AHEAD - len(out))
                    out |= {pool.submit(self._deletion, order) for order in ready}
                    if not out:
                        return
                    done, out = wait(out, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in out:
                    future.cancel()

    def _deletion(self, order: Order) -> Deletion:
        try:
            return Deletion(order, self._delete(order))
        except Exception as error:  # one order's trouble is not another's
            return Deletion(order, error)

    def _delete(self, order: Order) -> Deleted:
        path = self._path(order.target)
        self._refuse_root(order)
        usage, is_listed = self._counted(path)
        if not is_listed:
            self._refuse_unproved(order.root)
        for number in range(1, ROUNDS + 1):
            error = self._ask(order, path, usage)
            if self.server.is_empty(path):
                return Deleted(usage, None)
            if isinstance(error, PermanentArtifactError):
                raise error
            self.server.pace.pause(number)
        raise error or TransientArtifactError(
            f"{self.server.name}: what it says it deleted is still listed: {path!r}",
            hint="its own store refuses it: see the server's log",
        )

    def _ask(self, order: Order, path: str, usage: Usage) -> ArtifactError | None:
        """Ask for a deletion when its turn comes, the permit asked before it; again while refused."""
        attempt = 0
        while True:
            self.server.pace.admit(max(usage.objects, 1))
            order.permit()
            try:
                return self.server.delete(path)
            except Refused as error:
                self.server.pace.throttled()
                attempt += 1
                if attempt == ATTEMPTS:
                    raise
                self.server.wait(error, attempt)

    def prune(self, folder: Target) -> None:
        """Nothing: the server deletes a folder with all that is in it, never only an empty one."""

    def flush(self, targets: Iterable[Target]) -> None:
        """Nothing: what the server does not list was deleted by its own store."""

    # -- refusing ----------------------------------------------------------------------------------

    def _path(self, target: Target) -> str:
        """The path of a tree that may be deleted. Raises UnsafeTarget."""
        place, root = target.place, target.root
        names = place.path.removeprefix(root.path).removesuffix("/").split("/")
        if not is_below(place, root) or len(names) < 2:
            raise UnsafeTarget(
                f"{place.path!r} is not a tree in a folder of its own below {root.path!r}"
            )
        checked(place.path)
        return place.path

    def _refuse_root(self, order: Order) -> None:
        """Raise where the root is not this server's, or not the one that it was."""
        target, root = order.target, order.root
        if root.place != target.root:
            raise UnsafeTarget(f"{target.place.path!r} is not below {root.place.path!r}")
        self._refuse_another(target.place)
        if root.remembered_identity is not None:
            raise TransientArtifactError(
                f"{place_uri(root.place)} was {root.remembered_identity} once, and a server tells nothing",
                hint="if it is the right one: gcd doctor --accept-root",
            )

    def _refuse_another(self, place: Place) -> None:
        """Raise where a place is at another server."""
        if place.authority != self.authority:
            raise TransientArtifactError(
                f"artifacts_proxy is {self.authority}, and the files are with {place.authority}",
                hint="give that one as artifacts_proxy until they are deleted",
            )

    def _refuse_unproved(self, root: Root) -> None:
        """Raise where a tree is missing and nothing tells that the server's own store is there.

        What a probe found may be an hour old: a disk behind the server can be gone since.
        """
        if root.is_accepted:
            return
        if self._seen_at is not None and clock.boottime() - self._seen_at < FRESH:
            return
        if self.server.is_empty(root.place.path):
            uri = place_uri(root.place)
            raise TransientArtifactError(
                f"{self.server.name} lists nothing at all, so that a tree is missing proves nothing",
                hint=f"is its store mounted? If it is: gcd doctor --accept-root {uri}",
            )
        self._seen_at = clock.boottime()


def is_below(place: Place, root: Place) -> bool:
    """Whether a place is a tree below a root of the same server."""
    same = (place.scheme, place.authority) == (root.scheme, root.authority)
    return same and place.path.startswith(root.path) and place.path.endswith("/")


def is_tree(place: Place, root: Place) -> bool:
    """Whether a server can be asked for a named place below a root."""
    return is_below(place, root) and is_served(place.path)


def is_loopback(host: str) -> bool:
    """Whether a host is this one."""
    return host in ("localhost", "::1") or host.startswith("127.")
