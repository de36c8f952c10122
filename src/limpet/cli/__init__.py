"""The command line. ``main`` is what the ``limpet`` script calls; typer and rich are imported only below it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its code."""
    if any(find_spec(package) is None for package in ("typer", "rich")):
        print('error: the limpet command needs packages that are not here: pip install "limpet[cli]"', file=sys.stderr)
        sys.exit(2)
    from limpet.cli.app import run

    run()
