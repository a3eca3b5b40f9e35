"""Deletes the artifact trees of journal entries with many hands, and tells how each went.

It must never settle an entry, and never let one that fails keep another from being swept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from threading import Lock

from gcd.artifacts.base import ArtifactStore, Deleted
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
) -> Iterator[Outcome]:
    """Delete the trees of `entries` and yield an outcome for each, in no particular order.

    `veto` is asked in the same hand immediately before a deletion; what it returns parks the entry.
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
        for outcome in _many_at_once(pool, state.outcome, entries, hands * AHEAD):
            done.append(outcome)
            if len(done) >= GROUP:
                yield from state.flushed(done)
                done = []
        yield from state.flushed(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    lock: Lock = field(default_factory=Lock)

    def outcome(self, entry: Entry) -> Outcome:
        """Sweep one entry; whatever is raised becomes its outcome."""
        if entry.target is None:
            return Outcome(entry, Result.SWEPT)
        try:
            return self._delete(entry, entry.target)
        except Exception as error:  # a hand outlives whatever a store or the veto raises
            return _failed(entry, error, self.now)

    def _delete(self, entry: Entry, target: Target) -> Outcome:
        root = self.roots.get(target.root)
        if root is None:
            raise TransientArtifactError("nothing is known of its storage root")
        if len(failures := self.failures.get(target.root, [])) >= self.breaker:
            text = f"not tried: {self.breaker} sweeps below its storage root failed in a row"
            raise TransientArtifactError(f"{text}, the last because: {failures[-1]}")
        store = self._store(target.place.scheme)
        if because := self.veto(entry):
            return Outcome(entry, Result.PARKED, error=_sentence(because))
        if entry.kind is Kind.EXPERIMENT:
            store.prune(target)
            return Outcome(entry, Result.SWEPT)
        deleted = self._counted(store, target, root)
        return Outcome(entry, Result.SWEPT, usage=deleted.usage, changed_at=deleted.changed_at)

    def _counted(self, store: ArtifactStore, target: Target, root: Root) -> Deleted:
        """Delete, and count what fails in a row for a reason that may be the root's own."""
        try:
            deleted = store.delete(target, root)
        except (LockedArtifactError, PermanentArtifactError, UnsafeTarget):
            raise  # a trouble of this tree
        except Exception as error:
            with self.lock:
                self.failures.setdefault(target.root, []).append(_told(error))
            raise
        with self.lock:
            self.failures.pop(target.root, None)
        return deleted

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
