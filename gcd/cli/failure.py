"""Tells a person on stderr what went wrong, and the shell by an exit code.

It must never print a password, and never a traceback that nobody asked for.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from contextlib import suppress
from typing import TextIO

import click

from gcd.errors import ConfigError, GcdError


def report(error: BaseException, *, debug: bool) -> int:
    """Say what happened, with the traceback if `debug`; return the exit code."""
    if isinstance(error, BrokenPipeError) and _lost_its_reader():
        return 1  # `gcd plan | head`: nobody is left to tell
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, click.Abort):
        # click turns Ctrl-C at a prompt into the same exception as the end of input.
        error = error.__context__ or error
    if isinstance(error, KeyboardInterrupt):
        return _interrupted()
    if isinstance(error, (click.Abort, EOFError)):
        return _failed("aborted", 1)
    if isinstance(error, GcdError):
        return _refused(error)
    return _internal(error, debug=debug)


def flush_output() -> None:
    """Write out what is still buffered, while a failure to do so can be reported."""
    if sys.stdout is not None:  # it is, after `gcd >&-`
        sys.stdout.flush()


def drop_unread_output() -> None:
    """Throw away what cannot be written to stdout any more: Python would complain of it at exit."""
    try:
        flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted() -> int:
    if sys.stderr is not None and sys.stderr.isatty():
        _say("")  # ends the line on which the terminal shows ^C
    return _failed("interrupted", 130)


def _refused(error: GcdError) -> int:
    _failed(error.message, error.exit_code)
    if isinstance(error, ConfigError):
        for key, sentence in error.problems:
            _say(sentence, label=click.style(f"  {key}: ", bold=True))
    if error.hint:
        _hint(error.hint)
    return error.exit_code


def _internal(error: BaseException, *, debug: bool) -> int:
    lines = str(error).splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    _failed(f"internal error: {what}", 1)
    if not debug:
        _hint("`gcd --debug COMMAND ...` shows where")
    return 1


def _failed(message: str, exit_code: int) -> int:
    _say(message, label=click.style("gcd: ", fg="red", bold=True))
    return exit_code


def _hint(hint: str) -> None:
    _say(hint, label=click.style("  hint: ", fg="cyan"))


def _say(text: str, label: str = "") -> None:
    from gcd.logs import as_error, mask

    line = label + mask(text)
    # A reader of stderr that has gone must not change the exit code.
    with suppress(BrokenPipeError):
        click.echo(as_error(line) if _is_journal() else line, err=True)


def _is_journal() -> bool:
    try:
        from gcd.config import is_journal
    except ImportError:  # what fails may be the installation
        return False
    return is_journal()


def _lost_its_reader() -> bool:
    """Whether stdout or stderr is the broken pipe, and not some connection to a server."""
    return any(_is_broken(stream) for stream in (sys.stdout, sys.stderr) if stream is not None)


def _is_broken(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except OSError:
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported unasked
    return bool(poll.poll(0))
