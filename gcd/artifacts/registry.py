"""Finds the artifact backend for a URI's scheme: gcd's own, or one that a plug-in brings.

It must never import a backend before its scheme is met, nor let a plug-in take one of gcd's own schemes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock

from gcd import plugins
from gcd.artifacts.base import ArtifactStore, ClosingArtifactStore, Options
from gcd.errors import BackendError, ExtraMissing, GcdError, UnknownScheme
from gcd.plugins import Plugin

GROUP = "gcd.artifact_stores"


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a backend is: "package.module:Class", the extra that brings its library, and whose it is."""

    spec: str
    extra: str | None
    origin: str
    """The distribution to install for it, as pip names it."""


BUILTIN: Mapping[str, Backend] = {
    "file": Backend("gcd.artifacts.local:LocalArtifactStore", None, "gcd"),
    **dict.fromkeys(("s3", "r2", "b2"), Backend("gcd.artifacts.s3:S3ArtifactStore", "s3", "gcd")),
    "gs": Backend("gcd.artifacts.gcs:GCSArtifactStore", "gcs", "gcd"),
    **dict.fromkeys(
        ("wasb", "wasbs", "abfs", "abfss"),
        Backend("gcd.artifacts.azure:AzureArtifactStore", "azure", "gcd"),
    ),
    "mlflow-artifacts": Backend("gcd.artifacts.proxy:ProxyArtifactStore", "proxy", "gcd"),
    "ftp": Backend("gcd.artifacts.ftp:FtpArtifactStore", None, "gcd"),
    **dict.fromkeys(
        ("hdfs", "viewfs"),
        Backend("gcd.artifacts.fsspec_store:FsspecArtifactStore", "fsspec", "gcd"),
    ),
    "sftp": Backend("gcd.artifacts.sftp:SftpArtifactStore", "sftp", "gcd"),
}
METHODS = tuple(name for name in vars(ArtifactStore) if not name.startswith("_"))


class Registry:
    """The backends of this environment; holds one open store per scheme. Threads may share it.

    Entry points are read once, here, and what failed is not tried again: a library that is installed
    later is for the next registry.
    """

    def __init__(
        self, builtin: Mapping[str, Backend] = BUILTIN, options: Options | None = None
    ) -> None:
        self._options = options or Options()
        claims = plugins.settled(plugins.read(GROUP), own=builtin, noun="scheme")
        theirs = {p.name: Backend(p.spec, p.extra, p.origin) for p in claims.accepted.values()}
        self._backends = {**theirs, **builtin}
        self._refused = claims.refused
        self._stores: dict[str, ArtifactStore] = {}
        self._failed: dict[str, BackendError] = {}
        self._lock = RLock()

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that somebody claims to serve; whether it works, only `problem` knows."""
        return tuple(sorted(self._backends))

    @property
    def problems(self) -> list[str]:
        """A sentence for each plug-in that was refused, and each backend that could not be loaded."""
        return [*self._refused.values(), *(e.message for e in list(self._failed.values()))]

    def problem(self, scheme: str) -> str | None:
        """Why nothing of this scheme can be deleted here, in one sentence; None if it can.

        Imports the backend to know it, once per scheme.
        """
        try:
            self.open(scheme)
        except BackendError as error:
            return f"{error.message}; {error.hint}" if error.hint else error.message
        return None

    def open(self, scheme: str) -> ArtifactStore:
        """The store for a scheme, the same one each time.

        Raises UnknownScheme if nobody serves it, ExtraMissing if a library is not installed, and
        BackendError if the backend is broken.
        """
        if scheme in self._stores:
            return self._stores[scheme]
        with self._lock:
            if scheme in self._failed:
                raise self._failed[scheme].with_traceback(None)
            if scheme not in self._stores:
                self._stores[scheme] = self._opened(scheme)
            return self._stores[scheme]

    def close(self) -> None:
        """End the connections that stores keep; one that cannot has done its work all the same."""
        for store in list(self._stores.values()):
            if isinstance(store, ClosingArtifactStore):
                with suppress(Exception):
                    store.close()

    def _opened(self, scheme: str) -> ArtifactStore:
        backend = self._backends.get(scheme)
        if backend is None:
            raise UnknownScheme(self._refused.get(scheme) or self._unknown(scheme))
        plugin = Plugin(scheme, *_fields(backend))
        try:
            return _made(plugin, self._options)
        except BackendError as error:
            self._failed[scheme] = error
            raise

    def _unknown(self, scheme: str) -> str:
        return f"no backend for scheme {scheme} (known: {', '.join(self.schemes)})"


def _fields(backend: Backend) -> tuple[str, str | None, str]:
    return backend.spec, backend.extra, backend.origin


def _made(plugin: Plugin, options: Options) -> ArtifactStore:
    try:
        backend = plugins.load(plugin)
        configured = getattr(backend, "with_options", None)
        store: ArtifactStore = configured(options) if configured else backend()
    except ExtraMissing:
        raise
    except GcdError as error:
        raise BackendError(error.message, hint=error.hint) from error
    except Exception as error:  # foreign code runs here: it may raise anything
        what = f"{type(error).__name__}: {error}"
        raise BackendError(f"{plugin.name}: {plugin.origin} cannot be opened: {what}") from error
    lacking = [name for name in METHODS if not callable(getattr(store, name, None))]
    if lacking:
        # Found out now, not after the rows are purged.
        raise BackendError(f"{plugin.name}: {plugin.origin} lacks {', '.join(lacking)}")
    return store
