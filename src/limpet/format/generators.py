"""States of random generators, as trees of plain values: ``["rng", kind, state]``.

A generator's own setter trusts what it is given, and some of them index memory by it; so everything that is
read is checked here first.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from limpet.errors import UsageError
from limpet.format.flattening import Flattening
from limpet.format.nodes import MISSING, Node, Refused, corrupt, items
from limpet.format.paths import place
from limpet.format.plan import Build, Plan, describe

__all__ = ["encode_generator", "generator_kind", "plan_generator"]

_BIT_GENERATORS: Final = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_MT_WORDS: Final = 624
"""Words of a Mersenne twister's state; its position may equal this, never exceed it."""
_PHILOX_WORDS: Final = 4
_SEED_BITS_MAX: Final = 1 << 16
"""numpy takes a seed apart word by word, each time copying the rest: the time grows with the square of its size."""
_SEEDS_MAX: Final = 1 << 12
_TORCH_CPU_HEAD: Final = struct.Struct("<QiiQ")
"""How the state of torch's CPU generator begins: seed, words left, whether seeded, next word (ATen's
``CPUGeneratorImplStateLegacy``)."""
_TORCH_DEVICES: Final = ("cpu", "cuda", "mps", "xpu")


def generator_kind(value: object) -> str | None:
    """The kind of a random generator; ``None`` for anything else."""
    if type(value) is random.Random:
        return "random.Random"
    module = sys.modules.get("numpy.random")
    if module is not None:
        if type(value) is module.Generator:
            return "numpy.Generator"
        if type(value) is module.RandomState:
            return "numpy.RandomState"
        if isinstance(value, module.BitGenerator):
            return "numpy.BitGenerator"
    torch = sys.modules.get("torch")
    return "torch.Generator" if torch is not None and type(value) is getattr(torch, "Generator", None) else None


def encode_generator(value: Any, flat: Flattening) -> Node:
    """``["rng", kind, state]``."""
    kind = generator_kind(value)
    assert kind is not None  # resolve() found it
    return ["rng", kind, flat.inner(value, _STATES[kind](value))]


def _python_state(value: random.Random) -> Any:
    version, words, gauss = value.getstate()
    return {"version": version, "words": np.array(words, np.uint32), "gauss": gauss}


def _bit_state(value: Any) -> Any:
    name = type(value).__name__
    if name not in _BIT_GENERATORS or type(value) is not getattr(np.random, name, None):
        raise Refused(f"is the bit generator {type(value)!r}", f"Use one of {', '.join(_BIT_GENERATORS)}.")
    seeds = value.seed_seq if hasattr(value, "seed_seq") else value._seed_seq  # public since numpy 1.25
    stored = None
    if type(seeds) is np.random.SeedSequence:
        stored = seeds.state | {"spawn_key": tuple(seeds.spawn_key)}
    return {"state": value.state, "seeds": stored}


def _generator_state(value: Any) -> Any:
    return _bit_state(value.bit_generator)


def _legacy_state(value: Any) -> Any:
    state = value.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise Refused(f"is a RandomState over {state['bit_generator']}", "Use numpy.random.Generator.")
    return state


def _torch_state(value: Any) -> Any:
    return {"device": value.device.type, "state": value.get_state()}


_STATES: dict[str, Callable[[Any], Any]] = {
    "random.Random": _python_state,
    "numpy.Generator": _generator_state,
    "numpy.BitGenerator": _bit_state,
    "numpy.RandomState": _legacy_state,
    "torch.Generator": _torch_state,
}


def plan_generator(plan: Plan, node: list[Any], live: object) -> Build:
    """A generator; a live one of the same kind takes the state."""
    _, kind, child = items(node, 3, 3)
    restore = _RESTORERS.get(kind) if type(kind) is str else None
    if restore is None:
        raise corrupt("a random generator is of an unknown kind")
    if kind == "torch.Generator":
        plan.imported("torch")
    found: Any = MISSING if live is None else live
    if found is not MISSING and generator_kind(found) != kind:
        if not plan.lenient:
            plan.differs(f"a {kind}", describe(found))
        found = MISSING
    where = place(plan.path)
    state = plan.inner(child, MISSING)

    def build() -> Any:
        try:
            return restore(state(), found)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
            raise corrupt(f"{where} is no state of a {kind}") from error

    return build


def _require(holds: bool) -> None:
    if not holds:
        raise corrupt("a random generator's state is damaged")


def _words(value: Any, dtype: type, count: int) -> Any:
    _require(isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == (count,))
    return value


def _position(value: Any, most: int) -> int:
    _require(isinstance(value, int | np.integer) and 0 <= int(value) <= most)
    return int(value)


def _restore_python(state: Any, live: Any) -> random.Random:
    _require(type(state) is dict and state["version"] == random.Random.VERSION)
    words = _words(state["words"], np.uint32, _MT_WORDS + 1)
    _position(words[-1], _MT_WORDS)
    gauss = state["gauss"]
    _require(gauss is None or type(gauss) is float)
    made: random.Random = random.Random(0) if live is MISSING else live  # noqa: S311  # the kind that was saved
    made.setstate((state["version"], tuple(words.tolist()), gauss))
    return made


def _checked_bit_state(state: Any) -> dict[str, Any]:
    """The state of a bit generator, with every index into its memory in range."""
    _require(type(state) is dict and type(state["state"]) is dict and state["bit_generator"] in _BIT_GENERATORS)
    name, inner = state["bit_generator"], state["state"]
    if name == "MT19937":
        _words(inner["key"], np.uint32, _MT_WORDS)
        _position(inner["pos"], _MT_WORDS)
    elif name == "Philox":
        _words(inner["counter"], np.uint64, 4)
        _words(inner["key"], np.uint64, 2)
        _words(state["buffer"], np.uint64, _PHILOX_WORDS)
        _position(state["buffer_pos"], _PHILOX_WORDS)
    elif name == "SFC64":
        _words(inner["state"], np.uint64, 4)
    else:
        _require(type(inner["state"]) is int and type(inner["inc"]) is int)
    return dict(state)


def _seed_sequence(seeds: Any) -> Any:
    if seeds is None:
        return None
    _require(type(seeds) is dict and seeds.keys() <= {"entropy", "spawn_key", "pool_size", "n_children_spawned"})
    found = [*_seeds(seeds["entropy"]), *_seeds(seeds["spawn_key"]), seeds["n_children_spawned"]]
    _require(all(isinstance(seed, int | np.integer) and seed >= 0 for seed in found))
    _require(sum(int(seed).bit_length() for seed in found) <= _SEED_BITS_MAX)
    _position(seeds["pool_size"], 1024)
    return np.random.SeedSequence(**seeds)


def _seeds(value: Any) -> list[Any]:
    """The integers of an entropy or a spawn key, which may be one, or a sequence of them."""
    if isinstance(value, np.ndarray):
        _require(value.dtype.kind in "ui" and value.ndim <= 1)
        value = np.atleast_1d(value).tolist() if value.size <= _SEEDS_MAX else None
    found = list(value) if isinstance(value, list | tuple) else [value]
    _require(len(found) <= _SEEDS_MAX)
    return found


def _restore_bits(state: Any, live: Any) -> Any:
    _require(type(state) is dict)
    bits, seeds = _checked_bit_state(state["state"]), _seed_sequence(state["seeds"])
    name = bits["bit_generator"]
    if live is not MISSING and type(live).__name__ == name:
        made = live
    else:
        made = getattr(np.random, name)(0 if seeds is None else seeds)
    # What unpickling does: the only way to give a live generator its seed sequence back, which spawn() needs.
    made.__setstate__(bits if seeds is None else (bits, seeds))
    return made


def _restore_generator(state: Any, live: Any) -> Any:
    if live is MISSING:
        return np.random.Generator(_restore_bits(state, MISSING))
    bits = _restore_bits(state, live.bit_generator)
    return live if bits is live.bit_generator else np.random.Generator(bits)


def _restore_legacy(state: Any, live: Any) -> Any:
    _require(_checked_bit_state(state)["bit_generator"] == "MT19937")
    _require(type(state["gauss"]) is float and state["has_gauss"] in (0, 1))
    made = np.random.RandomState(0) if live is MISSING else live
    made.set_state(state)
    return made


def _restore_torch(state: Any, live: Any) -> Any:
    torch = sys.modules["torch"]
    _require(type(state) is dict and state["device"] in _TORCH_DEVICES and isinstance(state["state"], torch.Tensor))
    if state["device"] == "cpu":
        _check_torch_cpu(state["state"].numpy())
    made = live
    if live is MISSING:
        try:
            made = torch.Generator(device=state["device"])
        except RuntimeError as error:
            raise UsageError(
                f"the checkpoint holds the state of a {state['device']} generator, and there is no such device here.",
                hint="Use select= to read other leaves.",
            ) from error
    made.set_state(state["state"])
    return made


def _check_torch_cpu(state: Any) -> None:
    """torch checks each of the two counters by itself; together they may still lead past the end of the state."""
    _require(state.dtype == np.uint8 and state.ndim == 1 and state.size >= _TORCH_CPU_HEAD.size)
    _, left, _, following = _TORCH_CPU_HEAD.unpack_from(state.tobytes())
    _require(1 <= left <= _MT_WORDS and following + left - 1 <= _MT_WORDS)


_RESTORERS: dict[str, Callable[[Any, Any], Any]] = {
    "random.Random": _restore_python,
    "numpy.Generator": _restore_generator,
    "numpy.BitGenerator": _restore_bits,
    "numpy.RandomState": _restore_legacy,
    "torch.Generator": _restore_torch,
}
