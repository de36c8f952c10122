"""Which codec to try on which chunk: a pure decision, from the setting and from what earlier chunks taught."""

from __future__ import annotations

from dataclasses import dataclass, field

from limpet.errors import UsageError
from limpet.format.codec import DEFAULT_LEVEL, PLANES, RAW, pays
from limpet.format.deltas import DELTAS, DEPTH_MAX

__all__ = ["CodecChooser", "DeltaChooser", "delta_codec", "parse_compression"]

_LEVELS = range(1, 23)
_CODEC_BY_DTYPE = {
    "bf16": "planes2",
    "f2": "planes2",
    "f4": "planes4",
    "f8": "planes8",
    "c8": "planes4",
    "c16": "planes8",
    **{f"{kind}{width}": name for name, width in PLANES.items() for kind in "iu"},
}
"""Integers are rarely as large as their type: their upper planes are all but empty. Against zstd level 1, planes took 0.5
to 1.1 times the room on token ids, counts, permutations and timestamps, and a half to an eighth of the time."""
_WORTH_CODING_BYTES = 64
_DELTA_SHARE_MAX = 0.8
"""Of what a place takes in full: below that a delta is worth that each restore reads one chunk more."""
_FULL_SHARE_MIN = 1 / 32
"""Of the raw bytes: a place that took less (zeros before the first step, say) says nothing of what is to come."""
_REST_FIRST = 8
_REST_MAX = 512
_PROBE_EVERY = 64
_FADE = 0.95
"""What an observation still counts after the next one: about the last 20 chunks, 80 MiB, decide."""


def parse_compression(compression: object) -> tuple[str, int]:
    """The mode (``"auto"``, ``"off"`` or ``"zstd"``) and the zstd level that a ``compression=`` setting means.

    Raises:
        UsageError: the setting is none of ``"auto"``, ``"off"``, ``"zstd"`` and ``"zstd:LEVEL"``.
    """
    mode, colon, level = compression.partition(":") if isinstance(compression, str) else ("", "", "")
    if mode in ("auto", "off", "zstd") and not colon:
        return mode, DEFAULT_LEVEL
    if mode == "zstd" and level in map(str, _LEVELS):
        return mode, int(level)
    raise UsageError(
        f"compression={compression!r} is not a setting.",
        hint='Use "auto", "off", "zstd" or "zstd:LEVEL" with a level of 1 to 22.',
    )


@dataclass(slots=True)
class _Rate:
    """Seconds and stored bytes for each raw byte, over the recent past: old observations fade."""

    raw_bytes: float = 0.0
    stored_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, raw_bytes: int, stored_bytes: int, seconds: float) -> None:
        self.raw_bytes = self.raw_bytes * _FADE + raw_bytes
        self.stored_bytes = self.stored_bytes * _FADE + stored_bytes
        self.seconds = self.seconds * _FADE + seconds


def _assumed(codec: str) -> _Rate:
    """What a codec is taken for until it has been measured: as little as one chunk overrules it."""
    return _Rate(2**16, 2**16 / 1.25, 2**16 / 6e8) if codec in PLANES else _Rate(2**16, 2**16 / 2, 2**16 / 3e8)


@dataclass(slots=True)
class _StoreRate:
    """How fast the store is. What is known of an unfinished pack counts until the first one is durable."""

    durable: _Rate = field(default_factory=_Rate)
    so_far: _Rate = field(default_factory=_Rate)

    @property
    def seconds_per_byte(self) -> float | None:
        rate = self.durable if self.durable.raw_bytes else self.so_far
        return rate.seconds / rate.raw_bytes if rate.raw_bytes else None


@dataclass(slots=True)
class _Rest:
    """How often a chunk that did not shrink is stored raw before its codec is tried again."""

    length: int = 0
    left: int = 0

    def begin(self) -> None:
        self.length = min(self.length * 2, _REST_MAX) if self.length else _REST_FIRST
        self.left = self.length


class CodecChooser:
    """Decides which codec to try on a chunk, from what earlier chunks taught.

    - Numbers of 2, 4 or 8 bytes are split into byte planes; everything else is plain zstd.
    - A chunk that saved less than 2 % is stored raw the next 8 times, then 16, 32 ... up to 512.
    - With ``"auto"``, coding stops while the store is faster than the codec, that is while::

          raw_bytes / store_rate  <  max(encode_seconds / threads, stored_bytes / store_rate)

      for encoding and storing go on side by side; with the store's rate and the codec's speed and ratio as measured
      where they run, beside whatever else keeps the machine busy, recent bytes counting most.
      One chunk in 64 is encoded all the same, so that the measure of the codec follows the machine.

    Not thread-safe: one thread asks it and tells it; ``encode`` itself may run anywhere.

    Args:
        compression: ``"auto"``; ``"off"``; ``"zstd"`` or ``"zstd:LEVEL"``: compress whatever shrinks,
            however fast the store is.
        threads: how many encode side by side.

    Attributes:
        level: the zstd level to hand to ``encode``.

    Raises:
        UsageError: ``compression`` is something else.
    """

    def __init__(self, compression: str = "auto", *, threads: int = 1) -> None:
        self._mode, self.level = parse_compression(compression)
        self._threads = threads
        self._rests: dict[int | str, _Rest] = {}
        self._codecs: dict[str, _Rate] = {}
        self._store = _StoreRate()
        self._declined = 0

    @property
    def awaits_store(self) -> bool:
        """Whether the choice turns on the store's speed, and nothing is known of it yet."""
        return self._mode == "auto" and self._store.seconds_per_byte is None

    def choose(self, dtype_hint: str, nbytes: int, key: int | str) -> str:
        """The codec to try on a chunk.

        Args:
            dtype_hint: what its values are, as ``"f4"``, ``"bf16"``, ``">i8"``, or ``""``.
            nbytes: its raw size.
            key: names the chunk's place in the state, the same from one save to the next.
        """
        if self._mode == "off" or nbytes < _WORTH_CODING_BYTES:
            return RAW
        rest = self._rests.get(key)
        if rest is not None and rest.left:
            rest.left -= 1
            return RAW
        codec = _CODEC_BY_DTYPE.get(dtype_hint.lstrip("<>=|"), "zstd")
        if self._mode == "auto" and self._store_outruns(codec):
            self._declined += 1
            if self._declined % _PROBE_EVERY:
                return RAW
        return codec

    def learn(self, key: int | str, tried: str, raw_bytes: int, stored_bytes: int, seconds: float) -> None:
        """Take in what ``encode`` made of a chunk.

        Args:
            key: as given to ``choose``.
            tried: what ``choose`` returned.
            raw_bytes: the chunk's raw size.
            stored_bytes: the size of what ``encode`` returned.
            seconds: how long ``encode`` took.
        """
        if tried == RAW:
            return
        self._codecs.setdefault(tried, _Rate()).add(raw_bytes, stored_bytes, seconds)
        if pays(raw_bytes, stored_bytes):
            self._rests.pop(key, None)
        else:
            self._rests.setdefault(key, _Rest()).begin()

    def observe_store(self, nbytes: int, seconds: float, *, durable: bool = True) -> None:
        """Take in that the store took ``nbytes``, and that it was busy with them for ``seconds``.

        Args:
            nbytes: how many.
            seconds: without those in which it waited for us.
            durable: whether they are safe now, or merely on their way.
        """
        (self._store.durable if durable else self._store.so_far).add(nbytes, nbytes, seconds)

    def _store_outruns(self, codec: str) -> bool:
        """Whether storing a chunk raw is faster than encoding it and storing the rest; see the class."""
        seconds_per_byte = self._store.seconds_per_byte
        if seconds_per_byte is None:
            return False
        rate = self._codecs.get(codec) or _assumed(codec)
        coded = max(rate.seconds / self._threads, rate.stored_bytes * seconds_per_byte)
        return rate.raw_bytes * seconds_per_byte < coded


def delta_codec(dtype_hint: str) -> str | None:
    """The codec of differences between chunks of such values; ``None`` if they have no words of 2, 4 or 8 bytes."""
    width = PLANES.get(_CODEC_BY_DTYPE.get(dtype_hint.lstrip("<>=|"), ""))
    return next((name for name, words in DELTAS.items() if words == width), None)


class DeltaChooser:
    """Decides which chunks to try as differences from what their places held, from what earlier ones taught.

    - The base is stored in full, or is itself at most 7 deltas away from what is.
    - A delta takes at most 0.8 of what the place took when it was last stored in full.
    - A place where it takes more is stored in full the next 8 times, then 16, 32 ... up to 512; not where that took next
      to nothing, as of zeros: the first values that follow are no measure of how they will change.

    How fast the store is plays no part: whoever asks for deltas wants fewer bytes.

    Not thread-safe: one thread asks it and tells it.
    """

    def __init__(self) -> None:
        self._rests: dict[int | str, _Rest] = {}

    def most_bytes(self, key: int | str, depth: int, full_bytes: int) -> int:
        """How large a delta may be; 0: it is not to be tried.

        Args:
            key: names the chunk's place in the state, the same from one save to the next.
            depth: how many deltas lead to the base from what is stored in full.
            full_bytes: stored size of that.
        """
        if depth >= DEPTH_MAX:
            return 0
        rest = self._rests.get(key)
        if rest is not None and rest.left:
            rest.left -= 1
            return 0
        return int(full_bytes * _DELTA_SHARE_MAX)

    def learn(self, key: int | str, *, paid: bool, raw_bytes: int, full_bytes: int) -> None:
        """Take in whether a delta that was tried was as small as that.

        Args:
            key: as given to ``most_bytes``.
            paid: whether it was.
            raw_bytes: size of the chunk.
            full_bytes: as given to ``most_bytes``.
        """
        if paid:
            self._rests.pop(key, None)
        elif full_bytes >= raw_bytes * _FULL_SHARE_MIN:
            self._rests.setdefault(key, _Rest()).begin()
