"""What a mutation is: a small change of the source, and the tests that must notice it.

An edit replaces a text that must stand in its file exactly once: when the source changes, the list must follow. Where a
harness (power loss, corruption, simulation, fault server) catches a mutation too, a faster test is named here.
"""

from __future__ import annotations

from typing import NamedTuple

LOG = "engine/log.py"
HEAD = "engine/head.py"
WRITER = "engine/writer.py"
JANITOR = "engine/janitor.py"
LOCAL = "stores/local_objects.py"
FOLDERS = "stores/local_files.py"
READER = "engine/reader.py"
PIECES = "engine/pieces.py"

ON_LOG = "tests/protocol/test_log.py"
ON_COMMITS = "tests/protocol/test_commits.py"
ON_DELETING = "tests/protocol/test_deleting.py"
ON_OPENING = "tests/protocol/test_opening.py"
ON_INDEX = "tests/protocol/test_index.py"
ON_RECORDS = "tests/protocol/test_records.py"
ON_LOCAL = "tests/stores/test_local.py"
ON_OBJECTS = "tests/stores/test_objects.py"
ON_DAMAGE = "tests/reads/test_damage.py"
ON_ANSWERS = "tests/reads/test_answers.py"
ON_MOVING = "tests/reads/test_moving.py"
ON_GAPS = "tests/mutations/test_gaps.py"


class Edit(NamedTuple):
    """``old`` stands once in ``file``, below src/limpet, and becomes ``new``."""

    file: str
    old: str
    new: str


class Mutation(NamedTuple):
    """``tests``: arguments for pytest; some test that they select must fail."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def one(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    """A mutation of one edit. A last test without a slash is a ``-k`` expression."""
    selected = (*tests[:-1], "-k", tests[-1]) if "/" not in tests[-1] else tests
    return Mutation(name, (Edit(file, old, new),), selected)
