"""False-alarm rates that are promised, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssray.calibration.conformal import lowest_rate, p_values, threshold
from ssray.config import Compute, MapSettings, Recipe, override
from ssray.errors import ConfigError, TrainingError
from ssray.method.anomaly_map import MapMaker
from ssray.training.build import BuildRequest, build_model
from ssray.training.folds import cut_folds
from ssray.training.images import Feed
from tests.helpers import write_images

SCORES = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60).map(np.array)
RATES = st.integers(1, 99).map(lambda percent: percent / 100)


@given(calibration=SCORES, rate=RATES, score=st.integers(0, 13).map(float))
def test_what_is_above_the_threshold_has_a_p_value_within_the_rate(
    calibration: np.ndarray, rate: float, score: float
) -> None:
    [p_value] = p_values(np.array([score]), calibration)
    supported = rate >= lowest_rate(len(calibration)) - 1e-9
    flagged = score > threshold(calibration, rate)
    if supported and flagged:
        assert p_value <= rate + 1e-9
    # Ties at the threshold may be let through although their p-value would do, never the reverse.
    if supported and not flagged and (calibration == score).sum() == 0:
        assert p_value > rate - 1e-9


@pytest.mark.parametrize("count", [19, 40, 99])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_the_rate_of_false_alarms_is_kept(count: int, draw: str) -> None:
    """Over calibration sets and new images, for any distribution of the scores."""
    rng = np.random.default_rng(0)
    sample = getattr(rng, draw)
    alarms, trials = 0, 4000
    for _ in range(trials):
        calibration = sample(size=count)
        alarms += int(sample(size=1)[0] > threshold(calibration, 0.05))
    assert 0.6 * 0.05 < alarms / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_too_few_images_support_no_low_rate() -> None:
    calibration = np.arange(13.0)
    assert lowest_rate(13) == pytest.approx(1 / 14)
    assert threshold(calibration, 0.05) == 12.0
    assert p_values(np.array([100.0]), calibration)[0] == lowest_rate(13)


def test_folds_give_a_score_to_every_image(
    stripes: torch.Tensor, tiny: Recipe, tmp_path: Path
) -> None:
    uris = write_images(stripes, tmp_path)
    compute = Compute(precision="float32")
    plain, folded = (
        build_model(
            BuildRequest(
                uris,
                "stripes",
                "v1",
                override(tiny, ["image_size=32", "linear={}", f"decision.folds={folds}"]),
                compute,
            ),
            torch.device("cpu"),
            threads=1,
        )
        for folds in (0, 3)
    )
    assert plain is not None and folded is not None
    assert len(plain.calibration.image_scores) == 2
    assert len(folded.calibration.image_scores) == len(stripes)
    assert folded.calibration.supported_rate < plain.calibration.supported_rate
    assert len(folded.weights) == 1
    for name, weight in plain.weights[0].items():
        assert torch.equal(weight, folded.weights[0][name])
    assert plain.linear is not None and folded.linear is not None
    assert torch.equal(plain.linear["basis"], folded.linear["basis"])
    assert folded.facts.validation_loss == plain.facts.validation_loss
    assert folded.facts.images_seen > 3.5 * plain.facts.images_seen


@pytest.mark.parametrize(
    ("images", "folds", "power", "networks"),
    [(20, 10, 0.0, 1), (20, 1, 4.0, 1), (20, 1, 0.0, 2), (40, 5, 1.0, 1)],
)
def test_images_that_made_the_scale_give_no_lower_threshold(
    images: int, folds: int, power: float, networks: int
) -> None:
    """Scores by the other images' scale and average map keep the rate that is promised.

    Each map has a level of its own. Scored by what contains themselves, folds of two or an average
    map let twice as many new images be flagged as promised.
    """
    settings = MapSettings(
        difference="squared", kernel=3, repeats=0, image_score="max", average_power=power
    )
    torch.manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        level = torch.exp(0.3 * torch.randn(count, networks, 1, 1))
        return level * torch.rand(count, networks, 6, 6)

    rate, alarms, trials = 0.1, 0, 300
    for _ in range(trials):
        scores = torch.cat(
            [MapMaker.left_out_scores(settings, drawn(images // folds)) for _ in range(folds)]
        )
        maker = MapMaker.fitted(settings, drawn(images // folds) if folds > 1 else drawn(images))
        alarms += int((maker.scores(maker(drawn(20))) > threshold(scores.numpy(), rate)).sum())
    assert alarms / (20 * trials) < 1.25 * rate


def test_more_folds_than_images_allow_are_refused() -> None:
    training, held_out = torch.zeros(8, 4, 4, 3, dtype=torch.uint8).split([6, 2])
    eight = Feed(training, held_out, skipped=0)
    with pytest.raises(TrainingError, match="8 usable training images; 5 calibration folds need"):
        cut_folds(eight, 5)
    with pytest.raises(ConfigError, match=r"decision\.folds"):
        override(Recipe(), ["decision.folds=1"])


def test_each_image_is_left_out_once() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 2, 2, 3)
    found = cut_folds(Feed(images[2:], images[:2], skipped=0), 3)
    left_out = [sorted(fold.held_out[:, 0, 0, 0].tolist()) for fold in found]
    assert sorted(number for part in left_out for number in part) == list(range(8))
    assert {len(part) for part in left_out} == {2, 3}
    for fold, part in zip(found, left_out, strict=True):
        assert sorted(fold.training[:, 0, 0, 0].tolist()) == sorted({*range(8)} - {*part})
