"""Which tree belongs to a candidate, and which places are never touched.

It must never return a target that is a root, contains one, lies outside the scope or belongs to
another entity; what it cannot tell it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlparse, urlsplit, urlunparse

from gcd.errors import UnknownScheme, UnsafeTarget
from gcd.model import Candidate, Kind, Place, Target

NO_PLACE = frozenset({"runs", "models"})
"""Schemes that name another URI, not a place."""
PROXIED = "mlflow-artifacts"
"""The scheme of what an MLflow server keeps for its clients, wherever that is."""
PROXY_PATH = re.compile(
    r"(?P<base>(?:/[^/]+)*?)/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts/(?P<path>.*)", re.DOTALL
)
UNSERVED = re.compile("[\x00-\x1f\x7f?#]")
"""What MLflow's server takes out of a name, or writes in another way."""
UNQUOTINGS = 10
"""How often MLflow's server unquotes a path before it gives up."""
SYSTEM = frozenset(
    [
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "sys",
        "usr",
    ]
)
USER_SPACE = ("usr", "local")
FOLDERS_AT = frozenset({"file", "sftp", "ftp", "hdfs", "viewfs"})
"""Schemes of real folders, on disks that may be away."""
HOMES = frozenset({"home", "Users"})
FOLDERS = {Kind.RUN: (), Kind.LOGGED_MODEL: ("models",), Kind.TRACE: ("traces",)}
"""The folders between an experiment's location and the folder that is named by the entity's id."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The MLflow server that deletes what it keeps for its clients, where a person asked for that."""

    authority: str
    """Its host, and its port where that is not its scheme's own; in small letters."""
    base: str
    """The path below which it serves, "" or like "/mlflow"."""
    names: frozenset[str]
    """Every way to write the authority."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where gcd may delete, beyond the artifact location of an entity's own experiment."""

    destination: Place | None
    """What `mlflow-artifacts:` URIs are mapped onto."""
    hosts: frozenset[str]
    """Hosts of such URIs that the destination, or the proxy, serves."""
    roots: tuple[Place, ...]
    """Places below which trees with the right id may be deleted wherever they are."""
    proxy: Proxy | None = None
    """Who deletes what such URIs name where the destination is not known."""
    ignored_sources: frozenset[str] = frozenset()
    """Relative paths, recorded as sources of model versions, that lie in no artifact tree."""


NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())


@dataclass(frozen=True, slots=True)
class Site:
    """An experiment's artifact location: as recorded, under its true name, and its storage root."""

    recorded: Place
    true: Place
    root: Place


# -- places --------------------------------------------------------------------------------------


def parse_place(uri: str, scope: Scope) -> Place:
    """The place of a recorded URI.

    Raises UnsafeTarget for what names no place that gcd can be sure of, UnknownScheme for a proxied
    URI without a destination or of a host that is not in the scope.
    """
    if not uri.strip() or "\0" in uri:
        raise UnsafeTarget("the URI is empty" if not uri.strip() else "the URI holds a NUL")
    if uri.startswith("/"):  # MLflow unquotes a bare path as it does a file: URI (tried)
        return local_place(uri, unquote(uri, errors="surrogateescape"))
    scheme, colon, rest = uri.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        raise UnsafeTarget(f"{shown(uri)} is relative to a folder that only the server knows")
    scheme = scheme.lower()
    if re.search(r"[\t\r\n]", rest):  # Python's urlsplit drops them, and MLflow's place is another
        raise UnsafeTarget(f"{shown(uri)} holds a tab or a line break")
    if scheme == "file":
        return file_place(uri, rest)
    if scheme == PROXIED:
        host, path = split_authority(rest)
        return proxied_place(uri, host, path, scope)
    if scheme in ("http", "https"):
        return endpoint_place(uri, scheme, rest, scope)
    if scheme in NO_PLACE or not rest.startswith("/"):
        raise UnsafeTarget(f"{shown(uri)} is a reference, not a place")
    authority, path = split_authority(rest)
    if "?" in path or "#" in path:  # MLflow leaves both out of the key: it is not what it says
        raise UnsafeTarget(f"{shown(uri)} has a query or a fragment")
    return Place(scheme, without_password(authority), closed(path))


def endpoint_place(uri: str, scheme: str, rest: str, scope: Scope) -> Place:
    """The place of a URI that names a tracking server's endpoint for artifacts."""
    host, path = split_authority(rest)
    proxied = PROXY_PATH.fullmatch("/" + path)
    if proxied is None or not is_base(proxied["base"], host, scope):
        raise UnknownScheme(f"nobody can delete at {scheme}://{without_password(host)}/…")
    return proxied_place(uri, host, proxied["path"], scope)


def split_authority(rest: str) -> tuple[str, str]:
    """Authority and path of what follows a scheme; exactly one leading "/" of the path is taken off."""
    if not rest.startswith("//"):
        return "", rest.removeprefix("/")
    authority, _, path = rest[2:].partition("/")
    return authority, path


def without_password(authority: str) -> str:
    """An authority whose user, or Azure container, stays and whose password does not."""
    user, at, host = authority.rpartition("@")
    return f"{user.partition(':')[0]}{at}{host}"


def shown(uri: str) -> str:
    """A URI for people, without its password."""
    return repr(re.sub(r"(://[^/?#@]*?):[^/?#@]*@", r"\1@", uri))


def closed(path: str) -> str:
    """A raw path that ends in "/", except that of a whole bucket, which is empty."""
    return path if not path or path.endswith("/") else path + "/"


def file_place(uri: str, rest: str) -> Place:
    """The place of a file: URI, which is percent-encoded."""
    authority, path = split_authority(rest)
    if authority not in ("", "localhost"):
        raise UnsafeTarget(f"{shown(uri)} is on the host {without_password(authority)}")
    if not rest.startswith("/"):
        raise UnsafeTarget(f"{shown(uri)} is relative to a folder that only the server knows")
    if "?" in path or "#" in path:
        raise UnsafeTarget(f"{shown(uri)} has a query or a fragment")
    return local_place(uri, "/" + unquote(path, errors="surrogateescape"))


def local_place(uri: str, path: str) -> Place:
    """The place of an absolute path; doubled slashes are one, dots are refused."""
    names = [name for name in path.split("/") if name]
    refuse_dots(uri, names)
    if "\0" in path:
        raise UnsafeTarget(f"{shown(uri)} holds a NUL")
    return Place("file", "", "/" + "".join(name + "/" for name in names))


def proxied_place(uri: str, host: str, path: str, scope: Scope) -> Place:
    """What the tracking server would make of a proxied path: a path below its destination.

    Where the destination is not known, and a proxy is: the place as the proxy is asked for it.
    """
    if host and not is_own_host(host, scope):
        raise UnknownScheme(
            f"artifacts of the tracking server {without_password(host)} are not known to be here",
            hint=f'list it in artifacts.hosts = ["{without_password(host)}"] if they are',
        )
    if scope.destination is None and scope.proxy is None:
        raise UnknownScheme(
            "proxied artifacts (mlflow-artifacts:) without a known destination",
            hint="give --artifacts-destination as the tracking server has it",
        )
    names = [name for name in served(path).split("/") if name]
    refuse_dots(uri, names)
    if any(UNSERVED.search(name) for name in names):
        raise UnsafeTarget(f"{shown(uri)} has a query, a fragment or a control character")
    below_it = "".join(name + "/" for name in names)
    if scope.destination is None:
        return Place(PROXIED, scope.proxy.authority if scope.proxy else "", below_it)
    if scope.destination.scheme == "file":
        return local_place(uri, scope.destination.path + below_it)
    destination = scope.destination
    return Place(destination.scheme, destination.authority, closed(destination.path + below_it))


def in_workspace(uri: str, workspace: str | None) -> str:
    """A recorded URI as the tracking server takes it for somebody of a workspace (tried).

    It puts what it keeps for a workspace below `workspaces/NAME`, also where the URI does not say so.
    """
    scheme, _, rest = uri.partition(":")
    if workspace in (None, "", "default") or scheme.lower() not in (PROXIED, "http", "https"):
        return uri
    authority, path = split_authority(rest)
    base = "/"
    if scheme.lower() != PROXIED:
        web = PROXY_PATH.fullmatch("/" + path)
        if web is None:
            return uri
        base, path = f"/{path.removesuffix(web['path'])}", web["path"]
    first = next(filter(None, unquote(path).split("/")), "")
    if first == "workspaces":
        return uri
    host = f"//{authority}" if rest.startswith("//") else ""
    return f"{scheme}:{host}{base}workspaces/{workspace}/{path}"


def proxy_at(url: str) -> Proxy:
    """The proxy that serves at a URL, which has been checked."""
    found = urlsplit(url)
    standard = {"http": 80, "https": 443}[found.scheme.lower()]
    port = found.port or standard
    bare = re.sub(r":\d*$", "", found.netloc.lower())
    names = [bare, f"{bare}:{port}"] if port == standard else [f"{bare}:{port}"]
    return Proxy(names[0], found.path.rstrip("/"), frozenset(names))


def is_own_host(host: str, scope: Scope) -> bool:
    """Whether a host of a proxied URI is the tracking server's, as far as is known."""
    name = host.rpartition("@")[2].lower()
    own = {each.lower() for each in scope.hosts}
    if scope.proxy is not None and name in scope.proxy.names:
        return True
    return bool({name, re.sub(r":\d*$", "", name)} & own)


def is_base(base: str, host: str, scope: Scope) -> bool:
    """Whether the tracking server serves below this path: two may share a host."""
    if scope.proxy is not None and host.rpartition("@")[2].lower() in scope.proxy.names:
        return base == scope.proxy.base
    return not base


def served(path: str) -> str:
    """A proxied path as the tracking server takes it: unquoted until it stops changing (tried).

    Raises UnsafeTarget where the server, which takes it for a URL then, would look elsewhere.
    """
    for _ in range(UNQUOTINGS):
        before, path = path, unquote(path, errors="surrogateescape")
        if path == before:
            break
    else:
        raise UnsafeTarget(f"{shown(path)} is quoted more often than MLflow undoes")
    if not is_kept(path):
        raise UnsafeTarget(f"{shown(path)} is another path to MLflow's server")
    return path


def is_kept(path: str) -> bool:
    """Whether a path comes out of Python's URL parser as it went in: MLflow's server puts it through."""
    try:
        return urlunparse(urlparse(path)) == path
    except ValueError:
        return False


def refuse_dots(uri: str, names: list[str]) -> None:
    """A "." or ".." segment could lead anywhere."""
    if any(name in (".", "..") for name in names):
        raise UnsafeTarget(f"{shown(uri)} has a segment of dots")


def place_uri(place: Place) -> str:
    """A place as a URI that `parse_place` reads back, for the journal and for people."""
    if place.scheme == "file":
        return "file://" + quote(place.path, errors="surrogateescape")
    return f"{place.scheme}://{place.authority}/{place.path}"


def written_place(uri: str) -> Place:
    """The place that `place_uri` wrote, whatever the configuration says now."""
    scheme, _, rest = uri.partition(":")
    authority, path = split_authority(rest)
    if scheme == PROXIED and authority:
        return Place(PROXIED, authority, path)
    return parse_place(uri, NOWHERE)


def below(place: Place, *names: str) -> Place:
    """The place of these names below another one."""
    return Place(place.scheme, place.authority, place.path + "".join(name + "/" for name in names))


def contains(outer: Place, inner: Place) -> bool:
    """Whether a place equals another or contains it, by whole segments."""
    same_store = (outer.scheme, outer.authority) == (inner.scheme, inner.authority)
    return same_store and inner.path.startswith(outer.path)


# -- roots ---------------------------------------------------------------------------------------


def known_roots(scope: Scope) -> tuple[Place, ...]:
    """The storage roots that were configured."""
    return (*scope.roots, *([scope.destination] if scope.destination else []))


def layout_root(location: Place, experiment_id: str, scope: Scope) -> Place:
    """The storage root of an experiment's location, by MLflow's layout of artifact roots."""
    around = [root for root in known_roots(scope) if contains(root, location)]
    # Of a bucket too: files found elsewhere in it do not prove what proxied URIs map to.
    if around:
        return max(around, key=lambda root: len(root.path))
    if location.scheme not in FOLDERS_AT:
        return Place(location.scheme, location.authority, "")
    names = location.path.strip("/").split("/")
    if names[-1] != experiment_id or len(names) < 2:
        return location
    names = names[:-1]
    if len(names) > 2 and names[-2] == "workspaces":
        names = names[:-2]
    start = "/" if location.path.startswith("/") else ""
    path = start + "".join(name + "/" for name in names)
    return Place(location.scheme, location.authority, path)


def nearest(root: Place, location: Place, remembered: Collection[Place]) -> Place:
    """The root, or one remembered that is nearer to the location.

    Where a disk was once mounted below another root, its mount point stays a root of its own: while
    the disk is away it is an empty folder, and what the other root holds says nothing about it.
    """
    path, found = root.path, root
    if not contains(root, location):
        return root
    for name in location.path.removeprefix(root.path).split("/")[:-1]:
        path += name + "/"
        here = Place(root.scheme, root.authority, path)
        if here in remembered:
            found = here
    return found


def why_sacred(location: Place) -> str | None:
    """Why a location is too general to delete below without being told to, None if it is not."""
    names = [name for name in location.path.split("/") if name]
    if location.scheme == PROXIED:
        return None if names else "it is all that the server keeps"
    if location.scheme != "file":
        return None if names else "it is a whole bucket"
    if not names:
        return "it is the root of the file system"
    if names[0] in SYSTEM and tuple(names[:2]) != USER_SPACE:
        return "it belongs to the system"
    if len(names) == 1 or tuple(names) == USER_SPACE:
        return "it is a folder at the top of the file system"
    if len(names) == 2 and names[0] in HOMES:
        return "it is a home folder"
    return None


# -- targets -------------------------------------------------------------------------------------


def make_targets(candidate: Candidate, site: Site, scope: Scope) -> tuple[Target, ...]:
    """The trees that belong to a candidate: each carries its id, at its experiment's place.

    Without a recorded URI the tree is where MLflow puts it. An experiment has its folder, which is
    only ever removed when it is empty. Raises UnsafeTarget, UnknownScheme.
    """
    if candidate.kind is Kind.EXPERIMENT:
        return folder_of(site, scope)
    uris = [candidate.uri] + ([candidate.archive_uri] if candidate.archive_uri else [])
    return tuple(dict.fromkeys(make_target(candidate, uri, site, scope) for uri in uris))


def folder_of(site: Site, scope: Scope) -> tuple[Target, ...]:
    """An experiment's folder; where that is a storage root itself, what MLflow made in it.

    None where another root lies in it, which may be a disk that is not mounted now.
    """
    refuse_sacred(site, scope)
    others = [root for root in known_roots(scope) if root != site.true]
    if any(contains(site.true, root) for root in others) or not contains(site.root, site.true):
        return ()
    return (Target(site.true, site.root),)


def make_target(candidate: Candidate, uri: str | None, site: Site, scope: Scope) -> Target:
    """The tree that a URI of the candidate names. Raises UnsafeTarget, UnknownScheme."""
    names = entity_names(candidate.kind, candidate.id)
    home = below(site.recorded, *names)
    place = home if uri is None else parse_place(uri, scope)
    if place == home:
        refuse_sacred(site, scope)
        return checked(Target(below(site.true, *names), site.root), scope)
    suffix = "/" + "/".join(names) + "/"
    roots = [root for root in scope.roots if contains(root, place)]
    if roots and place.path.endswith(suffix):
        return checked(Target(place, max(roots, key=lambda root: len(root.path))), scope)
    raise UnsafeTarget(
        f"its artifact URI {place_uri(place)} is not {place_uri(home)}",
        hint="artifacts.roots allows more places for trees that carry the right id",
    )


def refuse_sacred(site: Site, scope: Scope) -> None:
    """UnsafeTarget where the experiment's location is too general to delete below."""
    sacred = why_sacred(site.true)
    if sacred and not any(contains(root, site.true) for root in scope.roots):
        raise UnsafeTarget(
            f"its experiment's location is {place_uri(site.true)}: {sacred}",
            hint="artifacts.roots allows it",
        )


def entity_names(kind: Kind, entity_id: str) -> tuple[str, ...]:
    """The names from the experiment's location down to an entity's tree. Raises UnsafeTarget."""
    if kind not in FOLDERS:
        raise UnsafeTarget(f"the kind {kind} has no tree of its own")
    if not entity_id or entity_id in (".", "..") or re.search(r"[/\0]", entity_id):
        raise UnsafeTarget(f"{entity_id!r} cannot be the name of a folder")
    return (*FOLDERS[kind], entity_id, "artifacts")


def checked(target: Target, scope: Scope) -> Target:
    """The same target, which must lie at least two folders below its root, and hold no other root."""
    rest = target.place.path.removeprefix(target.root.path)
    if not contains(target.root, target.place) or len(rest.strip("/").split("/")) < 2:
        raise UnsafeTarget(
            f"{place_uri(target.place)} is not well below its storage root {place_uri(target.root)}"
        )
    for root in known_roots(scope):
        if contains(target.place, root):
            raise UnsafeTarget(
                f"{place_uri(target.place)} holds the storage root {place_uri(root)}"
            )
    return target
