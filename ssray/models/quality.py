"""What a new model can be trusted with, in words, before any test image is seen."""

from __future__ import annotations

import math

from ssray.config import Experts
from ssray.metrics.images import standard_error
from ssray.metrics.values import percent
from ssray.models.artifact import ModelArtifact

POOR_AUROC = 0.8
"""Below this image AUROC on synthetic defects a model is called poor."""
LEAST_AUROC = 0.6
"""A model that can't be shown to reach this is not put into use unless the user insists.

As some of the defects are barely visible, good models of few training images that differ much come
to 0.75 to 0.8, and to a lower bound of 0.65 to 0.7."""
ONE_SIDED_95 = 1.645
"""Standard errors between an estimate and its lower 95 % bound."""


def lower_bound(auroc: float, good: int, defective: int) -> float:
    """The value that the AUROC exceeds with 95 % confidence.

    Its standard error is carried over to the log-odds of the AUROC, whose distribution is closer to
    normal.

    Args:
        auroc: as measured.
        good: the number of good images.
        defective: the number of images with a defect.

    >>> lower_bound(0.7, good=30, defective=90) < 0.7 < lower_bound(0.99, good=30, defective=90)
    True
    """
    auroc, error = standard_error(auroc, good, defective)
    odds = math.log(auroc / (1 - auroc)) - ONE_SIDED_95 * error / (auroc * (1 - auroc))
    return 1 / (1 + math.exp(-odds))


def refusal(model: ModelArtifact) -> str | None:
    """Says why a model is better not put into use; None where nothing speaks against it.

    That is decided by its image AUROC on synthetic defects, or on the user's labelled images if
    these chose its settings. A model on which no synthetic defect is perceptible is not refused.
    """
    found = model.calibration.selection
    if found.image_auroc is None:
        return None
    least = lower_bound(found.image_auroc, model.calibration.reference_images, found.defects)
    if least >= LEAST_AUROC:
        return None
    return (
        f"{model.category}: version {model.version} is not put into use: it tells {found.basis} "
        f"from good parts with image AUROC {found.image_auroc:.2f}, {least:.2f} at least with 95 % "
        f"confidence, and {LEAST_AUROC:g} is expected (0.5 is guessing). Train with more "
        "photographs, for more minutes (--max-minutes), or at a larger size "
        f"(--set image_size={2 * model.recipe.image_size}). Use it all the same with --force "
        "(in Python force=True)."
    )


_WHOSE: dict[Experts, str] = {
    "joined": "autoencoders and neighbours, joined",
    "autoencoders": "autoencoders alone: neighbours find synthetic defects less well",
    "neighbours": "neighbours alone: autoencoders find synthetic defects less well",
}
_DEFECTS = {
    "spot": "spots",
    "line": "thin lines",
    "stain": "faint stains",
    "foreign": "patches of other texture",
    "blur": "blurred patches",
}


def in_words(model: ModelArtifact) -> list[str]:
    """Says how long a model was trained, how well it tells synthetic defects from good parts, which
    of these it flags, and which false-alarm rate it can promise.

    Returns:
        One sentence a line; a line that warns begins with ``Warning``.
    """
    facts, found = model.facts, model.calibration.selection
    lines = [f"trained on {facts.images_seen:,.0f} images in {facts.seconds / 60:.1f} minutes"]
    if facts.skipped_images:
        used = facts.training_images + facts.held_out_images
        lines.append(
            f"Warning: {facts.skipped_images} of {facts.skipped_images + used} training images "
            "could not be used: damaged, of one colour, or of another shape than most. 'ssray "
            "score' on their folder names those that can't be scored either, with the reason."
        )
    whose = model.calibration.anomaly_map.experts
    if model.recipe.features and whose:
        lines.append(f"judges by {_WHOSE[whose]} (features of {model.recipe.features.weights})")
    if found.image_auroc is not None:
        lines.append(
            f"tells {found.basis} from good parts with image AUROC {found.image_auroc:.2f} "
            "(0.5 is guessing, 1 is perfect)"
        )
        if found.image_auroc < POOR_AUROC:
            lines.append(
                f"Warning: an image AUROC below {POOR_AUROC:g} there means that fine and faint "
                "defects will be missed. Train longer (--max-minutes), or look at 'ssray diagnose'."
            )
    calibration = model.calibration
    if calibration.defect_scores:
        seen = sorted(calibration.flagged.items(), key=lambda item: -item[1][0] / item[1][1])
        listed = (f"{count} of {of} {_DEFECTS[kind]}" for kind, (count, of) in seen)
        lines.append(f"flags, of synthetic defects, {', '.join(listed)}")
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
