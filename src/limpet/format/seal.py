"""Signed records: HMAC-SHA256 (RFC 2104, FIPS 198-1) with a key that the writers and readers of a run share.

A sealed record file is ``{"digest":"...","record":{...},"seal":"<16 hex>","mac":"<64 hex>"}``: the record file as
it would be without a key, with the key's id and the signature of all of it before the last brace. Manifests hang
on records by digest, and chunks on manifests, so that one signature covers a whole checkpoint.
"""

from __future__ import annotations

import hmac
import re
from typing import NoReturn

from limpet.errors import UntrustedError, UsageError

__all__ = ["KEY_BYTES_MIN", "SEAL_BYTES", "Seal", "is_sealed"]

KEY_BYTES_MIN = 16
SEAL_BYTES = len(b',"seal":"') + 16 + len(b'","mac":"') + 64 + len(b'"')
_TAIL = re.compile(rb',"seal":"([0-9a-f]{16})","mac":"([0-9a-f]{64})"\}')


def is_sealed(data: bytes) -> bool:
    """Whether these are the bytes of a sealed record; one without a seal ends with two braces."""
    return _TAIL.fullmatch(data, max(0, len(data) - SEAL_BYTES - 1)) is not None


class Seal:
    """Signs records, and checks that they are signed.

    Args:
        key: at least 16 bytes that nobody can guess; only those derived from it are ever used.

    Raises:
        UsageError: it is too short, or not bytes. The message does not show it.
    """

    def __init__(self, key: object) -> None:
        if not isinstance(key, bytes) or len(key) < KEY_BYTES_MIN:
            raise UsageError(
                f"key= must be bytes, {KEY_BYTES_MIN} or more.", hint="Make one with secrets.token_bytes(32)."
            )
        self.id = hmac.digest(key, b"limpet seal id", "sha256")[:8].hex()
        self._mac_key = hmac.digest(key, b"limpet seal mac", "sha256")

    def __repr__(self) -> str:
        return f"Seal(id={self.id!r})"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a seal cannot be pickled: it holds a key", hint="Pass the key by your own means.")

    def sign(self, data: bytes) -> bytes:
        """The record file ``data`` with a seal."""
        return b'%s,"seal":"%s","mac":"%s"}' % (data[:-1], self.id.encode(), self._mac(data).encode())

    def open(self, data: bytes, where: str) -> bytes:
        """The record file without its seal, once the signature is seen to be right.

        Raises:
            UntrustedError: it is not signed, or not with this key, or was changed since.
        """
        found = _TAIL.fullmatch(data, max(0, len(data) - SEAL_BYTES - 1))
        if found is None:
            raise UntrustedError(f"{where} is not signed.", hint=_DO_NOT_USE, kind="unsigned")
        plain = data[: found.start()] + b"}"
        is_ours = found[1] == self.id.encode()
        if not hmac.compare_digest(found[2], self._mac(plain).encode()) or not is_ours:
            other = "" if is_ours else f" (its key has the id {found[1].decode()}, not {self.id})"
            raise UntrustedError(f"{where} is not signed with this key{other}.", hint=_DO_NOT_USE, kind="forged")
        return plain

    def _mac(self, data: bytes) -> str:
        return hmac.digest(self._mac_key, self.id.encode() + data, "sha256").hex()


_DO_NOT_USE = "Somebody without the key wrote it, or changed it: do not use the run before you know who."
