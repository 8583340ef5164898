"""The labels of images, and the array types that the metrics share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOOD, DEFECT, UNKNOWN = 0, 1, -1
"""The label of an image in arrays; tables have null instead of ``UNKNOWN``."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.integer]
