"""The data set that the demo learns: see DATA.md for source and licence."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import numpy.typing as npt

__all__ = ["CLASSES", "PIXELS", "Digits", "load_digits"]

PIXELS = 64
CLASSES = 10
HELD_OUT = 297
BRIGHTEST = 16


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits, split into what is learned from and what is held out.

    Attributes:
        images: float32, (1500, 64), each pixel from 0 to 1.
        labels: int64, (1500,), each from 0 to 9.
        held_out_images, held_out_labels: the last 297 of them, never trained on.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    held_out_images: npt.NDArray[np.float32]
    held_out_labels: npt.NDArray[np.int64]


def load_digits() -> Digits:
    """Give the 1,797 digits that come with this package."""
    packed = files("limpet.cli.demo").joinpath("digits.csv.gz").read_bytes()
    rows = np.loadtxt(gzip.decompress(packed).decode("ascii").splitlines(), delimiter=",", dtype=np.uint8)
    images = rows[:, :PIXELS].astype(np.float32) / np.float32(BRIGHTEST)
    labels = rows[:, PIXELS].astype(np.int64)
    return Digits(images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:])
