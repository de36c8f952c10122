"""Every object key, built and parsed here and nowhere else.

Keys hold integers and hex digits only, so that no user text can reach a path, and parse by strict
patterns: what does not match was not written by limpet and is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from limpet.errors import UsageError

__all__ = [
    "DATA_PREFIX",
    "FORMAT_KEY",
    "LOG_PREFIX",
    "PackName",
    "child_prefix",
    "epoch_prefix",
    "log_folders",
    "log_key",
    "pack_epochs",
    "pack_key",
    "parse_log_key",
    "parse_pack_key",
]

FORMAT_KEY = "limpet.json"
LOG_PREFIX = "log/"
DATA_PREFIX = "data/"
MAX_SEQ = 10**16 - 1
_RECORDS_PER_FOLDER = 1000
_LOG = re.compile(r"log/([0-9]{13})/([0-9]{16})\.json")
_LOG_FOLDER = re.compile(r"[0-9]{13}")
_EPOCH_FOLDER = re.compile(r"[0-9]{16}")
_PACK = re.compile(r"data/([0-9]{16})/([0-9]{8})-([0-9a-f]{8})-([0-9]{4})-([0-9]{3})\.pack")


@dataclass(frozen=True, slots=True)
class PackName:
    """What a pack's key says.

    Attributes:
        epoch: of the writer.
        save: number of the save within its epoch.
        nonce: 8 hex digits, new for every try.
        rank: of the process that wrote it.
        part: number of the pack within the save.
    """

    epoch: int
    save: int
    nonce: str
    rank: int
    part: int


def log_key(seq: int) -> str:
    """The key of record ``seq`` (1 or more)."""
    if not 1 <= seq <= MAX_SEQ:
        raise ValueError(f"seq out of range: {seq}")
    return f"{LOG_PREFIX}{seq // _RECORDS_PER_FOLDER:013d}/{seq:016d}.json"


def parse_log_key(key: str) -> int | None:
    """The seq of a record's key; ``None`` for anything else."""
    match = _LOG.fullmatch(key)
    if match is None:
        return None
    seq = int(match[2])
    return seq if seq >= 1 and int(match[1]) == seq // _RECORDS_PER_FOLDER else None


def log_folders(names: Iterable[str]) -> list[str]:
    """Prefixes of the folders of records among ``names``, newest first."""
    return [f"{LOG_PREFIX}{name}/" for name in sorted(filter(_LOG_FOLDER.fullmatch, names), reverse=True)]


def epoch_prefix(epoch: int) -> str:
    """Where the packs of ``epoch`` lie."""
    return f"{DATA_PREFIX}{epoch:016d}/"


def pack_epochs(names: Iterable[str]) -> list[int]:
    """The epochs whose folders are among ``names``, newest first."""
    return sorted(map(int, filter(_EPOCH_FOLDER.fullmatch, names)), reverse=True)


def pack_key(name: PackName) -> str:
    """The key of a pack."""
    key = f"{epoch_prefix(name.epoch)}{name.save:08d}-{name.nonce}-{name.rank:04d}-{name.part:03d}.pack"
    if parse_pack_key(key) != name:
        raise ValueError(f"not a pack name: {name}")
    return key


def parse_pack_key(key: str) -> PackName | None:
    """What a pack's key says; ``None`` for anything else."""
    match = _PACK.fullmatch(key)
    if match is None:
        return None
    epoch, save, nonce, rank, part = match.groups()
    return PackName(int(epoch), int(save), nonce, int(rank), int(part))


def child_prefix(name: object) -> str:
    """Where the child run ``name`` lives, relative to its parent's root.

    Raises:
        UsageError: ``name`` is no text, or empty.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"child({name!r:.100}): a child needs a name that is not empty.", hint="Give a str.")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"child({name!r:.100}): the name is no valid text.", hint="Take surrogates out.") from None
    return f"child/{hashlib.sha256(encoded).hexdigest()[:32]}"
