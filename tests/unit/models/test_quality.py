"""What a training says of its model before it ends."""

from __future__ import annotations

import dataclasses

import pytest

from ssray.models.artifact import ModelArtifact
from ssray.models.quality import in_words


def judged(model: ModelArtifact, auroc: float | None, scores: int) -> list[str]:
    """The words on the model, had it this AUROC and so many held-out scores."""
    selection = model.calibration.selection.model_copy(
        update={"basis": "synthetic defects", "image_auroc": auroc}
    )
    calibration = model.calibration.model_copy(
        update={"selection": selection, "image_scores": tuple(map(float, range(1, scores + 1)))}
    )
    return in_words(dataclasses.replace(model, calibration=calibration))


def test_a_model_that_guesses_is_published_with_a_warning(tiny_model: ModelArtifact) -> None:
    lines = judged(tiny_model, 0.502, 40)
    assert "tells synthetic defects from good parts with image AUROC 0.50" in lines[1]
    [warning] = [line for line in lines if line.startswith("Warning")]
    assert "--max-minutes" in warning


def test_a_rate_that_can_not_be_held_is_named_with_the_remedy(tiny_model: ModelArtifact) -> None:
    lines = judged(tiny_model, 0.97, 3)
    assert "flags at most 25 % of good parts" in lines
    [warning] = [line for line in lines if line.startswith("Warning")]
    assert "5 % were asked for, which takes 19 held-out images and there are 3" in warning
    assert "--calibration-folds" in warning


@pytest.mark.parametrize("auroc", [0.97, None])
def test_a_good_model_is_told_without_a_warning(
    tiny_model: ModelArtifact, auroc: float | None
) -> None:
    lines = judged(tiny_model, auroc, 40)
    assert lines[0].startswith("trained on ")
    assert lines[-1] == "flags at most 5 % of good parts"
    assert not [line for line in lines if line.startswith("Warning")]
