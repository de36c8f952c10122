"""The commands, and how they end: 0, 1 with one line of error, 2 for a wrong call, 130 for Ctrl-C."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from limpet.cli.checkpoints import ls, show, verify
from limpet.cli.demo.command import demo
from limpet.cli.output import print_error
from limpet.cli.restore import restore
from limpet.errors import LimpetError

__all__ = ["app", "run"]

INTERRUPTED = 130

app = typer.Typer(
    name="limpet",
    help="Checkpoints that survive the process: look at them, check them, restore them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (demo, ls, show, verify, restore):
    app.command()(command)


def run() -> None:
    """Run the command that ``sys.argv`` names and exit with its code."""
    try:
        app()
    except LimpetError as error:
        print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Who read us has gone; without this the interpreter would complain while it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print_error(str(error))
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"limpet {metadata.version('limpet')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
