"""Settings of the anomaly map, judged together as each would be alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ssray.config import AnomalyMap, Difference, Network
from ssray.method.anomaly_map import MapMaker
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import differences, to_network
from ssray.selection import Evidence, gather_evidence, judge, select

KINDS: tuple[Difference, ...] = ("squared", "ssim", "both")
CPU = torch.device("cpu")


def evidence(channels: int = 1, side: int = 64) -> Evidence:
    """Defects are wide and weak, noise is strong and narrow."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(8, channels, side, side, generator=generator)
    defects = torch.rand(8, channels, side, side, generator=generator)
    truth = torch.zeros(8, 1, side, side, dtype=torch.bool)
    middle = slice(side * 5 // 16, side * 5 // 8)
    truth[..., middle, middle] = True
    return Evidence(clean, defects + 0.2 * truth, truth)


def test_a_wide_filter_wins_where_defects_are_wide() -> None:
    start = AnomalyMap(difference="ssim", repeats=3, average_power=1.0)
    chosen, selection = select(evidence(), start)
    assert chosen.kernel is not None
    assert chosen.kernel >= 7
    assert selection.image_auroc == 1.0
    assert selection.basis == "synthetic defects"
    assert (chosen.difference, chosen.repeats, chosen.average_power) == ("ssim", 3, 1.0)
    given = AnomalyMap(kernel=5, image_score="sum")
    assert select(evidence(), given)[0] == given
    half = select(evidence(), AnomalyMap(image_score="sum"))[0]
    assert half.kernel is not None
    assert (half.kernel >= 7, half.image_score) == (True, "sum")


def test_without_a_perceptible_defect_there_is_a_fallback() -> None:
    nothing = torch.empty(0, 1, 64, 64)
    chosen, selection = select(Evidence(torch.rand(4, 1, 64, 64), nothing, nothing.bool()),
                               AnomalyMap())  # fmt: skip
    assert (chosen.kernel, chosen.image_score) == (5, "topk")
    assert (selection.basis, selection.image_auroc) == ("recipe", None)


@pytest.mark.parametrize("side", [64, 256])
def test_each_is_judged_as_if_it_were_alone(side: int) -> None:
    """Against the anomaly maps of each setting, made the usual way, and scikit-learn."""
    found = {
        kind: evidence(channels, side) for kind, channels in zip(KINDS, (1, 2, 1), strict=True)
    }
    candidates = [
        AnomalyMap(
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
    for each in judged[:: 1 if side == 64 else 17]:
        seen, stride = found[each.settings.difference], side // 128 or 1
        maker = MapMaker.fitted(each.settings, seen.clean)
        maps = maker(torch.cat([seen.clean, seen.defects]))[..., ::stride, ::stride]
        truth = torch.cat([torch.zeros_like(seen.truth), seen.truth])[..., ::stride, ::stride]
        pixel = roc_auc_score(truth.flatten(), maps.flatten())
        image = roc_auc_score([0] * 8 + [1] * 8, maker.scores(maps))
        assert each.pixel_auroc == pytest.approx(pixel, abs=1e-5)
        assert each.image_auroc == pytest.approx(image, abs=1e-9)
    assert len({each.pixel_auroc for each in judged}) == 20, (
        "2 kernels, 3 repeats, 2 powers, 2 maps"
    )


def test_evidence_shows_the_same_images_with_and_without_defects() -> None:
    torch.manual_seed(0)
    networks = [Autoencoder(Network(width=2)).eval() for _ in range(2)]
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    found = gather_evidence(networks, images, KINDS, torch.float32, 0, radius=(0.1, 0.3))
    again = gather_evidence(networks, images, ["ssim"], torch.float32, 0, radius=(0.1, 0.3))
    bare = gather_evidence(networks, images, ["ssim"], torch.float32, 0, radius=None)
    assert set(found) == set(KINDS)
    for kind, seen in found.items():
        assert seen.clean.shape == (5, 2, 32, 32)
        expected = differences(networks, to_network(images, CPU), kind, torch.float32)
        torch.testing.assert_close(seen.clean, expected)
        assert len(seen.defects) == len(seen.truth) > 48
        inside = seen.truth.expand_as(seen.defects)
        assert seen.defects[inside].mean() != pytest.approx(float(seen.clean.mean()), rel=1e-3)
        assert seen.truth.flatten(1).any(dim=1).all()
    assert torch.equal(again["ssim"].defects, found["ssim"].defects)
    assert len(bare["ssim"].defects) == 0
