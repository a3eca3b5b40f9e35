"""Deletes the artifact trees of journal entries with many hands, and tells how each went.

It must never settle an entry, and never let one that fails keep another from being swept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from threading import Lock

from gcd.artifacts.base import (
    ArtifactStore,
    AskingArtifactStore,
    BulkArtifactStore,
    Deleted,
    Deletion,
    Order,
)
from gcd.errors import (
    GcdError,
    LockedArtifactError,
    PermanentArtifactError,
    TransientArtifactError,
    UnsafeTarget,
)
from gcd.logs import mask
from gcd.model import Entry, Kind, Outcome, Place, Result, Root, Target

GROUP = 500
"""Sweeps made durable by one flush."""
AHEAD = 4
"""Entries handed out per hand, so that none waits while outcomes are flushed and settled."""
ERROR_CHARACTERS = 500

logger = logging.getLogger(__name__)


def sweep(
    entries: Sequence[Entry],
    *,
    open_store: Callable[[str], ArtifactStore],
    roots: Mapping[Place, Root],
    veto: Callable[[Entry], str | None],
    now: datetime,
    hands: int,
    breaker: int = 3,
) -> Generator[Outcome, None, None]:
    """Delete the trees of `entries` and yield an outcome for each, in no particular order.

    `veto` is asked in the same hand immediately before a deletion; what it returns parks the entry.
    Trees of a store that deletes many with one request are handed to it together, `veto` for each.
    Nothing is deleted below a root that `roots` does not know. After `breaker` sweeps in a row that
    failed for a passing reason below one root, the rest there is deferred untried.

    A sweep is yielded only when its store has made it durable. Closing the iterator early waits for
    the hands; what they deleted but was not yielded stays due, and is found gone the next time. It
    raises nothing for an entry: a failure is an outcome.
    """
    state = _Sweep(open_store, roots, veto, now, breaker)
    pool = ThreadPoolExecutor(hands, thread_name_prefix="sweep")
    try:
        done: list[Outcome] = []
        single, bulk = state.parted(entries)
        one_by_one = _many_at_once(pool, state.outcome, single, hands * AHEAD)
        with closing(_in_turn(one_by_one, *(state.in_bulk(*each) for each in bulk))) as outcomes:
            for outcome in outcomes:
                done.append(outcome)
                if len(done) >= GROUP:
                    yield from state.flushed(done)
                    done = []
        yield from state.flushed(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_turn(*parts: Iterator[Outcome]) -> Generator[Outcome, None, None]:
    """One after the other; closing it closes the one whose turn it is."""
    for part in parts:
        yield from part


def _many_at_once(
    pool: ThreadPoolExecutor,
    work: Callable[[Entry], Outcome],
    entries: Sequence[Entry],
    at_once: int,
) -> Iterator[Outcome]:
    """Results as they come, with a bounded number of entries handed out."""
    waiting = iter(entries)
    out: set[Future[Outcome]] = {pool.submit(work, entry) for entry in islice(waiting, at_once)}
    while out:
        done, out = wait(out, return_when=FIRST_COMPLETED)
        out |= {pool.submit(work, entry) for entry in islice(waiting, len(done))}
        for future in done:
            yield future.result()


class _Forbidden(Exception):
    """The veto spoke against a tree that was to be deleted with others, or could not be asked."""

    def __init__(self, why: str | Exception) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(slots=True)
class _Sweep:
    """What the hands of one sweep share: stores that are open and how each root is doing."""

    open_store: Callable[[str], ArtifactStore]
    roots: Mapping[Place, Root]
    veto: Callable[[Entry], str | None]
    now: datetime
    breaker: int
    stores: dict[str, ArtifactStore] = field(default_factory=dict)
    failures: dict[Place, list[str]] = field(default_factory=dict)
    untried: dict[int, Exception] = field(default_factory=dict)
    """Why an entry was not handed to its store."""
    lock: Lock = field(default_factory=Lock)

    def outcome(self, entry: Entry) -> Outcome:
        """Sweep one entry; whatever is raised becomes its outcome."""
        if entry.target is None:
            return Outcome(entry, Result.SWEPT)
        try:
            return self._delete(entry, entry.target)
        except _Forbidden as forbidden:
            return self._not_permitted(entry, forbidden)
        except Exception as error:  # a hand outlives whatever a store or the veto raises
            return _failed(entry, error, self.now)

    def parted(
        self, entries: Sequence[Entry]
    ) -> tuple[list[Entry], list[tuple[BulkArtifactStore, list[Entry]]]]:
        """Entries to sweep one by one, and those that a store takes together."""
        single: list[Entry] = []
        bulk: dict[str, tuple[BulkArtifactStore, list[Entry]]] = {}
        for entry in entries:
            store = self._bulk_store(entry)
            if store is None or entry.target is None:
                single.append(entry)
            else:
                bulk.setdefault(entry.target.place.scheme, (store, []))[1].append(entry)
        return single, list(bulk.values())

    def _bulk_store(self, entry: Entry) -> BulkArtifactStore | None:
        """The store that takes this entry with others, None if there is none or it cannot be opened."""
        if entry.target is None or entry.kind is Kind.EXPERIMENT:
            return None
        try:
            store = self._store(entry.target.place.scheme)
        except Exception:  # told when its own turn comes
            return None
        return store if isinstance(store, BulkArtifactStore) else None

    def in_bulk(self, store: BulkArtifactStore, entries: Sequence[Entry]) -> Iterator[Outcome]:
        """Outcomes of entries that a store deletes together; what it keeps silent about has failed."""
        waiting: dict[Order, Entry] = {}
        told: set[int] = set()
        deletions = store.delete_many(self._orders(entries, waiting))
        silence: Exception = TransientArtifactError("the store did not tell what became of it")
        try:
            for deletion in deletions:
                entry = waiting.pop(deletion.order)
                told.add(entry.id)
                yield self._outcome_of(entry, deletion)
        except Exception as error:  # as in outcome()
            silence = error
        finally:
            if close := getattr(deletions, "close", None):
                close()
        for entry in entries:
            if entry.id not in told:
                yield self._not_told(entry, silence)

    def _orders(self, entries: Iterable[Entry], waiting: dict[Order, Entry]) -> Iterator[Order]:
        """An order for each entry that may be tried, made when the store asks for it."""
        for entry in entries:
            if entry.target is None:
                continue
            try:
                root = self._open_root(entry.target)
            except TransientArtifactError as error:
                self.untried[entry.id] = error
                continue
            order = Order(entry.target, root, partial(self._permit, entry))
            waiting[order] = entry
            yield order

    def _not_told(self, entry: Entry, silence: Exception) -> Outcome:
        """The outcome of an entry that was not handed to the store, or that it lost."""
        return _failed(entry, self.untried.pop(entry.id, silence), self.now)

    def _permit(self, entry: Entry) -> None:
        try:
            because = self.veto(entry)
        except Exception as error:  # told apart from what the store raises
            raise _Forbidden(error) from error
        if because:
            raise _Forbidden(because)

    def _outcome_of(self, entry: Entry, deletion: Deletion) -> Outcome:
        root, result = deletion.order.root.place, deletion.result
        match result:
            case _Forbidden():
                return self._not_permitted(entry, result)
            case Exception():
                self._note(root, result)
                return _failed(entry, result, self.now)
        self._note(root, None)
        return Outcome(entry, Result.SWEPT, usage=result.usage, changed_at=result.changed_at)

    def _not_permitted(self, entry: Entry, forbidden: _Forbidden) -> Outcome:
        """The outcome of an entry that the veto spoke against, or of which it could not be asked."""
        if isinstance(forbidden.why, Exception):
            return _failed(entry, forbidden.why, self.now)
        return Outcome(entry, Result.PARKED, error=_sentence(forbidden.why))

    def _open_root(self, target: Target) -> Root:
        """The tree's storage root. Raises if it is not known, or fails all the time."""
        root = self.roots.get(target.root)
        if root is None:
            raise TransientArtifactError("nothing is known of its storage root")
        if len(failures := self.failures.get(target.root, [])) >= self.breaker:
            text = f"not tried: {self.breaker} sweeps below its storage root failed in a row"
            raise TransientArtifactError(f"{text}, the last because: {failures[-1]}")
        return root

    def _delete(self, entry: Entry, target: Target) -> Outcome:
        root = self._open_root(target)
        store = self._store(target.place.scheme)
        order = Order(target, root, partial(self._permit, entry))
        if entry.kind is Kind.EXPERIMENT:
            order.permit()
            store.prune(target)
            return Outcome(entry, Result.SWEPT)
        deleted = self._counted(store, order)
        return Outcome(entry, Result.SWEPT, usage=deleted.usage, changed_at=deleted.changed_at)

    def _counted(self, store: ArtifactStore, order: Order) -> Deleted:
        """Delete, and count what fails in a row for a reason that may be the root's own."""
        try:
            deleted = _permitted(store, order)
        except _Forbidden:
            raise
        except Exception as error:
            self._note(order.target.root, error)
            raise
        self._note(order.target.root, None)
        return deleted

    def _note(self, root: Place, error: Exception | None) -> None:
        """Count what failed in a row below a root for a reason that is not the tree's own."""
        if isinstance(error, LockedArtifactError | PermanentArtifactError | UnsafeTarget):
            return
        with self.lock:
            if error is None:
                self.failures.pop(root, None)
            else:
                self.failures.setdefault(root, []).append(_told(error))

    def _store(self, scheme: str) -> ArtifactStore:
        with self.lock:  # importing an SDK once is enough
            if scheme not in self.stores:
                self.stores[scheme] = self.open_store(scheme)
            return self.stores[scheme]

    def flushed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes once their stores have made them durable; what they have not is deferred."""
        swept: dict[str, list[Target]] = {}
        for outcome in outcomes:
            if outcome.result is Result.SWEPT and outcome.entry.target is not None:
                target = outcome.entry.target
                swept.setdefault(target.place.scheme, []).append(target)
        failed: dict[str, str] = {}
        for scheme, targets in swept.items():
            try:
                self._store(scheme).flush(targets)
            except Exception as error:  # as in outcome()
                failed[scheme] = _told(error)
        return [_unless_flush_failed(outcome, failed) for outcome in outcomes]


def _permitted(store: ArtifactStore, order: Order) -> Deleted:
    """Delete one tree, the permit asked as late as the store lets it be."""
    if isinstance(store, AskingArtifactStore):
        return store.delete_order(order)
    order.permit()
    return store.delete(order.target, order.root)


def _unless_flush_failed(outcome: Outcome, failed: Mapping[str, str]) -> Outcome:
    target = outcome.entry.target
    if outcome.result is not Result.SWEPT or target is None or target.place.scheme not in failed:
        return outcome
    error = _sentence(f"deleted, but perhaps not durably: {failed[target.place.scheme]}")
    return replace(outcome, result=Result.DEFERRED, error=error)


def _failed(entry: Entry, error: Exception, now: datetime) -> Outcome:
    text = _told(error)
    match error:
        case LockedArtifactError(until=until) if until is None or until > now:
            return Outcome(entry, Result.LOCKED, error=text, until=until)
        case PermanentArtifactError() | UnsafeTarget():
            return Outcome(entry, Result.STUCK, error=text)
        case GcdError():
            return Outcome(entry, Result.DEFERRED, error=text)
    logger.warning("sweep of %s failed unexpectedly", entry.entity_id, exc_info=error)
    return Outcome(entry, Result.DEFERRED, error=text)


def _told(error: Exception) -> str:
    """What went wrong and what mends it, for the journal and for people."""
    if not isinstance(error, GcdError):
        return _sentence(f"{type(error).__name__}: {error}")
    return _sentence(f"{error.message} ({error.hint})" if error.hint else error.message)


def _sentence(text: str) -> str:
    """One line without credentials, of bounded length."""
    line = " ".join(mask(text).split())
    return line if len(line) <= ERROR_CHARACTERS else line[: ERROR_CHARACTERS - 3] + "..."
