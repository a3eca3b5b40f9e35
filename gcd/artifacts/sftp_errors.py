"""Says in gcd's errors what an SFTP server refused, and what mends it.

It must never take a refusal for an absence, nor hold a password in what it says.
"""

from __future__ import annotations

import struct

import paramiko

from gcd.artifacts.remote_files import Lost
from gcd.artifacts.remote_walk import read_only
from gcd.artifacts.walk import shown
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

FOREIGN = (
    paramiko.SSHException,
    paramiko.SFTPError,
    EOFError,
    OSError,
    ValueError,
    struct.error,
)
"""What comes out of paramiko; the last ones where a reply is not what it should be."""
CHARACTERS = 200


class UnknownHostKey(paramiko.SSHException):
    """The server's key is in no file of known hosts."""

    def __init__(self, kind: str, fingerprint: str) -> None:
        super().__init__(f"its host key ({kind} {fingerprint}) is not known")


def refused(error: Exception, where: str, path: str) -> ArtifactError:
    """An error of one request, which was about a path."""
    what = f"{where}: {shown(path)}"
    if isinstance(error, PermissionError):
        hint = "let the user that gcd logs in as write and search the folder that holds it"
        return PermanentArtifactError(f"{what}: permission denied", hint=hint)
    if is_answer(error):
        text = str(error)[:CHARACTERS] or "Failure"
        if "read-only" in text.lower():
            return read_only(what)
        return TransientArtifactError(f"{what}: the server says {text!r}")
    return lost(error, where)


def is_answer(error: BaseException) -> bool:
    """Whether the server answered, or nothing is known: paramiko has one class for both."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return True
    return type(error) is OSError and error.errno is None


def lost(error: Exception, where: str) -> Lost:
    """The connection is of no use any more."""
    said = str(error)[:CHARACTERS] or type(error).__name__
    return Lost(f"{where}: the connection broke off: {said}", hint="is the server up?")


def not_connected(error: Exception, where: str, host: str, port: int) -> Lost:
    """Why no connection could be had. What mends it makes everything go on by itself."""
    said = str(error)[:CHARACTERS] or type(error).__name__
    host_key = host if port == 22 else f"[{host}]:{port}"
    match error:
        case paramiko.BadHostKeyException():
            hint = (
                "if the server was reinstalled: check its new key, then"
                f" `ssh-keygen -R '{host_key}'` and `ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts`"
            )
            return Lost(f"{where}: its host key is another one than in known_hosts", hint=hint)
        case UnknownHostKey():
            hint = (
                f"check it, then `ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts`"
                " as the user that gcd runs as"
            )
            return Lost(f"{where}: {said}", hint=hint)
        case paramiko.AuthenticationException():
            hint = (
                "give what MLflow logs in with: user and password in the URI, an IdentityFile in"
                " ~/.ssh/config, an agent, or SFTP_KEY_FILE"
            )
            return Lost(f"{where}: the login was refused: {_without_lists(said)}", hint=hint)
        case TimeoutError():
            return Lost(f"{where}: no answer in time", hint="is the server up?")
    return Lost(f"{where}: {said}", hint="is the host right, and does it answer?")


def _without_lists(said: str) -> str:
    """paramiko lists what it tried; that is for nobody."""
    return said.partition("\n")[0].rstrip(" .:")
