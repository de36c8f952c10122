"""From a url to the store it names."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from limpet.errors import UsageError
from limpet.stores.base import Store, split_key

if TYPE_CHECKING:
    from limpet.stores.objects import Bucket

__all__ = ["are_alike", "open_store", "refuse_credentials"]

_BUCKETS = {
    "s3": "S3Store",
    "s3a": "S3Store",
    "gs": "GCSStore",
    "gcs": "GCSStore",
    "az": "AzureStore",
    "abfs": "AzureStore",
    "abfss": "AzureStore",
}
_ENVIRONMENT = {"S3Store": "AWS_", "GCSStore": "GOOGLE_", "AzureStore": "AZURE_"}
_KNOWN = "a path, file://, memory://, s3://, s3a://, gs://, gcs://, az://, abfs:// or abfss://"
_CLIENT_SHORTCUTS = ("allow_http", "timeout", "connect_timeout", "read_timeout")
_DURATIONS = ("timeout", "connect_timeout", "read_timeout", "pool_idle_timeout")
_RETRY_KEYS = {"max_retries", "retry_timeout", "backoff"}
_ENDPOINTS = re.compile(r"(?:\w*_)?(?:endpoint|base_url|endpoint_url|endpoint_url_s3|sts_endpoint)", re.IGNORECASE)
_NOT_FOR_DATA = re.compile(r"metadata|msi|identity", re.IGNORECASE)  # link-local by nature, and plain http
_REQUESTS: dict[str, Any] = {
    # Whole-request time covers a range of many MiB on a slow line; a dead peer is noticed by the read timeout.
    "client_options": {"connect_timeout": 5, "read_timeout": 30, "timeout": 120},
    # Whoever calls tries again, for a minute, and each try is as many requests as there are tries here: the second
    # is for what no caller sees, a page of a listing or a question for credentials.
    "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=10)},
}
_UPLOADS: dict[str, Any] = {
    # obstore's default of 30 s, body included, could never send a 16 MiB part at half a MB/s.
    "client_options": {"connect_timeout": 5, "timeout": 300},
    # For a part at one error in ten; after 4 s at the most the caller learns of it, and waits longer and longer.
    "retry_config": {
        "max_retries": 3,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=2), "base": 2},
    },
}


def open_store(url: str | os.PathLike[str], storage: Mapping[str, Any] | None = None) -> Store:
    """The store at ``url``; nothing is created or contacted yet.

    Args:
        url: a path or ``file://`` for a folder; ``memory://name`` for this process's memory; ``s3://bucket/prefix``
            (``s3a``), ``gs://bucket/prefix`` (``gcs``), ``az://container/prefix``, or
            ``abfss://container@account.dfs.core.windows.net/prefix`` (``abfs``) for buckets.
        storage: for buckets, what obstore's stores take (``endpoint``, ``region``, ``access_key_id``,
            ``credential_provider``, ``client_options``, ``retry_config`` ...), and ``allow_http``, ``timeout``,
            ``connect_timeout`` and ``read_timeout`` (seconds) as shortcuts for client options. What is not given
            comes from the environment. Folders and memory take none.

    Returns:
        A store that does not retry by itself: see ``limpet.stores.retry.Retrying``.

    Raises:
        UsageError: the url or an option is not understood, or would send credentials over plain http.
    """
    text: object = os.fspath(url) if isinstance(url, os.PathLike) else url  # of bytes, or None, whatever its type says
    if storage is not None and not isinstance(storage, Mapping):  # not shown: it may be a secret
        raise UsageError(
            f"storage= is a {type(storage).__name__}, not a dict.", hint="Give names and values of options."
        )
    options = dict(storage or {})
    if not isinstance(text, str) or not text:
        raise UsageError(f"{text!r} is not a place for a run", hint=f"Give {_KNOWN}.")
    scheme, mark, rest = text.partition("://")
    if not mark or isinstance(url, os.PathLike):
        return _open_folder(os.path.expanduser(text), options)
    refuse_credentials(text)
    scheme = scheme.lower()
    if scheme == "file":
        return _open_folder(_file_path(text), options)
    if scheme == "memory":
        return _open_memory(rest, options)
    if scheme in _BUCKETS:
        return _open_bucket(scheme, rest, options)
    raise UsageError(f"the scheme {scheme}:// is not known", hint=f"Give {_KNOWN}.")


def refuse_credentials(url: str) -> None:
    """Refuse a url with a user or a password in it, which would come up in records and messages.

    Raises:
        UsageError: there is one; the message does not repeat it.
    """
    scheme, mark, rest = url.partition("://")
    scheme, place = scheme.lower(), rest.partition("/")[0]
    if not mark or scheme == "memory":
        return
    container = scheme in ("abfs", "abfss") and place.count("@") == 1  # container@account
    # A secret may hold a slash, and end the place early: no bucket has a colon in its name.
    if ("@" in place and not container) or (":" in place and scheme in _BUCKETS):
        raise UsageError(
            f"a {scheme:.10}:// url takes no user, password or port.",
            hint="Put credentials into storage= or the environment.",
        )


def are_alike(url: str, other: str) -> bool:
    """Whether two urls are of one scheme (``s3`` and ``s3a`` are one), so that one's storage options suit the other."""
    schemes = [each.partition("://")[0].lower() if "://" in each else "file" for each in (url, other)]
    first, second = (_BUCKETS.get(scheme, scheme) for scheme in schemes)
    return first == second


def _open_folder(path: str, options: dict[str, Any]) -> Store:
    from limpet.stores.local import LocalStore

    _refuse_options("a folder", options)
    if "\0" in path:
        raise UsageError(f"{path!r} is not a path")
    return LocalStore(path)


def _file_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not a file url of this host", hint="Write file:///absolute/path, or just a path.")
    return unquote(parts.path)


def _open_memory(rest: str, options: dict[str, Any]) -> Store:
    from limpet.stores.memory import MemoryStore

    _refuse_options("memory", options)
    name, _, prefix = rest.partition("/")
    if not name:
        raise UsageError("memory:// needs a name", hint="Stores of one name share their objects: memory://my-run.")
    return MemoryStore(name, _prefix(prefix))


def _refuse_options(kind: str, options: dict[str, Any]) -> None:
    if options:
        raise UsageError(
            f"{kind} takes no storage options, but got {', '.join(sorted(map(repr, options)))}",
            hint="Leave storage= out, or give an s3://, gs:// or az:// url.",
        )


def _prefix(path: str) -> str:
    path = path.strip("/")
    return "/".join(split_key(path)) if path else ""


def _open_bucket(scheme: str, rest: str, options: dict[str, Any]) -> Store:
    from limpet.stores.object_errors import secrets_of
    from limpet.stores.objects import Connections, ObjectStore

    place, _, path = rest.partition("/")
    name, at, host = place.partition("@")
    if "?" in rest or "#" in rest:
        raise UsageError(f"a {scheme}:// url takes no query or fragment", hint="Pass options in storage=.")
    if not name:
        raise UsageError(f"{scheme}://{rest} names no bucket", hint=f"Write {scheme}://bucket/run-42.")
    if at:
        options.setdefault("account_name", host.partition(".")[0])
    if scheme.startswith("s3") and not any("disable_bulk_delete" in option for option in options):
        options["disable_bulk_delete"] = (
            True  # one key at a time anyway; not every S3 has the bulk call, or has it right
        )
    prefix = _prefix(path)
    client = _client_options(options)
    retry = _retry_options(options)

    def connect(defaults: dict[str, Any]) -> Bucket:
        merged = _in_seconds({**defaults["client_options"], **client})
        return _build(scheme, name, options, merged, {**defaults["retry_config"], **retry})

    connections = Connections(connect(_REQUESTS), connect(_UPLOADS), secrets_of(options))
    return ObjectStore(connections, f"{scheme}://{name}/{prefix}", prefix)


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the client's options out of ``options``."""
    client = dict(options.pop("client_options", None) or {})
    for name in _CLIENT_SHORTCUTS:
        if name in options:
            client[name] = options.pop(name)
    return client


def _in_seconds(client: dict[str, Any]) -> dict[str, Any]:
    return {
        name: timedelta(seconds=value) if name in _DURATIONS and isinstance(value, int | float) else value
        for name, value in client.items()
    }


def _retry_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the retry options out of ``options``. obstore would pass over an unknown one in silence."""
    retry = dict(options.pop("retry_config", None) or {})
    unknown = sorted(set(retry) - _RETRY_KEYS)
    if unknown:
        raise UsageError(f"retry_config has no option {unknown[0]!r}", hint=f"It has {', '.join(sorted(_RETRY_KEYS))}.")
    return retry


def _build(scheme: str, name: str, options: dict[str, Any], client: dict[str, Any], retry: dict[str, Any]) -> Bucket:
    """A client of obstore's, after seeing where it would send credentials."""
    import obstore.store

    kind: Callable[..., Bucket] = getattr(obstore.store, _BUCKETS[scheme])

    def build() -> Bucket:
        return kind(name, client_options=client, retry_config=retry, **options)

    if "allow_http" not in client and (plain := _plain_hosts(scheme, options)):
        distant = [host for host in plain if not _is_this_host(host)]
        if distant:
            raise UsageError(
                f"the endpoint at {distant[0]} would get credentials and data over plain http",
                hint="Use https, or allow it with storage={'allow_http': True}.",
            )
        client["allow_http"] = True
    return _checked(scheme, options, build)


def _checked(scheme: str, options: dict[str, Any], build: Callable[[], Bucket]) -> Bucket:
    from obstore.exceptions import BaseError

    from limpet.stores.object_errors import secrets_of, short_words

    try:
        return build()
    except (BaseError, ValueError, TypeError, OSError) as error:
        words = short_words(str(error), secrets_of(options))
    raise UsageError(f"the storage options for {scheme}:// are not usable: {words}")


def _plain_hosts(scheme: str, options: dict[str, Any]) -> list[str]:
    """The hosts of http endpoints among the options, or, without any endpoint there, in the environment."""
    given = {name: value for name, value in options.items() if _ENDPOINTS.fullmatch(name)}
    if not given:
        prefix = _ENVIRONMENT[_BUCKETS[scheme]]
        given = {
            name: os.environ[name] for name in os.environ if name.startswith(prefix) and _ENDPOINTS.fullmatch(name)
        }
    return [
        urlsplit(value).hostname or value
        for name, value in given.items()
        if isinstance(value, str) and value.lower().startswith("http://") and not _NOT_FOR_DATA.search(name)
    ]


def _is_this_host(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
