"""Noise by counter: row r draws the same numbers whichever rows it is drawn beside."""

import numpy as np
from numpy.typing import NDArray


def uniforms(seed: int, row: int, count: int) -> NDArray[np.float64]:
    """`count` uniform draws in [0, 1) that depend on `seed` and `row` alone (Philox 4x64)."""
    # The row is the highest counter word, so streams of different rows cannot run into each other.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, row])).random(count)
