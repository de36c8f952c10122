"""``python -m limpet.cli`` is the ``limpet`` command."""

from limpet.cli import main

main()
