"""What a training says of its model before it ends, and which model is not put into use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ssray.cluster.categories import _outcome
from ssray.cluster.progress import Silent
from ssray.cluster.train import Trained
from ssray.errors import PoorModelError
from ssray.metrics.images import image_auroc
from ssray.models.artifact import ModelArtifact, save
from ssray.models.quality import LEAST_AUROC, in_words, lower_bound, refusal
from ssray.models.store import in_use, publish
from ssray.storage.location import Location


def with_auroc(model: ModelArtifact, auroc: float | None, defects: int = 90) -> ModelArtifact:
    """The model, had it this image AUROC on so many synthetic defects and 30 good images."""
    selection = model.calibration.selection.model_copy(
        update={"basis": "synthetic defects", "image_auroc": auroc, "defects": defects}
    )
    update = {"selection": selection, "reference_images": 30}
    return dataclasses.replace(model, calibration=model.calibration.model_copy(update=update))


def judged(model: ModelArtifact, auroc: float | None, scores: int) -> list[str]:
    """The words on the model, had it this AUROC and so many held-out scores."""
    model = with_auroc(model, auroc)
    calibration = model.calibration.model_copy(
        update={"image_scores": tuple(map(float, range(1, scores + 1)))}
    )
    return in_words(dataclasses.replace(model, calibration=calibration))


def test_a_weak_model_comes_with_a_warning(tiny_model: ModelArtifact) -> None:
    lines = judged(tiny_model, 0.752, 40)
    assert "tells synthetic defects from good parts with image AUROC 0.75" in lines[1]
    [warning] = [line for line in lines if line.startswith("Warning")]
    assert "--max-minutes" in warning


def test_training_images_that_were_left_out_are_counted(tiny_model: ModelArtifact) -> None:
    facts = tiny_model.facts.model_copy(
        update={"training_images": 20, "held_out_images": 4, "skipped_images": 6}
    )
    [warning] = [
        line for line in in_words(dataclasses.replace(tiny_model, facts=facts)) if "used" in line
    ]
    assert warning.startswith("Warning: 6 of 30 training images could not be used: damaged")


def test_a_rate_that_can_not_be_held_is_named_with_the_remedy(tiny_model: ModelArtifact) -> None:
    lines = judged(tiny_model, 0.97, 3)
    assert "flags at most 25 % of good parts" in lines
    [warning] = [line for line in lines if line.startswith("Warning")]
    assert "5 % were asked for, which takes 19 held-out images and there are 3" in warning
    assert "--calibration-folds" in warning


def test_what_is_flagged_of_each_kind_is_said_best_first(tiny_model: ModelArtifact) -> None:
    assert not [line for line in in_words(tiny_model) if "flags, of synthetic defects" in line]
    scores = {"line": (0.5, 1.5, 2.5, 2.6), "foreign": (3.0, 4.0), "stain": (0.1, 0.2, 0.3)}
    calibration = tiny_model.calibration.model_copy(
        update={"image_scores": tuple(n / 20 for n in range(1, 41)), "defect_scores": scores}
    )
    assert 1.5 < calibration.image_threshold < 2.5
    assert (
        "flags, of synthetic defects, 2 of 2 patches of other texture, 2 of 4 thin lines, 0 of 3 "
        "faint stains"
    ) in in_words(dataclasses.replace(tiny_model, calibration=calibration))


@pytest.mark.parametrize("auroc", [0.97, None])
def test_a_good_model_is_told_without_a_warning(
    tiny_model: ModelArtifact, auroc: float | None
) -> None:
    lines = judged(tiny_model, auroc, 40)
    assert lines[0].startswith("trained on ")
    assert lines[-1] == "flags at most 5 % of good parts"
    assert not [line for line in lines if line.startswith("Warning")]


@pytest.mark.parametrize("auroc", [0.6, 0.75, 0.9])
def test_the_lower_bound_holds_in_nineteen_of_twenty_samples(auroc: float) -> None:
    """Scores are drawn from two exponential laws, for which the formula was derived."""
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 90])
    ratio = auroc / (1 - auroc)

    def sample() -> float:
        good, defective = draw.exponential(1, 30), draw.exponential(ratio, 90)
        return lower_bound(image_auroc(labels, np.r_[good, defective]), 30, 90)

    held = np.mean([sample() <= auroc for _ in range(2000)])
    assert 0.92 <= held <= 0.98


def test_a_model_near_guessing_is_refused_and_the_reason_says_what_to_do(
    tiny_model: ModelArtifact,
) -> None:
    reason = refusal(with_auroc(tiny_model, 0.62))
    assert reason is not None
    assert "image AUROC 0.62, 0.5" in reason
    for remedy in ("photographs", "--max-minutes", "image_size=128", "--force"):
        assert remedy in reason


def test_what_counts_is_what_the_images_can_show(tiny_model: ModelArtifact) -> None:
    assert refusal(with_auroc(tiny_model, 0.72, defects=90)) is None
    assert refusal(with_auroc(tiny_model, 0.72, defects=5)) is not None
    assert lower_bound(0.72, 30, 90) > LEAST_AUROC > lower_bound(0.72, 30, 5)


@pytest.mark.parametrize(("auroc", "defects"), [(None, 0), (None, 90)])
def test_without_a_defect_to_judge_by_nothing_is_refused(
    tiny_model: ModelArtifact, auroc: float | None, defects: int
) -> None:
    assert refusal(with_auroc(tiny_model, auroc, defects)) is None


def test_a_refused_model_leaves_the_one_in_use_until_it_is_forced(
    tiny_model: ModelArtifact, tmp_path: Path
) -> None:
    store = Location.parse(str(tmp_path))
    save(dataclasses.replace(tiny_model, version="v0"), store)
    publish(store, "weave", "v0", None)
    save(with_auroc(tiny_model, 0.55), store)
    trained = Trained("v1", published=False, new=True)
    with pytest.raises(PoorModelError, match=r"^weave: version v1 is not put into use"):
        _outcome(trained, "weave", store, "v0", Silent(), force=False)
    assert in_use(store, "weave") == "v0"
    again = dataclasses.replace(trained, new=False)
    with pytest.raises(PoorModelError, match="--force"):
        _outcome(again, "weave", store, "v0", Silent(), force=False)
    assert _outcome(again, "weave", store, "v0", Silent(), force=True) == (
        "published v1 by force, in place of v0"
    )
    assert in_use(store, "weave") == "v1"
    in_use_now = dataclasses.replace(again, published=True)
    assert "up to date" in _outcome(in_use_now, "weave", store, "v0", Silent(), force=False)
