"""zstd frames, looked at before anything is taken because of them.

python-zstandard allocates the size that a frame states, whatever maximum it is given, and takes a skippable frame
for an empty one; so what a frame says of itself is checked first.
"""

from __future__ import annotations

import threading

import zstandard

from limpet.errors import CorruptError

__all__ = ["inflate"]

_WINDOW_BYTES_MAX = 1 << 27
"""The largest window that zstd's own decoders accept unless told otherwise (ZSTD_WINDOWLOG_LIMIT_DEFAULT)."""


class _Coders(threading.local):
    """zstd's contexts are costly to make and not thread-safe: one a thread."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_coders = _Coders()


def inflate(frame: bytes | memoryview, what: str, *, most: int, exactly: int | None = None) -> bytes:
    """Decode one zstd frame, with nothing behind it. May be called from any thread.

    Args:
        frame: the stored bytes.
        what: it is, for the message, as in ``"the manifest"``.
        most: bytes that it may hold.
        exactly: bytes that it must hold, if they are known.

    Raises:
        CorruptError: it is no such frame. No more memory was taken than was allowed.
    """
    if bytes(frame[:4]) != zstandard.FRAME_HEADER:
        raise CorruptError(f"{what} does not begin as a zstd frame does.")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        size = parameters.content_size
        if exactly is not None and size != exactly:
            raise CorruptError(f"{what} says that it holds {size} bytes where {exactly} belong.")
        if not 0 < size <= most:
            raise CorruptError(f"{what} says that it holds {size} bytes; at least 1 and at most {most} are allowed.")
        if parameters.window_size > _WINDOW_BYTES_MAX or parameters.dict_id:
            raise CorruptError(
                f"{what} asks for a window of {parameters.window_size} bytes and dictionary {parameters.dict_id}; "
                f"at most {_WINDOW_BYTES_MAX} bytes and no dictionary are allowed."
            )
        return _coders.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{what} does not decode: {error}.") from error
