"""jax arrays: immutable, so that a reference to the host's copy of one is a snapshot of it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from limpet.errors import UsageError
from limpet.format.arrays import codec_hint, decode_dtype, encode_dtype, plan_array
from limpet.format.buffers import Buffer
from limpet.format.flattening import Flattening
from limpet.format.leaves import decode_text, encode_text
from limpet.format.nodes import MISSING, Node, Refused, corrupt, items
from limpet.format.paths import place
from limpet.format.plan import Build, Plan, describe

__all__ = [
    "encode_jax",
    "encode_jax_key",
    "is_jax_array",
    "is_jax_key",
    "plan_jax",
    "plan_jax_key",
]


def is_jax_array(value: object) -> bool:
    """Whether jax is imported and this is one of its arrays."""
    jax = sys.modules.get("jax")
    kind = getattr(jax, "Array", None)  # absent while jax is still being imported
    return kind is not None and isinstance(value, kind)


def is_jax_key(value: Any) -> bool:
    """Whether a jax array holds typed random keys."""
    jax = sys.modules["jax"]
    return bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def _refuse_unreadable(value: Any) -> None:
    jax = sys.modules["jax"]
    if isinstance(value, jax.core.Tracer):
        raise Refused("is a jax tracer, which has no value yet", "Save outside of jit and grad.", final=True)
    if not value.is_fully_addressable:
        raise Refused(
            "is a jax array with shards on other hosts", "Save each process's shards in a child() run.", final=True
        )
    if value.is_deleted():
        raise Refused("is a jax array that was deleted or donated", "Save what the step returned.", final=True)


def encode_jax(value: Any, flat: Flattening) -> Node:
    """``["jax", dtype, shape, buffer]``, as ``nd``; the buffer is the host's copy, by reference."""
    _refuse_unreadable(value)
    if is_jax_key(value):
        return encode_jax_key(value, flat)
    host = np.asarray(value)
    order = ["F"] if host.flags.f_contiguous and not host.flags.c_contiguous else []
    buffer = flat.add(Buffer(host, host.nbytes, True, codec_hint(host.dtype)))
    return ["jax", encode_dtype(host.dtype), list(host.shape), buffer, *order]


def encode_jax_key(value: Any, flat: Flattening) -> Node:
    """``["jaxkey", implementation, data]``."""
    random = sys.modules["jax"].random
    return ["jaxkey", encode_text(str(random.key_impl(value))), flat.inner(value, random.key_data(value))]


def plan_jax(plan: Plan, node: list[Any], live: object) -> Build:
    """A new jax array, placed as the live one is."""
    jax, where = plan.imported("jax"), place(plan.path)
    build_host = plan_array(plan, node, MISSING)
    found = _live(plan, live, "a jax array")
    if found is not MISSING:
        _compare(plan, node, found)

    def build() -> Any:
        host = build_host()
        try:
            made = jax.device_put(host, _placement(found))
        except (TypeError, ValueError) as error:
            raise corrupt(f"{where} is no array that jax can hold") from error
        if made.dtype != host.dtype:
            raise UsageError(
                f"{where} holds {host.dtype}, which jax would cut to {made.dtype}.",
                hint='Call jax.config.update("jax_enable_x64", True) first.',
            )
        return made

    return build


def _compare(plan: Plan, node: list[Any], found: Any) -> None:
    dtype, shape = decode_dtype(node[1]), tuple(node[2])
    if found.dtype != dtype or tuple(found.shape) != shape:
        plan.differs(f"{dtype} {shape}", describe(found))


def _live(plan: Plan, live: object, what: str) -> Any:
    if live is MISSING or live is None or is_jax_array(live):
        return MISSING if live is None else live
    if not plan.lenient:
        plan.differs(what, describe(live))
    return MISSING


def _placement(found: Any) -> Any:
    """Where the live array is bound to, if it was put there; jax's default device otherwise."""
    return found.sharding if found is not MISSING and getattr(found, "committed", True) else None


def plan_jax_key(plan: Plan, node: list[Any], live: object) -> Build:
    """Typed random keys."""
    jax, where = plan.imported("jax"), place(plan.path)
    _, implementation, data = items(node, 3, 3)
    implementation = decode_text(implementation)
    found = _live(plan, live, "jax random keys")
    if found is not MISSING and not (is_jax_key(found) and str(jax.random.key_impl(found)) == implementation):
        plan.differs(f"jax random keys ({implementation})", describe(found))
        found = MISSING
    if items(data, 1)[0] != "jax":
        raise corrupt(f"{where} has no data for its random keys")
    build_data = plan.inner(data, jax.random.key_data(found) if found is not MISSING else MISSING)

    def build() -> Any:
        try:
            return jax.random.wrap_key_data(build_data(), impl=implementation)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{where} holds random keys of {implementation!r}, which this jax does not take: {error}.",
                hint="Use the jax that wrote the checkpoint.",
            ) from error

    return build
