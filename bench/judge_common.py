"""What the parts of the judge's bench share: cases' ranges, generators, limits and tables."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import beta

SEED = 20251028


RATES = (2.0, 20.0, 200.0, 2000.0)


SHAPES = (np.inf, 0.5, 0.1)


BLOCK = 2_500
"""Runs played together; more would leave the processor's cache."""


READ_BEFORE = 1440
"""Scrapes before the stage that production reads (six hours)."""


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng([SEED, *key])


def upper(count: int, runs: int) -> float:
    """Clopper and Pearson's one-sided upper limit at 95 %."""
    return float(beta.ppf(0.95, count + 1, runs - count)) if count < runs else 1.0


Row = tuple[object, ...]


def table(head: tuple[str, ...], rows: Iterable[Row]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def shape_name(k: float) -> str:
    return "∞" if np.isinf(k) else f"{k:g}"
