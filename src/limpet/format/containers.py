"""Containers, both ways: each encoder stands above its planner."""

from __future__ import annotations

import builtins
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from limpet.format.classes import (
    check_fields,
    dataclass_values,
    decode_enum,
    encode_enum,
    field_names,
    find_class,
    is_dataclass,
    is_enum,
    namedtuple_values,
    new_dataclass,
    new_namedtuple,
)
from limpet.format.flattening import Flattening
from limpet.format.inline import decode_elements, decode_key, encode_elements, encode_key
from limpet.format.leaves import decode_text, encode_text
from limpet.format.nodes import MISSING, Node, Refused, brief, check_spread, corrupt, integer, items
from limpet.format.paths import Key
from limpet.format.plan import Build, Plan, describe
from limpet.format.registry import full_name, is_namedtuple

__all__ = [
    "encode_counter",
    "encode_dataclass",
    "encode_defaultdict",
    "encode_deque",
    "encode_dict",
    "encode_enum_leaf",
    "encode_list",
    "encode_namedtuple",
    "encode_ordered",
    "encode_set",
    "encode_tuple",
    "mapping_keys",
    "plan_dataclass",
    "plan_deque",
    "plan_enum",
    "plan_list",
    "plan_mapping",
    "plan_namedtuple",
    "plan_set",
    "plan_tuple",
]

_FACTORIES = ("list", "dict", "set", "int", "float", "str", "tuple", "bool", "bytes")
_MAPPINGS: dict[str, type[dict[Any, Any]]] = {
    "dict": dict,
    "odict": OrderedDict,
    "ddict": defaultdict,
    "counter": Counter,
}


def _keys_and_values(value: dict[Any, Any], flat: Flattening) -> list[Node]:
    return [[encode_key(key) for key in value], flat.children(value, value.items())]


def encode_dict(value: dict[Any, Any], flat: Flattening) -> Node:
    """``["dict", keys, values]``."""
    return ["dict", *_keys_and_values(value, flat)]


def encode_counter(value: Counter[Any], flat: Flattening) -> Node:
    """``["counter", keys, values]``."""
    return ["counter", *_keys_and_values(value, flat)]


def encode_ordered(value: OrderedDict[Any, Any], flat: Flattening) -> Node:
    """``["odict", keys, values, metadata]``: torch hangs the versions of a state dict's modules on it."""
    attributes = dict(vars(value))
    metadata = attributes.pop("_metadata", None)
    if attributes:
        raise Refused(f"is an OrderedDict with attributes: {', '.join(attributes)}", "Keep them in a dict.")
    return ["odict", *_keys_and_values(value, flat), flat.inner(value, metadata)]


def encode_defaultdict(value: defaultdict[Any, Any], flat: Flattening) -> Node:
    """``["ddict", keys, values, factory]``; a factory is ``null``, a builtin's name, or a class."""
    return ["ddict", *_keys_and_values(value, flat), _encode_factory(value.default_factory, flat)]


def _encode_factory(factory: Any, flat: Flattening) -> Node:
    if factory is None:
        return None
    name = getattr(factory, "__name__", "")
    if name in _FACTORIES and factory is getattr(builtins, name):
        return name
    if isinstance(factory, type):
        known = flat.registry.codec_for(factory) or flat.registry.class_named(full_name(factory))
        if known or is_dataclass(factory):
            return [encode_text(factory.__module__), encode_text(factory.__qualname__)]
    raise Refused(
        f"is a defaultdict whose factory {brief(factory)} cannot be found again",
        f"Use one of {', '.join(_FACTORIES)}, a dataclass, a registered class, or a dict with setdefault().",
    )


def _decode_factory(node: Node, plan: Plan) -> Any:
    if node is None:
        return None
    if type(node) is str:
        if node not in _FACTORIES:
            raise corrupt("a defaultdict's factory is unknown")
        return getattr(builtins, node)
    module, qualname = (decode_text(part) for part in items(node, 2, 2))
    codec = plan.registry.codec_named(f"{module}.{qualname}")
    return codec.cls if codec else find_class(module, qualname, plan.registry, _is_factory(plan), "factory")


def _is_factory(plan: Plan) -> Callable[[type], bool]:
    return lambda cls: is_dataclass(cls) or plan.registry.class_named(full_name(cls)) is cls


def mapping_keys(node: list[Any]) -> list[Key]:
    """The keys of a mapping's node, once they are known to be distinct and as many as its values."""
    _, keys, values, *_ = items(node, 3, 4)
    decoded = [decode_key(key) for key in items(keys)]
    check_spread(decoded)
    if len(items(values)) != len(decoded) or len(set(decoded)) != len(decoded):
        raise corrupt("a dict's keys are damaged")
    return decoded


def plan_mapping(plan: Plan, node: list[Any], live: object) -> Build:
    """A dict or one of its kin; a live one is updated in place and keeps its order."""
    tag = node[0]
    items(node, *((4, 4) if tag in ("odict", "ddict") else (3, 3)))
    keys = mapping_keys(node)
    cls = _MAPPINGS[tag]
    types = tuple(_MAPPINGS.values()) if plan.lenient else (cls,)
    found = plan.live(live, types, f"{cls.__name__} of {len(keys)}")
    counted = tag == "counter"
    if found is not MISSING and not plan.lenient and not counted:
        plan.compare_keys(keys, list(found))
    pairs = {} if found is MISSING or counted else found
    builds = [plan.child(value, dict.get(pairs, key, MISSING), key) for key, value in zip(keys, node[2], strict=True)]
    if found is not MISSING and not plan.lenient:
        return lambda: _update(found, keys, builds, replace=counted)
    finish = _finisher(plan, node)
    return lambda: finish(zip(keys, [build() for build in builds], strict=True))


def _finisher(plan: Plan, node: list[Any]) -> Callable[[Any], dict[Any, Any]]:
    """What makes a fresh mapping of the node's kind from its pairs."""
    tag = node[0]
    if tag == "ddict":
        factory = _decode_factory(node[3], plan)
        return lambda pairs: defaultdict(factory, pairs)
    if tag == "odict":
        metadata = plan.inner(node[3], MISSING)
        return lambda pairs: _ordered(pairs, metadata())
    if tag == "counter":
        return lambda pairs: Counter(dict(pairs))
    return dict


def _ordered(pairs: Any, metadata: Any) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict(pairs)
    if metadata is not None:
        made._metadata = metadata  # type: ignore[attr-defined]  # torch's own convention
    return made


def _update(live: dict[Any, Any], keys: list[Key], builds: list[Build], *, replace: bool) -> dict[Any, Any]:
    values = [build() for build in builds]
    if replace:
        live.clear()
    for key, value in zip(keys, values, strict=True):
        if live.get(key, MISSING) is not value:
            live[key] = value
    return live


def encode_list(value: list[Any], flat: Flattening) -> Node:
    """``["list", members]``."""
    return ["list", flat.children(value, enumerate(value))]


def encode_tuple(value: tuple[Any, ...], flat: Flattening) -> Node:
    """``["tuple", members]``."""
    return ["tuple", flat.children(value, enumerate(value))]


def encode_deque(value: deque[Any], flat: Flattening) -> Node:
    """``["deque", members, maxlen]``."""
    return ["deque", flat.children(value, enumerate(value)), value.maxlen]


def _members(plan: Plan, nodes: list[Node], live: Any) -> list[Build]:
    """How to build the members of a sequence, beside those of the live one as far as it goes."""
    beside = list(live) if live is not MISSING else []
    return [
        plan.child(node, beside[index] if index < len(beside) else MISSING, index) for index, node in enumerate(nodes)
    ]


def _live_sequence(plan: Plan, live: object, cls: type, count: int) -> Any:
    found = plan.live(live, (list, tuple) if plan.lenient else (cls,), f"{cls.__name__} of {count}")
    if found is not MISSING and len(found) != count and not plan.lenient:
        plan.differs(f"{cls.__name__} of {count}", describe(found))
    return found


def plan_list(plan: Plan, node: list[Any], live: object) -> Build:
    """A list; a live one of the same length is updated in place."""
    nodes = items(items(node, 2, 2)[1])
    found = _live_sequence(plan, live, list, len(nodes))
    builds = _members(plan, nodes, found)

    in_place = type(found) is list and not plan.lenient

    def build() -> list[Any]:
        values = [member() for member in builds]
        if not in_place:
            return values
        found[:] = values
        return cast("list[Any]", found)

    return build


def plan_tuple(plan: Plan, node: list[Any], live: object) -> Build:
    """A tuple; the live one itself if all its members were filled in place."""
    nodes = items(items(node, 2, 2)[1])
    found = _live_sequence(plan, live, tuple, len(nodes))
    builds = _members(plan, nodes, found)
    return lambda: _kept(found, tuple(member() for member in builds))


def _kept(live: Any, values: tuple[Any, ...]) -> Any:
    """The live tuple, if it holds exactly these objects."""
    if type(live) is tuple and len(live) == len(values) and all(map(_same, live, values)):
        return live
    return values


def _same(one: object, other: object) -> bool:
    return one is other


def plan_deque(plan: Plan, node: list[Any], live: object) -> Build:
    """A deque; its length is data and may differ, its limit may not."""
    _, nodes, limit = items(node, 3, 3)
    if limit is not None:
        integer(limit)
        if len(items(nodes)) > limit:
            raise corrupt("a deque is longer than its limit")
    found = plan.live(live, (deque,), f"deque of at most {limit}")
    if found is not MISSING and found.maxlen != limit and not plan.lenient:
        plan.differs(f"deque of at most {limit}", f"deque of at most {found.maxlen}")
    builds = [plan.child(member, MISSING, index) for index, member in enumerate(items(nodes))]
    in_place = found is not MISSING and not plan.lenient

    def build() -> deque[Any]:
        made: deque[Any] = deque((member() for member in builds), limit)
        if not in_place:
            return made
        found.clear()
        found.extend(made)
        return cast("deque[Any]", found)

    return build


def encode_set(value: set[Any] | frozenset[Any], _flat: Flattening) -> Node:
    """``["set", elements]`` or ``["frozenset", elements]``, in an order that only the elements decide."""
    return [type(value).__name__, encode_elements(value)]


def plan_set(plan: Plan, node: list[Any], live: object) -> Build:
    """A set or frozenset; its elements are data and may differ."""
    tag, elements = items(node, 2, 2)
    found = plan.live(live, (set,) if tag == "set" else (frozenset,), tag)
    made = decode_elements(elements, plan.registry)
    if tag == "frozenset":
        return lambda: made
    if found is MISSING or plan.lenient:
        return lambda: set(made)

    def build() -> set[Any]:
        found.clear()
        found.update(made)
        return cast("set[Any]", found)

    return build


def _encode_fields(tag: str, value: Any, pairs: list[tuple[str, Any]], flat: Flattening) -> Node:
    cls = type(value)
    names = [encode_text(name) for name, _ in pairs]
    return [tag, encode_text(cls.__module__), encode_text(cls.__qualname__), names, flat.children(value, pairs)]


def encode_namedtuple(value: Any, flat: Flattening) -> Node:
    """``["namedtuple", module, qualname, fields, members]``."""
    return _encode_fields("namedtuple", value, namedtuple_values(value), flat)


def encode_dataclass(value: Any, flat: Flattening) -> Node:
    """``["dataclass", module, qualname, fields, members]``."""
    return _encode_fields("dataclass", value, dataclass_values(value), flat)


def _fields(plan: Plan, node: list[Any], live: object, fits: Callable[[type], bool]) -> tuple[type, list[str], Any]:
    """Class, stored field names, and the live counterpart of a namedtuple or dataclass."""
    tag, module, qualname, names, nodes = items(node, 5, 5)
    module, qualname = decode_text(module), decode_text(qualname)
    stored = [decode_text(name) for name in items(names)]
    if len(items(nodes)) != len(stored) or len(set(stored)) != len(stored):
        raise corrupt("an object's fields are damaged")
    found: Any = live if live is not None else MISSING
    if found is not MISSING and not (fits(type(found)) and type(found).__qualname__ == qualname):
        if not plan.lenient:
            plan.differs(f"the {tag} {module}.{qualname}", describe(found))
            return object, stored, MISSING  # never built: the difference is raised first
        found = MISSING
    cls = find_class(module, qualname, plan.registry, fits, tag) if found is MISSING else type(found)
    check_fields(cls, stored)
    return cls, stored, found


def plan_namedtuple(plan: Plan, node: list[Any], live: object) -> Build:
    """A namedtuple; the live one itself if all its members were filled in place."""
    cls, names, found = _fields(plan, node, live, is_namedtuple)
    beside = dict(zip(field_names(cls), found, strict=True)) if found is not MISSING else {}
    builds = {name: plan.child(member, beside.get(name, MISSING), name) for name, member in _named(names, node)}

    def build() -> Any:
        made = {name: member() for name, member in builds.items()}
        if found is not MISSING and all(made[name] is beside[name] for name in names):
            return found
        return new_namedtuple(cls, [made[name] for name in field_names(cls)])

    return build


def _named(names: list[str], node: list[Any]) -> list[tuple[str, Node]]:
    return list(zip(names, node[4], strict=True))


def plan_dataclass(plan: Plan, node: list[Any], live: object) -> Build:
    """A dataclass; a live one is updated in place, a frozen one is replaced where a field changed."""
    cls, names, found = _fields(plan, node, live, is_dataclass)
    beside: Mapping[str, Any] = {} if found is MISSING else {n: getattr(found, n, MISSING) for n in names}
    builds = [plan.child(member, beside.get(name, MISSING), name) for name, member in _named(names, node)]
    in_place = found is not MISSING and not plan.lenient and not cast(Any, cls).__dataclass_params__.frozen

    def build() -> Any:
        values = [member() for member in builds]
        changed = [pair for pair in zip(names, values, strict=True) if beside.get(pair[0], MISSING) is not pair[1]]
        if found is MISSING or (changed and not in_place):
            return new_dataclass(cls, names, values)
        for name, value in changed:
            object.__setattr__(found, name, value)
        return found

    return build


def encode_enum_leaf(member: Any, _flat: Flattening) -> Node:
    """``["enum", module, qualname, name, flags]``."""
    return encode_enum(member)


def plan_enum(plan: Plan, node: list[Any], live: object) -> Build:
    """A member of an enum, whose class a live member may give."""
    same = is_enum(type(live)) and type(live).__qualname__ == decode_text(items(node, 5, 5)[2])
    if live is not MISSING and live is not None and not same and not plan.lenient:
        plan.differs("an enum member", describe(live))
        return lambda: None  # never built: the difference is raised first
    member = decode_enum(node, plan.registry, type(live) if same else None)
    return lambda: member
