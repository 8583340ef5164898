"""What a new model can be trusted with, in words, before any test image is seen."""

from __future__ import annotations

import math

from ssray.metrics.values import percent
from ssray.models.artifact import ModelArtifact

POOR_AUROC = 0.8
"""Below this image AUROC on synthetic defects a model is called poor."""


def in_words(model: ModelArtifact) -> list[str]:
    """Says how long a model was trained, how well it tells synthetic defects from good parts, and
    which false-alarm rate it can promise.

    Returns:
        One sentence a line; a line that warns begins with ``Warning``.
    """
    facts, found = model.facts, model.calibration.selection
    lines = [f"trained on {facts.images_seen:,.0f} images in {facts.seconds / 60:.1f} minutes"]
    if found.image_auroc is not None and found.basis != "recipe":
        lines.append(
            f"tells {found.basis} from good parts with image AUROC {found.image_auroc:.2f} "
            "(0.5 is guessing, 1 is perfect)"
        )
        if found.image_auroc < POOR_AUROC:
            lines.append(
                f"Warning: an image AUROC below {POOR_AUROC:g} there means that defects will be "
                "missed. Train longer (--max-minutes), or look at 'ssray diagnose'."
            )
    calibration = model.calibration
    count = len(calibration.image_scores)
    if count:
        lines.append(f"flags at most {percent(calibration.supported_rate)} of good parts")
    if count and calibration.supported_rate > calibration.false_alarm_rate:
        needed = math.ceil(1 / calibration.false_alarm_rate) - 1
        lines.append(
            f"Warning: {percent(calibration.false_alarm_rate)} were asked for, which takes "
            f"{needed} held-out images and there are {count}. Add photographs of good parts, or "
            "use --calibration-folds 5."
        )
    return lines
