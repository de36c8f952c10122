"""Objects that describe themselves: by ``state_dict()`` / ``load_state_dict()``, or by a registered codec."""

from __future__ import annotations

from typing import Any

from limpet.errors import LimpetError, MismatchError, UsageError
from limpet.format.flattening import Flattening
from limpet.format.leaves import decode_text, encode_text
from limpet.format.nodes import MISSING, Node, Refused, items
from limpet.format.paths import place
from limpet.format.plan import Build, Plan, describe
from limpet.format.registry import full_name

__all__ = ["encode_custom", "encode_stateful", "is_stateful", "plan_custom", "plan_stateful"]


def is_stateful(cls: type) -> bool:
    """Whether the class has both ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(cls, "state_dict", None)) and callable(getattr(cls, "load_state_dict", None))


def _state_dict(value: Any) -> Any:
    return value.state_dict()


def encode_stateful(value: Any, flat: Flattening) -> Node:
    """``["stateful", class, child]``; the class's name is only shown, never looked up."""
    try:
        state = flat.unfold(value, _state_dict)
    except Exception as error:  # the user's own method
        raise Refused(f"is a {full_name(type(value))} whose state_dict() failed: {error!r}", final=True) from error
    return ["stateful", encode_text(full_name(type(value))), flat.inner(value, state)]


def plan_stateful(plan: Plan, node: list[Any], live: object) -> Build:
    """A stateful object: filled in place and told by ``load_state_dict``; its plain state if there is no live one.

    Arrays of the live ``state_dict()`` receive the bytes where they can. For an object that returns references
    nothing is copied twice; one that returns copies gets those copies, filled.
    """
    _, name, child = items(node, 3, 3)
    name, where = decode_text(name), place(plan.path)
    found: Any = MISSING if live is None else live
    if found is MISSING or not is_stateful(type(found)):
        if found is not MISSING and not plan.lenient:
            plan.differs(f"the state of a {name}", describe(found))
        return plan.inner(child, MISSING)
    try:
        state = found.state_dict()
    except Exception as error:  # the user's own method
        raise MismatchError(
            f"{where}.state_dict() failed: {error!r}.", hint="Nothing was changed; repair the object."
        ) from error
    with plan.leniently():
        tree = plan.inner(child, state)

    def build() -> Any:
        loaded = tree()
        try:
            found.load_state_dict(loaded)
        except Exception as error:  # the user's own method
            raise MismatchError(
                f"{where} did not accept the state of a {name}: {error!r}.",
                hint="The target is undefined now; make the object match, or read without into=.",
            ) from error
        return found

    return build


def encode_custom(value: Any, flat: Flattening) -> Node:
    """``["custom", name, child]``, by the registered codec."""
    codec = flat.registry.codec_for(type(value))
    assert codec is not None  # resolve() found it
    try:
        tree = flat.unfold(value, codec.encode)
    except Exception as error:  # the user's own function
        raise Refused(f"is a {full_name(type(value))} whose codec failed: {error!r}") from error
    return ["custom", encode_text(codec.name), flat.inner(value, tree)]


def plan_custom(plan: Plan, node: list[Any], live: object) -> Build:
    """An object of a registered class, made anew by its codec."""
    _, name, child = items(node, 3, 3)
    name, where = decode_text(name), place(plan.path)
    codec = plan.registry.codec_named(name)
    if codec is None:
        raise UsageError(
            f"{where} is a {name}, for which no codec is registered.",
            hint="Call limpet.register(cls, encode, decode) before reading.",
            kind="unknown_class",
        )
    plan.live(live, (codec.cls,), f"a {name}")
    tree = plan.inner(child, MISSING)

    def build() -> Any:
        loaded = tree()
        try:
            return codec.decode(loaded)
        except LimpetError:
            raise
        except Exception as error:  # the user's own function
            raise MismatchError(
                f"{where}: the codec of {name} could not decode what was saved: {error!r}.", hint="Repair the codec."
            ) from error

    return build
