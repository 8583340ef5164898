"""A collection of named metrics, some of which may be undefined, and shares as text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import SupportsFloat


@dataclass
class Metrics:
    """Metrics by name; the value of an undefined one is NaN, and ``undefined`` says why.

    >>> metrics = Metrics()
    >>> metrics.put("image_auroc", 0.75)
    >>> metrics.put("pixel_auroc", 0.5, "no defective pixel")
    >>> metrics.values, metrics.undefined
    ({'image_auroc': 0.75, 'pixel_auroc': nan}, {'pixel_auroc': 'no defective pixel'})
    """

    values: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: SupportsFloat, why_undefined: str | None = None) -> None:
        """Adds a value; or, if it is undefined, NaN and the reason."""
        self.values[name] = math.nan if why_undefined else float(value)
        if why_undefined:
            self.undefined[name] = why_undefined

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def percent(share: float, decimals: int | None = None) -> str:
    """Writes a share as a percentage.

    Args:
        share: the share, 1 for all.
        decimals: how many decimal places to show; default: two significant digits below 10 %, whole
            numbers above.

    >>> percent(0.00161), percent(0.709), percent(0.0), percent(0.00001)
    ('0.16 %', '71 %', '0 %', '< 0.01 %')
    >>> percent(0.98765, decimals=1)
    '98.8 %'
    """
    value = 100 * share
    if decimals is not None:
        return f"{value:.{decimals}f} %"
    if 0 < value < 0.01:
        return "< 0.01 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
