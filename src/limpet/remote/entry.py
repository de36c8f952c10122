"""Where the writer's process begins: run as a file, isolated, with the descriptor of its socket and its trainer's pid.

Nothing of the user's gets in: neither the program's ``__main__``, nor its folder, nor what its environment adds to the
path. What limpet needs lies where the last argument says, one folder an entry.
"""

import os
import sys


def _main() -> None:
    sys.path.extend(path for path in sys.argv[3].split(os.pathsep) if path not in sys.path)
    from limpet.remote.hosting import host

    host(int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    _main()
