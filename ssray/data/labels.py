"""Which folders of a data set hold good images."""

from __future__ import annotations

import re

from ssray.errors import DataError

GOOD = "good"
"""The type of good images, and the name of their folder unless another is given."""
_LIKE_GOOD = frozenset(
    [
        *("good", "goods", "ok", "okay", "io", "gut", "fine", "clean", "intact", "perfect"),
        *("normal", "normals", "nominal", "healthy", "pass", "passed", "accept", "accepted"),
        *("defectfree", "nodefect", "nodefects", "nondefect", "nondefective", "undamaged"),
        *("anomalyfree", "noanomaly", "noanomalies", "nonanomalous", "faultless", "flawless"),
    ]
)
"""Names of folders, in lower case and without separators, whose images nobody calls defective."""


def refuse_like_good(category: str, split: str, kind: str, good_name: str) -> None:
    """Refuses a folder that is called like good images but would count as a type of defect.

    Args:
        category: the place of the category, for the message.
        split: ``train`` or ``test``.
        kind: the name of the folder in it.
        good_name: the name of the folders of good images.

    Raises:
        DataError: if it is such a folder.
    """
    if kind == good_name or re.sub(r"[\W_]", "", kind.casefold()) not in _LIKE_GOOD:
        return
    raise DataError(
        f"{category}: {split}/{kind} is called like good images, but those lie in '{good_name}', "
        f"and its images would count as defective. Rename '{kind}' to '{good_name}', or give "
        f"--good-name {kind} if the folders of all good images are called so."
    )
