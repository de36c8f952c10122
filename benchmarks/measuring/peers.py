"""Other ways to save the same arrays, each used as its documentation advises.

Versions are pinned in the extra ``peers``. What each does about durability was read in its source and seen with strace:
see ``durability`` of each. Where a library does not flush, questions show it as it is, and with an fsync of everything
that it wrote.
"""

from __future__ import annotations

import copy
import os
import pickle
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from measuring.contender import Contender, flush_tree
from measuring.states import Arrays

__all__ = ["BACKGROUND", "PEERS", "Deepcopy", "Pickle", "PlainWrite", "absent", "durability", "present"]


class _Numbered(Contender):
    """Each save goes to a place of its own, as in a run."""

    def set_up(self) -> None:
        self._numbers = count()
        self.path = self.folder

    def next_path(self) -> Path:
        self.path = self.folder / f"{next(self._numbers):06d}"
        return self.path


class PlainWrite(Contender):
    """The disk's own speed: the bytes of the arrays, one after another, and one fsync."""

    title = "plain write + fsync"
    flushes = True

    def save(self) -> None:
        with (self.folder / "raw").open("wb", buffering=0) as file:
            for array in self.state.values():
                view = array.view(np.uint8).data
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())


class Pickle(_Numbered):
    """What many scripts do, with the flush that makes it count."""

    title = "pickle + fsync"
    flushes = True

    def save(self) -> None:
        pickle_and_flush(self.state, self.next_path())

    def restore(self) -> Any:
        with self.path.open("rb") as file:
            return pickle.load(file)


class PickleZstd(_Numbered):
    """The same through zstd at its fastest level."""

    title = "pickle + zstd -1 + fsync"
    flushes = True

    def save(self) -> None:
        compressor = zstandard.ZstdCompressor(level=1)
        with self.next_path().open("wb") as file, compressor.stream_writer(file) as writer:
            pickle.dump(self.state, writer, protocol=5)
        flush_tree(self.folder)

    def restore(self) -> Any:
        with self.path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            return pickle.load(reader)


class Deepcopy(_Numbered):
    """The usual home-made asynchronous save."""

    title = "copy.deepcopy + thread (pickle + fsync)"
    flushes = True
    background = True

    def save(self) -> None:
        snapshot = copy.deepcopy(self.state)
        self._thread = threading.Thread(target=pickle_and_flush, args=(snapshot, self.next_path()))
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def restore(self) -> Any:
        with self.path.open("rb") as file:
            return pickle.load(file)


class Flytekit(_Numbered):
    """flytekit's own checkpoint of a task, on a local folder; it takes bytes."""

    title = "flytekit SyncCheckpoint.write(pickle)"
    needs = ("flytekit",)
    flushes = False
    durability = "flushes nothing"

    def set_up(self) -> None:
        super().set_up()
        self._module: Any = import_module("flytekit.core.checkpointer")

    def save(self) -> None:
        path = self.next_path()
        path.mkdir()
        self._module.SyncCheckpoint(str(path)).write(pickle.dumps(self.state, protocol=5))

    def restore(self) -> Any:
        again = self._module.SyncCheckpoint(str(self.folder / "again"), str(self.path))
        return pickle.loads(again.read())


class _Torch(_Numbered):
    """Tensors share the memory of the arrays, so that what changes there changes here."""

    def set_up(self) -> None:
        super().set_up()
        self.torch: Any = import_module("torch")
        self.tensors = self.tensors_of(self.state)

    def tensors_of(self, arrays: Arrays) -> dict[str, Any]:
        return {name: self.torch.from_numpy(array) for name, array in arrays.items()}


class TorchSave(_Torch):
    """``torch.save`` of a state dict."""

    title = "torch.save"
    needs = ("torch",)
    flushes = False
    durability = "flushes nothing"

    def save(self) -> None:
        self.torch.save(self.tensors, self.next_path())

    def restore(self) -> Any:
        return self.torch.load(self.path)


class Dcp(_Torch):
    """PyTorch's distributed checkpoint, in one process."""

    title = "torch DCP save"
    needs = ("torch",)
    flushes = True
    durability = "flushes its files, not their folder"

    def set_up(self) -> None:
        super().set_up()
        self.dcp: Any = import_module("torch.distributed.checkpoint")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def save(self) -> None:
        self.dcp.save(self.tensors, checkpoint_id=self.next_path())

    def restore(self) -> Any:
        fresh = {name: self.torch.empty_like(tensor) for name, tensor in self.tensors.items()}
        self.dcp.load(fresh, checkpoint_id=self.path)
        return fresh

    def restore_into(self, target: Arrays) -> None:
        self.dcp.load(self.tensors_of(target), checkpoint_id=self.path)


class DcpAsync(Dcp):
    """``async_save`` as it comes: it stages into new memory each time."""

    title = "torch DCP async_save"
    background = True

    def save(self) -> None:
        self._future = self.dcp.async_save(self.tensors, checkpoint_id=self.next_path())

    def wait(self) -> None:
        self._future.result()


class DcpAsyncReused(DcpAsync):
    """``async_save`` with a stager that lives as long as the run, so that it can reuse its memory."""

    title = "torch DCP async_save, reused stager"

    def set_up(self) -> None:
        super().set_up()
        staging: Any = import_module("torch.distributed.checkpoint.staging")
        # What async_save makes for itself; pinned memory and streams need an accelerator.
        options = staging.StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
        self._stager = staging.DefaultStager(options)

    def save(self) -> None:
        self._future = self.dcp.async_save(self.tensors, checkpoint_id=self.next_path(), async_stager=self._stager)

    def close(self) -> None:
        self._stager.close()


class Safetensors(_Numbered):
    """``safetensors.numpy.save_file``."""

    title = "safetensors save_file"
    needs = ("safetensors",)
    flushes = False
    durability = "flushes nothing"

    def set_up(self) -> None:
        super().set_up()
        self._module: Any = import_module("safetensors.numpy")

    def save(self) -> None:
        self._module.save_file(self.state, self.next_path())

    def restore(self) -> Any:
        return self._module.load_file(self.path)


class Orbax(_Numbered):
    """orbax's ``AsyncCheckpointer`` with numpy leaves."""

    title = "orbax AsyncCheckpointer, numpy leaves"
    needs = ("orbax.checkpoint", "jax")
    flushes = True
    durability = "flushes data and its index, not metadata and the last rename"
    background = True

    def set_up(self) -> None:
        super().set_up()
        self._ocp: Any = import_module("orbax.checkpoint")
        import_module("absl.logging").set_verbosity("error")
        self._checkpointer = self._ocp.AsyncCheckpointer(self._ocp.StandardCheckpointHandler())
        self.changed()

    def changed(self) -> None:
        self.leaves: dict[str, Any] = dict(self.state)

    def save(self) -> None:
        self._checkpointer.save(self.next_path(), args=self._ocp.args.StandardSave(self.leaves))

    def wait(self) -> None:
        self._checkpointer.wait_until_finished()

    def restore(self) -> Any:
        return self._checkpointer.restore(self.path, args=self._ocp.args.StandardRestore(self.leaves))

    def close(self) -> None:
        self._checkpointer.close()


class OrbaxJax(Orbax):
    """The same with jax leaves, which cannot be changed in place: there is nothing to copy."""

    title = "orbax AsyncCheckpointer, jax leaves"

    def changed(self) -> None:
        self.leaves = jax_leaves(self.state)


def jax_leaves(state: Arrays) -> dict[str, Any]:
    """The same values as jax arrays of their own."""
    jax: Any = import_module("jax")
    made = {name: jax.numpy.array(array, copy=True) for name, array in state.items()}
    jax.block_until_ready(made)
    return made


PEERS: tuple[type[Contender], ...] = (
    Pickle,
    PickleZstd,
    Deepcopy,
    Flytekit,
    TorchSave,
    Dcp,
    DcpAsync,
    DcpAsyncReused,
    Safetensors,
    Orbax,
    OrbaxJax,
)
BACKGROUND = tuple(peer for peer in PEERS if peer.background)


def present(
    folder: Path, state: Arrays, peers: Sequence[type[Contender]] = PEERS, *, flush: bool = False
) -> list[Contender]:
    """Every peer that is installed; with ``flush`` also, once more, each that does not flush by itself."""
    made = [peer(folder / peer.__name__, state) for peer in peers if not peer.missing()]
    if flush:
        unsafe = [peer for peer in peers if not peer.missing() and not peer.flushes]
        made += [peer(folder / f"{peer.__name__}-flushed", state, flush=True) for peer in unsafe]
    return made


def absent(peers: Sequence[type[Contender]] = PEERS) -> dict[str, str]:
    """Every peer that is not installed, and why: for the report."""
    return {peer.title: reason for peer in peers if (reason := peer.missing())}


def pickle_and_flush(state: Any, path: Path) -> None:
    """Write a pickle that survives a power loss."""
    with path.open("wb") as file:
        pickle.dump(state, file, protocol=5)
        file.flush()
    flush_tree(path.parent)


def durability(peers: Sequence[type[Contender]] = PEERS) -> list[str]:
    """What each installed peer leaves to luck, as notes for the report."""
    return [f"{peer.title} {peer.durability}" for peer in peers if peer.durability and not peer.missing()]
