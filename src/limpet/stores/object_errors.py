"""What obstore's exceptions mean, in words that hold no secret.

A server's error body can repeat what it was sent: S3 answers a bad session token with the token, a bad
signature with the string that was signed. So only its code and message are taken over, no query of
an address is, and the foreign exception is not chained to ours: a traceback would print all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from obstore.exceptions import (
    AlreadyExistsError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from limpet.errors import StoreError
from limpet.stores.base import KeyExistsError, KeyMissingError

__all__ = ["object_error", "secrets_of", "short_words"]

_STATUS = re.compile(r"status code: (\d{3})")
_XML = re.compile(r"<(Code|Message)>([^<]*)</")
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)<|The specified (bucket|container) does not exist")
_NO_UPLOAD = re.compile(r"<Code>NoSuchUpload<")
_CREDENTIALS = re.compile(
    r"//169\.254\.\d+\.\d+/|/latest/(api/token|meta-data)|//metadata\.google|token request|[Cc]redential (error|provider)"
)
_EXPIRED = re.compile(r"<Code>(ExpiredToken|InvalidToken|TokenRefreshRequired|RequestTimeTooSkewed)<")
_QUERY = re.compile(r"\?[^\s\"'<>]*")
_CONFLICT = 409
_TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504}
_DUMP = "\n\nDebug source"
_LONGEST_WORDS = 400
_SHORTEST_SECRET = 8
_PUBLIC = re.compile(r"endpoint|region|bucket|container_name|account_name|url|timeout|algorithm|conditional|http")


def secrets_of(storage: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of ``storage`` that must never be shown."""
    return tuple(
        value
        for name, value in storage.items()
        if isinstance(value, str) and len(value) >= _SHORTEST_SECRET and not _PUBLIC.search(name.lower())
    )


def short_words(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The store's own words in one line: no debug dump, no query, no body but its code and message."""
    words = text.partition(_DUMP)[0]
    head, mark, body = words.partition(": <")
    if mark:
        words = f"{head}: {' '.join(value for _, value in _XML.findall(mark + body))}"
    for secret in secrets:
        words = words.replace(secret, "***")
    words = " ".join(_QUERY.sub("", words).split())
    return words if len(words) <= _LONGEST_WORDS else words[:_LONGEST_WORDS] + "..."


def object_error(error: BaseException, verb: str, where: str, secrets: tuple[str, ...] = ()) -> StoreError:
    """The error to raise for ``error``, which obstore raised while ``verb`` (reading, creating ...) was done."""
    text = str(error)
    words = f"{verb} {where}: {short_words(text, secrets)}"
    creating = verb == "creating"
    if creating and isinstance(error, AlreadyExistsError | PreconditionError):
        return KeyExistsError(words)
    missing = isinstance(error, FileNotFoundError)
    if missing and _NO_UPLOAD.search(text) and verb == "writing":
        return StoreError(words, transient=True)  # somebody ended the upload: it is made again, under another name
    if _NO_BUCKET.search(text) or (missing and (creating or verb == "writing")):
        return StoreError(words, kind="no_bucket", hint="The bucket does not exist: create it, or correct its name.")
    if missing:
        return KeyMissingError(words)
    found = _STATUS.search(text)
    status = int(found.group(1)) if found else None
    if creating and status == _CONFLICT:
        return KeyExistsError(words)
    return _by_status(error, text, words, status)


def _by_status(error: BaseException, text: str, words: str, status: int | None) -> StoreError:
    if _EXPIRED.search(text):
        hint = "Renew the credentials; a machine's clock that is wrong has the same effect."
        return StoreError(words, kind="access", hint=hint)
    if status in _TEMPORARY:
        return StoreError(words, transient=True)
    if _CREDENTIALS.search(text.partition(_DUMP)[0]):
        hint = "No credentials were found: set them in the environment or pass them in storage=."
        return StoreError(words, kind="no_credentials", hint=hint)
    if status in (401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StoreError(words, kind="access", hint="Check the credentials and what they are allowed to do.")
    if "BadScheme" in text:
        hint = "Plain http is refused unless the host is this machine: use https, or storage={'allow_http': True}."
        return StoreError(words, kind="access", hint=hint)
    if status is not None or isinstance(error, NotSupportedError | InvalidPathError | ValueError | TypeError):
        return StoreError(words)
    hint = "The host's name was not found: check the endpoint and the network." if "dns error" in text else ""
    return StoreError(words, hint=hint, transient=True)
