"""Settings of the anomaly map, judged together as each would be alone."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ssray.calibration.candidates import Candidate, judge
from ssray.calibration.evidence import Evidence, SyntheticDefects, gather_evidence
from ssray.calibration.map_settings import (
    KERNEL_SHARES,
    NARROW,
    Choice,
    choose,
    kernels_of,
    plain_settings,
)
from ssray.config import AnomalyMap, Difference, MapSettings, Network
from ssray.method.anomaly_map import MapMaker, difference_maps, scaled, smooth
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor, to_network

KINDS: tuple[Difference, ...] = ("squared", "ssim", "both")
CPU = torch.device("cpu")


def evidence(channels: int = 1, side: int = 64, images: int = 8, strength: float = 0.2) -> Evidence:
    """Defects are wide and weak, noise is strong and narrow."""
    generator = torch.Generator().manual_seed(0)
    clean, defects = torch.empty(2, images, channels, side, side).exponential_(generator=generator)
    truth = torch.zeros(images, 1, side, side, dtype=torch.bool)
    middle = slice(side * 5 // 16, side * 5 // 8)
    truth[..., middle, middle] = True
    return Evidence(clean, defects + strength * truth, truth)


def select(found: dict[Difference, Evidence], settings: AnomalyMap) -> tuple[MapSettings, Choice]:
    """What is chosen of difference and kernel."""
    return choose(judge(found, NARROW.candidates(found, settings)), found, settings)


def test_a_wide_filter_wins_where_defects_are_wide() -> None:
    start = AnomalyMap(difference="ssim", repeats=1, average_power=1.0, image_score="sum")
    chosen, selection = select({"ssim": evidence(images=40)}, start)
    assert chosen.kernel >= 7
    assert selection.image_auroc is not None
    assert selection.image_auroc > 0.8
    assert selection.basis == "synthetic defects"
    kept = AnomalyMap.model_validate(chosen.model_dump() | {"kernel": None})
    assert kept == start


def test_the_difference_that_shows_the_defects_wins() -> None:
    seen = evidence()
    noise = torch.empty_like(seen.defects).exponential_(generator=torch.Generator().manual_seed(1))
    blind = Evidence(seen.clean, noise, seen.truth)
    for seeing in KINDS:
        found = {kind: seen if kind == seeing else blind for kind in KINDS}
        chosen, selection = select(found, AnomalyMap())
        assert chosen.difference == seeing
        [alone] = judge(found, [chosen])
        assert (selection.image_auroc, selection.pixel_auroc) == (
            alone.image_auroc,
            alone.pixel_auroc,
        )


def test_of_kernels_that_do_about_as_well_the_widest_is_taken() -> None:
    found: dict[Difference, Evidence] = {"squared": evidence(images=40)}
    judged = [
        judge(found, [MapSettings(difference="squared", kernel=kernel)])[0]
        for kernel in kernels_of(KERNEL_SHARES, found["squared"])
    ]
    least = min(each.error for each in judged)
    allowed = [each.settings.kernel for each in judged if each.error <= 1.1 * least]
    assert 1 < len(allowed) < len(judged)
    chosen, _ = select(found, AnomalyMap(difference="squared"))
    assert chosen.kernel == max(allowed)


def test_the_plain_map_stays_unless_another_is_clearly_better() -> None:
    """By more than the standard error of its own error's logarithm."""
    wanted = AnomalyMap(difference="both")
    for strength, stays in ((0.03, True), (0.2, False)):
        found: dict[Difference, Evidence] = {"both": evidence(images=40, strength=strength)}
        judged = judge(found, NARROW.candidates(found, wanted))
        plain, others = judged[0], judged[1:]
        assert plain.settings == plain_settings(found, wanted)
        least = min(each.error for each in others)
        assert least < plain.error
        assert (least > plain.error * math.exp(-plain.uncertainty(40, 40))) == stays
        chosen, selection = choose(judged, found, wanted)
        assert (chosen == plain.settings) == stays
        assert (selection.error == plain.error) == stays


def test_of_settings_that_are_about_equal_those_nearest_to_the_recipe_are_taken() -> None:
    found: dict[Difference, Evidence] = {"both": evidence(images=40)}
    wanted = AnomalyMap(difference="both")
    plain = plain_settings(found, wanted)
    near, far = (
        plain.model_copy(update={"kernel": 9, **changes})
        for changes in ({"repeats": 2}, {"repeats": 2, "image_score": "sum"})
    )
    judged = [
        Candidate(plain, 0.6, 0.7),
        Candidate(far, 0.95, 0.95),
        Candidate(near, 0.948, 0.95),
        Candidate(plain.model_copy(update={"kernel": 13}), 0.9, 0.95),
    ]
    chosen, selection = choose(judged, found, wanted)
    assert chosen == near
    assert selection.error == pytest.approx(0.052 * 0.05)


@pytest.mark.parametrize("hidden", [0.0, 0.25])
def test_what_lies_outside_of_the_frame_counts_as_pixels_of_level_0(hidden: float) -> None:
    """Against scikit-learn on whole photographs, of which the frame shows a quarter."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(4000, generator=generator) < 0.03
    levels = 0.1 + torch.rand(4000, generator=generator) + 0.5 * truth
    shown = roc_auc_score(truth, levels)
    missed = round(hidden / (1 - hidden) * int(truth.sum()))
    outside = torch.zeros(12_000, dtype=torch.bool)
    outside[:missed] = True
    expected = roc_auc_score(torch.cat([truth, outside]), torch.cat([levels, torch.zeros(12_000)]))
    seen = dataclasses.replace(evidence(), covered=0.25, hidden=hidden)
    assert seen.over_photographs(shown) == pytest.approx(expected, abs=3e-3)


def test_what_is_set_is_kept() -> None:
    given = MapSettings(difference="squared", kernel=5, repeats=0, image_score="sum")
    chosen, selection = select({"squared": evidence()}, given)
    assert chosen == given
    assert selection.basis == "synthetic defects"


def test_without_a_perceptible_defect_there_is_a_fallback() -> None:
    nothing = torch.empty(0, 1, 64, 64)
    blank = Evidence(torch.rand(4, 1, 64, 64), nothing, nothing.bool())
    chosen, selection = select(dict.fromkeys(KINDS, blank), AnomalyMap(repeats=1))
    assert (chosen.difference, chosen.kernel, chosen.repeats) == ("both", 3, 1)
    assert (selection.basis, selection.image_auroc) == ("recipe", None)


def as_new(settings: MapSettings, clean: Tensor) -> Tensor:
    """Each image's map, dimmed by the average map of the others on the scale of all."""
    maker = MapMaker.fitted(settings, clean)
    if maker.average is None:
        return maker(clean)
    maps = []
    for number in range(len(clean)):
        others = torch.cat([clean[:number], clean[number + 1 :]])
        smoothed = smooth(others, settings.kernel, settings.repeats)
        average = scaled(smoothed, maker.scale).mean(dim=0)
        maps.append(dataclasses.replace(maker, average=average)(clean[number][None]))
    return torch.cat(maps)


@pytest.mark.parametrize("side", [64, 256])
def test_each_is_judged_as_if_it_were_alone(side: int) -> None:
    """Against the anomaly maps of each setting, made the usual way, and scikit-learn."""
    found = {
        kind: evidence(channels, side) for kind, channels in zip(KINDS, (1, 2, 1), strict=True)
    }
    candidates = [
        MapSettings(
            difference=kind,
            kernel=kernel,
            repeats=repeats,
            average_power=power,
            image_score=score,
            top_fraction=0.01,
        )
        for kind, kernel, repeats, power, score in itertools.product(
            KINDS, (3, 9), (2, 0, 3), (0.0, 1.0), ("topk", "sum", "max")
        )
    ]
    judged = judge(found, candidates, threads=2)
    assert [each.settings for each in judged] == candidates
    stride = side // 128 or 1
    groups = [judged[start : start + 3] for start in range(0, len(judged), 3)]  # of one map each
    for group in groups[:: 1 if side == 64 else 7]:
        seen = found[group[0].settings.difference]
        maker = MapMaker.fitted(group[0].settings, seen.clean)
        maps = torch.cat([as_new(group[0].settings, seen.clean), maker(seen.defects)])
        maps = maps[..., ::stride, ::stride]
        truth = torch.cat([torch.zeros_like(seen.truth), seen.truth])[..., ::stride, ::stride]
        pixel = roc_auc_score(truth.flatten(), maps.flatten())
        for each in group:
            scores = dataclasses.replace(maker, settings=each.settings).scores(maps)
            image = roc_auc_score([0] * 8 + [1] * 8, scores)
            assert each.pixel_auroc == pytest.approx(pixel, abs=1e-5)
            assert each.image_auroc == pytest.approx(image, abs=1e-9)
    assert len({each.pixel_auroc for each in judged}) == 20, (
        "2 kernels, 3 repeats, 2 powers, 2 maps"
    )


def test_scale_and_average_map_may_come_from_other_images() -> None:
    """As if the settings' map maker had been fitted on these and then given the evidence."""
    seen, others = evidence(channels=2), 3 * torch.rand(5, 2, 64, 64)
    for power in (0.0, 2.0):
        settings = MapSettings(
            difference="ssim", kernel=5, repeats=2, average_power=power, image_score="max"
        )
        found = dataclasses.replace(seen, fitted_on=others)
        [judged] = judge({"ssim": found}, [settings])
        maker = MapMaker.fitted(settings, others)
        maps = maker(torch.cat([seen.clean, seen.defects]))
        truth = torch.cat([torch.zeros_like(seen.truth), seen.truth])
        expected = roc_auc_score(truth.flatten(), maps.flatten())
        assert judged.pixel_auroc == pytest.approx(expected, abs=1e-5)


def test_evidence_shows_the_same_images_with_and_without_defects() -> None:
    torch.manual_seed(0)
    networks = [Autoencoder(Network(width=2)).eval() for _ in range(2)]
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    reconstructor = Reconstructor(networks, torch.float32)
    source = SyntheticDefects(seed=0)
    found = gather_evidence(reconstructor, images, KINDS, source)
    again = gather_evidence(reconstructor, images, ["ssim"], source)
    bare = gather_evidence(reconstructor, images, ["ssim"], None)
    assert set(found) == set(KINDS)
    x = to_network(images, CPU)
    for kind, seen in found.items():
        assert seen.clean.shape == (5, 2, 32, 32)
        expected = difference_maps(x, reconstructor.reconstruct(x), kind)
        torch.testing.assert_close(seen.clean, expected)
        assert torch.equal(reconstructor.differences(x, kind), expected)
        assert len(seen.defects) == len(seen.truth) > 48
        inside = seen.truth.expand_as(seen.defects)
        assert seen.defects[inside].mean() != pytest.approx(float(seen.clean.mean()), rel=1e-3)
        assert seen.truth.flatten(1).any(dim=1).all()
    assert torch.equal(again["ssim"].defects, found["ssim"].defects)
    assert len(bare["ssim"].defects) == 0
