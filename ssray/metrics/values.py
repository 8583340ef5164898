"""A collection of named metrics, some of which may be undefined for a stated reason."""

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
