"""PyTorch: lazy saves that are right in an ordinary training loop, without further care.

Parameters and the optimizer's state change in ``optimizer.step()`` alone, whether it loops, is foreach or fused: a
pre-hook of torch's own waits there for what is not copied yet, before a closure is called or anything is written. What
changes elsewhere is copied in the call of ``write``: every leaf below 256 KiB anyway (the statistics of a BatchNorm, step
counts, the scale of a ``GradScaler``), all buffers of the modules, and whatever else is named.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib.array_utils import byte_bounds

from limpet.checkpointer import Checkpointer
from limpet.errors import UsageError

__all__ = ["LazyTraining"]

_DEPTH_MAX = 32


class LazyTraining:
    """Makes ``cp.write(state, lazy=True)`` safe in a loop that trains; for use as a context manager, or until ``remove``.

    .. code-block:: python

        with Checkpointer("runs/42") as cp, LazyTraining(cp, optimizer, model, also=[ema]):
            for step, batch in enumerate(batches):
                loss(model, batch).backward()
                optimizer.step()  # waits first for what an earlier save has not copied yet
                ema.update_parameters(model)
                cp.write({"model": model, "optimizer": optimizer, "ema": ema}, step=step, lazy=True)

    Args:
        cp: whose lazy saves, and those of its children, are waited for.
        optimizers: one, or several: each whose parameters or state are saved.
        modules: one, or several: their buffers are copied in each call. Parameters are not: they change in a step.
        also: what changes outside of a step too, an average of the weights, say: modules (with parameters), tensors,
            numpy arrays, objects with a ``state_dict()``, and lists, tuples and dicts of them.

    What changes otherwise (weights that are clamped after the step, ``load_state_dict``) needs ``with cp.mutating():``
    or belongs in ``also``; ``Checkpointer(check=True)`` finds it. Tensors on a device are always copied in the call.

    Raises:
        UsageError: something is not what it should be; nothing was hooked.
    """

    def __init__(self, cp: Checkpointer, optimizers: Any, modules: Any = (), *, also: Any = ()) -> None:
        if not isinstance(cp, Checkpointer):
            raise UsageError(f"LazyTraining needs a Checkpointer first, not a {type(cp).__name__}.")
        self._hooks: list[Any] = []
        hooked = _several(optimizers, "register_step_pre_hook")
        if not hooked or not all(callable(getattr(each, "register_step_pre_hook", None)) for each in hooked):
            raise UsageError(
                f"optimizers={optimizers!r:.100} is not an optimizer of torch's, or several.",
                hint="Give the object whose step() changes the weights; if it wraps another one, the inner one.",
            )
        buffers = _several(modules, "buffers")
        for module in buffers:
            if not callable(getattr(module, "buffers", None)):
                raise UsageError(f"modules= holds a {type(module).__name__}, which has no buffers().")
        changing = list(also) if isinstance(also, list | tuple) else [also]
        list(_spans_of(changing))  # what cannot be looked into is refused here, not in the first save

        def spans() -> Iterator[tuple[int, int]]:
            for module in buffers:
                for buffer in module.buffers():
                    yield from _tensor_span(buffer)
            yield from _spans_of(changing)

        waiting = _waiting(weakref.ref(cp))
        self._hooks = [optimizer.register_step_pre_hook(waiting) for optimizer in hooked]
        self._forget = cp._lazies.add_volatile(spans)

    def remove(self) -> None:
        """Take the hooks off again: from here on the caller waits. Idempotent."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _waiting(reference: weakref.ref[Checkpointer]) -> Callable[..., None]:
    """The hook. It does not keep the checkpointer, and returns nothing: torch takes anything else for new arguments."""

    def wait(*_: object) -> None:
        cp = reference()
        if cp is not None:
            with cp.mutating():
                pass

    return wait


def _several(given: Any, method: str) -> list[Any]:
    """One object, or several of them: one is told by its method, since a module may be iterable too."""
    if hasattr(given, method) or not isinstance(given, Iterable):
        return [given]
    return list(given)


def _spans_of(value: Any, depth: int = 0) -> Iterator[tuple[int, int]]:
    """The memory of everything in ``value`` that is large enough to be copied lazily.

    Raises:
        UsageError: it is nothing that holds tensors.
    """
    if depth > _DEPTH_MAX:
        raise UsageError("also= holds something that contains itself, or is too deep.")
    if callable(getattr(value, "untyped_storage", None)):
        yield from _tensor_span(value)
    elif isinstance(value, np.ndarray):
        yield tuple(map(int, byte_bounds(value)))  # type: ignore[misc]  # two of them
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _spans_of(member, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _spans_of(member, depth + 1)
    elif callable(getattr(value, "state_dict", None)):
        yield from _spans_of(value.state_dict(), depth + 1)
    elif depth == 1:
        raise UsageError(
            f"also= holds a {type(value).__name__}, in which no tensors can be found.",
            hint="Give modules, tensors, arrays, or objects with a state_dict().",
        )


def _tensor_span(tensor: Any) -> Iterator[tuple[int, int]]:
    """The memory of a tensor on the CPU: all of its storage, which others may share."""
    if tensor.device.type == "cpu" and str(tensor.layout) == "torch.strided":
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
