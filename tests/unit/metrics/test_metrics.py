"""Every figure against scikit-learn or a calculation that sorts, and the counts' properties."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from ssray.metrics import ranking
from ssray.metrics.histogram import Histogram
from ssray.metrics.images import (
    MEASURES,
    decision_metrics,
    image_auroc,
    image_metrics,
    roc_points,
)
from ssray.metrics.pixels import PixelCounts, pixel_auroc

Rng = np.random.Generator
Case = list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]
SHAPES = [(96, 128), (128, 96), (64, 64), (80, 80), (100, 70), (128, 128)]


def masks(rng: Rng) -> list[npt.NDArray[np.bool_]]:
    """Every third image is good; the others have regions that touch by corners and edges."""
    found = []
    for number, shape in enumerate(SHAPES):
        mask = np.zeros(shape, bool)
        if number % 3:
            mask |= ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.12
            mask[::17, ::19] = True
        found.append(mask)
    return found


def heavy_tails(rng: Rng) -> Case:
    return [
        ((rng.pareto(0.7, mask.shape) * (1 + mask) * 1e-3).astype(np.float32), mask)
        for mask in masks(rng)
    ]


def many_ties(rng: Rng) -> Case:
    return [((rng.integers(0, 4, m.shape) + m).astype(np.float32), m) for m in masks(rng)]


def denormal(rng: Rng) -> Case:
    return [
        ((rng.integers(0, 3000, m.shape) * (1 + m)).astype(np.int32).view(np.float32), m)
        for m in masks(rng)
    ]


def almost_constant(rng: Rng) -> Case:
    return [
        ((1 + 1e-4 * (rng.random(m.shape) + 0.3 * m)).astype(np.float32), m) for m in masks(rng)
    ]


def narrow_with_outliers(rng: Rng) -> Case:
    """Values within a thousandth, and a few pixels at the ends of all floats."""
    case = []
    for mask in masks(rng):
        values = (1 + 1e-3 * (rng.normal(size=mask.shape) + mask)).astype(np.float32)
        values[5, 5:8] = 1e-40, 1e-12, 3e38
        case.append((values, mask))
    return case


def tiny_defect(rng: Rng) -> Case:
    """A few defective pixels among many that differ little."""
    mask = np.zeros((512, 512), bool)
    mask[100:120, 200:220] = True
    values = rng.lognormal(0, 0.1, mask.shape) * (1 + 0.1 * mask)
    values[0, 0] = 1e-7
    return [(values.astype(np.float32), mask)]


def all_zero(rng: Rng) -> Case:
    return [(np.zeros(m.shape, np.float32), m) for m in masks(rng)]


def every_magnitude(rng: Rng) -> Case:
    return [
        ((10.0 ** rng.uniform(-44, 37, m.shape) * (1 + 9 * m)).astype(np.float32), m)
        for m in masks(rng)
    ]


def one_image(rng: Rng) -> Case:
    return heavy_tails(rng)[1:2]


CASES: list[Callable[[Rng], Case]] = [
    heavy_tails,
    many_ties,
    denormal,
    almost_constant,
    narrow_with_outliers,
    tiny_defect,
    all_zero,
    every_magnitude,
    one_image,
]


def counted(case: Case) -> PixelCounts:
    counts = PixelCounts()
    for values, mask in case:
        counts.add(values, mask)
    return counts


def pixels(case: Case) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    return (
        np.concatenate([mask.ravel() for _, mask in case]),
        np.concatenate([values.ravel() for values, _ in case]),
    )


def overlaps(case: Case, regions: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Distinct thresholds, falling, and the mean over regions (or images) of the share found."""
    thresholds = np.unique(pixels(case)[1])[::-1]
    found = []
    for values, mask in case:
        if regions:
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            groups = [np.sort(values[labels == each]) for each in range(1, count + 1)]
        else:
            groups = [np.sort(values[mask])] if mask.any() else []
        found += [
            (len(each) - np.searchsorted(each, thresholds, side="left")) / len(each)
            for each in groups
        ]
    mean: npt.NDArray[np.float64] = np.mean(found, axis=0)
    return thresholds, mean


def false_positive_rates(
    good: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    ordered = np.sort(good)
    return (len(good) - np.searchsorted(ordered, thresholds, side="left")) / len(good)


def area_by_segments(
    rates: npt.NDArray[np.float64], found: npt.NDArray[np.float64], limit: float
) -> float:
    """The trapezoids one after the other, the last one cut at the limit."""
    area, x, y = 0.0, 0.0, 0.0
    for next_x, next_y in zip(rates, found, strict=True):
        if next_x >= limit and next_x > x:
            end = y + (next_y - y) * (limit - x) / (next_x - x)
            return float(area + (limit - x) * (y + end) / 2)
        area += (next_x - x) * (y + next_y) / 2
        x, y = next_x, next_y
    raise AssertionError


@pytest.mark.parametrize("make", CASES)
def test_pixel_figures_are_those_of_scikit_learn_and_of_sorting(
    make: Callable[[Rng], Case],
) -> None:
    case = make(np.random.default_rng(0))
    found = counted(case).metrics()
    truth, values = pixels(case)
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    assert found["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-3)
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    assert found["pixel_f1max"] == pytest.approx(f1, abs=1e-3)
    predicted = values >= found["pixel_f1max_threshold"]
    assert f1_score(truth, predicted) == pytest.approx(found["pixel_f1max"], abs=1e-9)
    thresholds, overlap = overlaps(case, regions=True)
    rates = false_positive_rates(values[~truth], thresholds)
    for name, limit in (("aupro_30", 0.3), ("aupro_05", 0.05)):
        exact = area_by_segments(rates, overlap, limit) / limit
        assert found[name] == pytest.approx(exact, abs=1e-5)


def test_regions_touch_by_corners() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2, 2] = mask[3, 3] = mask[7, 7] = True
    counts = counted([(np.ones((9, 9), np.float32), mask)])
    assert (counts.regions, counts.images) == (2, 1)


def test_aupimo_is_the_mean_recall_over_the_logarithm_of_the_rate() -> None:
    rng = np.random.default_rng(4)
    clean = [(rng.gamma(1, 1, (300, 400)).astype(np.float32), np.zeros((300, 400), bool))] * 3
    mask = np.zeros((300, 400), bool)
    mask[50:90, 100:180] = True
    defects = []
    for shift in (2.0, 8.0):
        values = rng.gamma(1, 1, mask.shape) + shift * mask
        defects.append((values.astype(np.float32), mask))
    found = counted(clean + defects).metrics()["aupimo"]
    thresholds, overlap = overlaps(clean + defects, regions=False)
    rates = false_positive_rates(pixels(clean)[1], thresholds)
    grid = np.geomspace(1e-5, 1e-4, 20001)
    assert found == pytest.approx(np.interp(grid, rates, overlap).mean(), abs=1e-3)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    order=st.permutations(range(len(SHAPES))),
    workers=st.lists(st.integers(0, 2), min_size=len(SHAPES), max_size=len(SHAPES)),
    make=st.sampled_from([heavy_tails, every_magnitude, denormal, many_ties, narrow_with_outliers]),
)
def test_any_split_over_workers_in_any_order_gives_the_same_counts(
    seed: int, order: list[int], workers: list[int], make: Callable[[Rng], Case]
) -> None:
    case = make(np.random.default_rng(seed))
    whole = counted(case)
    parts = [PixelCounts() for _ in range(3)]
    for image in order:
        parts[workers[image]].add(*case[image])
    merged = parts[2] + parts[0]
    merged.merge_bytes(parts[1].to_bytes())
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.metrics() == whole.metrics()


def test_neither_memory_nor_storage_grows_with_the_number_of_images() -> None:
    rng = np.random.default_rng(2)
    tracemalloc.start()
    counts = counted(heavy_tails(rng) + every_magnitude(rng))
    first = tracemalloc.get_traced_memory()[0]
    for _ in range(4):
        counts.merge(counted(heavy_tails(rng) + every_magnitude(rng)))
    assert tracemalloc.get_traced_memory()[0] < 1.05 * first < 32e6
    tracemalloc.stop()
    assert len(counts.to_bytes()) < 8e6


def test_a_bin_holds_what_its_threshold_says() -> None:
    values = np.array([1.0, 3e38, 0, 1e-20, 1e-45, 1.0000001], np.float32)
    histogram = Histogram(rows=1)
    for each in values:
        histogram.counts[0, histogram.place(each.reshape(1))] += 1
    thresholds = histogram.thresholds()
    [counts] = histogram.ordered()
    assert (np.diff(thresholds) > 0).all()
    for column, value in zip(np.flatnonzero(counts), np.sort(values), strict=True):
        assert thresholds[column] <= value
        assert thresholds[column + 1] > value


def test_few_magnitudes_get_finer_bins() -> None:
    """Values within one part in ten thousand are still told apart, whatever else there is."""
    values = np.linspace(1, 1.0001, 500, dtype=np.float32)
    for others in (np.array([], np.float32), np.array([1e-40, 1e38], np.float32)):
        columns = Histogram(rows=1).place(np.append(values, others))
        assert len(np.unique(columns[:500])) == len(np.unique(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_impossible_values_are_refused_and_leave_the_counts(bad: float) -> None:
    counts = counted(one_image(np.random.default_rng(1)))
    before = counts.to_bytes()
    values = np.full((4, 4), 1e-30, np.float32)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="expected finite values of at least 0"):
        counts.add(values, np.zeros((4, 4), bool))
    assert counts.to_bytes() == before


def test_negative_zero_counts_as_zero() -> None:
    values = np.array([[-0.0, 0.0]], np.float32)
    assert pixel_auroc(values, np.array([[True, False]])) == 0.5


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        PixelCounts().add(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))


@pytest.mark.parametrize(
    ("truth", "reason"), [(False, "no defective pixel"), (True, "no good pixel")]
)
def test_one_class_of_pixels_gives_nan_and_the_reason(truth: bool, reason: str) -> None:
    values = np.random.default_rng(0).random((8, 8), np.float32)
    found = counted([(values, np.full((8, 8), truth))]).metrics()
    assert set(found.undefined) == set(found.values)
    assert set(found.undefined.values()) == {reason}
    assert all(math.isnan(value) for value in found.values.values())


def test_nothing_counted_is_undefined_too() -> None:
    assert set(PixelCounts().metrics().undefined.values()) == {"no good pixel"}


def test_aupimo_needs_enough_defect_free_pixels() -> None:
    found = counted(heavy_tails(np.random.default_rng(0))).metrics()
    assert set(found.undefined) == {"aupimo"}
    assert "100000 needed" in found.undefined["aupimo"]


def labelled(
    rng: Rng, count: int, ties: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    labels = rng.integers(0, 2, count)
    scores = rng.normal(size=count) + labels
    return labels, np.round(scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_image_figures_are_scikit_learns(ties: bool) -> None:
    labels, scores = labelled(np.random.default_rng(6), 300, ties)
    found = image_metrics(labels, scores)
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    thresholds = np.unique(scores)
    best = max(f1_score(labels, scores >= each) for each in thresholds)
    assert found["image_f1max"] == pytest.approx(best, abs=1e-12)
    predicted = scores >= found["image_f1max_threshold"]
    assert f1_score(labels, predicted) == pytest.approx(best, abs=1e-12)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found["image_tpr_at_fpr_1"] == true[false <= 0.01].max()
    assert found["image_tpr_at_fpr_01"] == true[false <= 0.001].max()
    lowest_defect = scores[labels == 1].min()
    passed = (scores[labels == 0] < lowest_defect).mean()
    assert found["image_tnr_at_tpr_100"] == pytest.approx(passed)


def test_intervals_are_those_of_drawing_images_again() -> None:
    labels, scores = labelled(np.random.default_rng(7), 120, ties=False)
    found = image_metrics(labels, scores)
    rng = np.random.default_rng(8)
    good, defect = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    drawn = []
    for _ in range(1500):
        passed, flagged = (scores[rng.choice(each, len(each))] for each in (good, defect))
        drawn.append(np.mean(flagged[:, None] > passed))
    expected = np.quantile(drawn, [0.025, 0.975])
    ends = found["image_auroc_low"], found["image_auroc_high"]
    np.testing.assert_allclose(ends, expected, atol=0.012)
    for name in MEASURES:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_intervals_are_the_same_again() -> None:
    labels, scores = labelled(np.random.default_rng(9), 80, ties=False)
    first = image_metrics(labels, scores)
    assert image_metrics(labels, scores) == first
    assert image_metrics(labels, scores, seed=1) != first


@pytest.mark.parametrize(
    ("labels", "reason"), [([0, 0, 0], "no image with a defect"), ([1, 1, 1], "no good image")]
)
def test_one_class_of_images_gives_nan_and_the_reason(labels: list[int], reason: str) -> None:
    found = image_metrics(np.array(labels), np.arange(3.0))
    assert set(found.undefined) == set(found.values)
    assert set(found.undefined.values()) == {reason}
    assert math.isnan(image_auroc(np.array(labels), np.arange(3.0)))
    assert roc_points(np.array(labels), np.arange(3.0))[0].size == 0


def test_no_image_at_all() -> None:
    assert set(image_metrics(np.array([], int), np.array([])).undefined) >= set(MEASURES)


def test_rankings_of_several_samples_at_once() -> None:
    rng = np.random.default_rng(10)
    good, defect = rng.integers(0, 4, (2, 5, 30))
    for measure in MEASURES.values():
        together = measure(good, defect)
        apart = [measure(*pair) for pair in zip(good, defect, strict=True)]
        np.testing.assert_allclose(together, apart)


def test_a_rate_just_reached_counts() -> None:
    """One false alarm in a hundred is 1 %, in a thousand 0.1 %."""
    for count, rate in ((100, 0.01), (1000, 0.001)):
        good = np.zeros(4, int)
        good[[0, 2]] = count - 1, 1
        defect = np.array([0, 1, 1, 1])
        assert ranking.recall_at(good, defect, rate) == pytest.approx(1)
        assert ranking.recall_at(good, defect, 0.9 * rate) == pytest.approx(1 / 3)


def test_aupimo_of_ties_is_the_integral_of_the_line() -> None:
    """Rate and recall rise together from 0 to (2e-4, 1): the mean over log rate, in closed form."""
    good, found = np.array([1_999_600, 400]), np.array([0, 1])
    expected = (1e-4 - 1e-5) / 2e-4 / np.log(10)
    assert ranking.area_over_log(good, found, 1e-5, 1e-4) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_must_be_finite(bad: float) -> None:
    for measure in (image_metrics, image_auroc):
        with pytest.raises(ValueError, match="1 of 2 image scores are infinite or NaN"):
            measure(np.array([0, 1]), np.array([0.0, bad]))


def test_bootstrap_memory_does_not_grow_with_the_samples() -> None:
    labels, scores = labelled(np.random.default_rng(11), 4000, ties=False)
    tracemalloc.start()
    image_metrics(labels, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6


def test_the_curve_is_cut_at_the_limit() -> None:
    """Two good pixels, one found region: 0 at rate 0, then 1 from rate 0.5 on."""
    good, found = np.array([1, 1, 0]), np.array([0, 1, 0])
    for limit, area in ((0.25, 0.0625), (0.5, 0.25), (1.0, 0.75)):
        assert ranking.area_up_to(good, found, limit) == pytest.approx(area / limit)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_points_are_those_of_scikit_learn(ties: bool) -> None:
    labels, scores = labelled(np.random.default_rng(3), 50, ties=ties)
    found = roc_points(labels, scores)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    for own, other in zip(found, expected, strict=False):
        np.testing.assert_allclose(own, other)
    assert np.trapezoid(found[1], found[0]) == pytest.approx(image_auroc(labels, scores))


@pytest.mark.parametrize(("name", "label"), [("false_alarms", 0), ("defects_flagged", 1)])
@pytest.mark.parametrize(("count", "of"), [(0, 21), (1, 21), (2, 60), (21, 21)])
def test_the_intervals_of_shares_that_are_flagged_are_scipys(
    count: int, of: int, name: str, label: int
) -> None:
    flagged = np.arange(of) < count
    values = decision_metrics(np.full(of, label), flagged).values
    ends = (values[f"{name}_low"], values[f"{name}_high"])
    expected = stats.binomtest(count, of).proportion_ci(confidence_level=0.95, method="exact")
    assert ends == pytest.approx(expected)
