"""What images are labelled as, and the array types that metrics share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOOD, DEFECT, UNKNOWN = 0, 1, -1
"""Labels of an image in arrays; in tables an unknown one is null."""

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
