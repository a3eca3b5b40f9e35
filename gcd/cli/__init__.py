"""The program `gcd`: a group of commands, each imported when it is called.

It must never import what only one command needs: `gcd --help` and completion are for waiting hands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gcd import __version__
from gcd.cli import failure, registry
from gcd.errors import GcdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EPILOG = """
\b
Start here:
  gcd demo        see it work on a store that it makes itself
  gcd plan        what would be deleted on yours, and what is kept and why
  gcd gc --help   the flags of `mlflow gc`, and more

\b
Exit codes:
   0  done, nothing to do included    11  another collector is at work
   1  error, or "no" at the prompt    12  database unreachable: try again
   2  usage                           13  more would go than is allowed
   3  partial: see the report         14  refused: schema or privileges
  10  configuration                  130  interrupted (143 by SIGTERM)

\b
Completion (zsh_source, fish_source for other shells):
  eval "$(_GCD_COMPLETE=bash_source gcd)"
"""


class Program(click.Group):
    """A click group that knows its commands from a table, and reports how they fail."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, click's signature
        """The names, without importing a command."""
        return list(registry.listing().commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command. Raises GcdError if it is a plug-in that cannot be used."""
        try:
            return registry.load(cmd_name)
        except GcdError:
            if ctx.resilient_parsing:
                return None  # the shell is completing: a broken plug-in completes to nothing
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, or say which one may be meant."""
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            ctx.fail(_unknown(args[0], self.list_commands(ctx)))
        return args[0] if command else None, command, args[1:]

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002, click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """List the commands from the table, and below them the plug-ins that are not used."""
        listing = registry.listing()
        with formatter.section("Commands"):
            formatter.write_dl(list(listing.commands.items()))
        if listing.refused:
            with formatter.section("Plug-ins not used"):
                for sentence in listing.refused:
                    formatter.write_text(sentence)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table."""
        from click.shell_completion import CompletionItem

        commands = registry.listing().commands.items()
        found = [CompletionItem(n, help=h) for n, h in commands if n.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> int:
        """Call the command; what it raises is told in a line or two, and becomes the exit code."""
        try:
            super().invoke(ctx)
            failure.flush_output()
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (Exception, KeyboardInterrupt) as error:  # the last place that can report it
            ctx.exit(failure.report(error, debug=ctx.params["debug"]))
        finally:
            failure.drop_unread_output()
        return 0


def _unknown(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known)
    meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"No such command {name!r}.{meant}"


def _no_color(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.color = False


@click.group("gcd", cls=Program, epilog=EPILOG)
@click.version_option(__version__, prog_name="gcd", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--no-color", envvar="NO_COLOR", hidden=True, expose_value=False, callback=_no_color)
def main(**_: Any) -> None:
    """Permanently delete what MLflow users have soft-deleted, and nothing else.

    Rows and artifacts of deleted runs go for good once they are old enough; what is restored,
    registered, held or shared stays, with a reason.
    """
