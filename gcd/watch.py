"""Watches what refers to entities while they are collected: model versions that come meanwhile.

Invariant: an answer is never older than the question. Whoever asks while another thread does waits
for a look that began after that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gcd.planning.registered import Meanings, VersionIndex
from gcd.store.news import News


class Watch:
    """The model versions of a store, read once and kept up to date by all threads together."""

    def __init__(self, news: Sequence[News], reader: Callable[[], Meanings]) -> None:
        self._news = news
        self._reader = reader
        self._index = VersionIndex()
        self._looking = threading.Lock()
        self._begun = 0
        self._ended = 0
        """The number of the last look that came to its end."""

    def refreshed(self) -> VersionIndex:
        """The index with every version that was registered before this call.

        Raises StoreUnreachable, StoreRefused: then nothing may be deleted.
        """
        begun = self._begun
        with self._looking:
            if self._ended <= begun:  # else one began meanwhile, and serves all who waited
                self._look()
        return self._index

    def _look(self) -> None:
        self._begun += 1
        meanings = self._reader()
        for news in self._news:
            for version in news.new():
                self._index.add(version, meanings)
        while named := self._index.named():  # a chain of versions may be a circle
            for news in self._news:
                for version in news.deleted(named):
                    self._index.add(version, meanings)
            self._index.answer(named)
        self._index.is_filled = True
        self._ended = self._begun
