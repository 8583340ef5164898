"""The theory checks: moments, patches, the nearest image, and the diagnosis made of them."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ssray.cli.main import cli
from ssray.config import Corruption
from ssray.diagnosis.findings import Diagnosis, paragraph
from ssray.diagnosis.tables import (
    MOMENTS,
    PROJECTION,
    THEOREM,
    moments_table,
    projection_table,
    theorem_table,
)
from ssray.diagnosis.theorem import check_theorem
from ssray.errors import SsrayError
from ssray.method.inference import to_network
from ssray.method.projection import (
    TEXTURE_SHARE,
    PositionMoments,
    Projection,
    measure_projection,
    patch_widths,
    swap_patches,
)
from ssray.metrics.values import percent
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.models.store import publish
from ssray.report.diagnosis import render_diagnosis
from ssray.storage.location import Location
from tests.unit.report.test_evaluation import HOSTILE, Document

SHAPE = (32, 40)
HALF = (16, 20)


def texture(count: int = 24) -> Tensor:
    """(N, H, W, 3) uint8 of independent pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *SHAPE, 3), dtype=torch.uint8, generator=generator)


def with_shape(shape: npt.NDArray[np.float64], count: int) -> Tensor:
    return (texture(count) // 4 + torch.from_numpy(120 * shape)[..., None]).to(torch.uint8)


def aligned_object(count: int = 24) -> Tensor:
    """A bright disk off the centre, at the same place of every noisy image."""
    rows, columns = np.indices(SHAPE)
    return with_shape((np.hypot(rows - 12, columns - 14) < 9).astype(float), count)


def aligned_pattern(count: int = 24) -> Tensor:
    """Narrow stripes, at the same place of every noisy image."""
    return with_shape((np.indices(SHAPE)[1] % 3 == 0).astype(float), count)


def moments(images: Tensor, window: tuple[int, int] = SHAPE) -> PositionMoments:
    return PositionMoments.of(to_network(images, torch.device("cpu")), window)


def measured(
    images: Tensor, model: Callable[[Tensor], Tensor], widths: list[int], seed: int = 0
) -> list[Projection]:
    generator = torch.Generator().manual_seed(seed)
    return list(measure_projection(images, model, widths, 30, generator))


def identity(x: Tensor) -> Tensor:
    return x


def projecting(images: Tensor) -> Callable[[Tensor], Tensor]:
    """The stored image that shares most values with the input: exact below half the area."""
    x = to_network(images, torch.device("cpu"))

    def model(x_hat: Tensor) -> Tensor:
        equal = (x_hat[:, None] == x[None]).flatten(2).sum(dim=2)
        return x[equal.argmax(dim=1)]

    return model


def diagnosed(
    images: Tensor, model: Callable[[Tensor], Tensor] = identity, category: str = "nuts"
) -> Diagnosis:
    return Diagnosis(
        category=category,
        model_version="nuts-0001",
        shape=SHAPE,
        skipped=0,
        pixels=moments(images),
        windows=moments(images, HALF),
        neighbours=len(images),
        projections=measured(images, model, [0, *patch_widths(SHAPE)]),
        theorem=check_theorem(images, Corruption(), torch.Generator().manual_seed(0)),
    )


def test_moments_equal_numpys() -> None:
    images = aligned_object()
    exact = images.double().numpy().transpose(0, 3, 1, 2) / 255
    found = moments(images)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.std, exact.std(axis=0), atol=1e-6)


def test_window_moments_are_those_of_every_window() -> None:
    images = aligned_object(5)
    exact = images.double().numpy().transpose(0, 3, 1, 2) / 255
    windows = np.lib.stride_tricks.sliding_window_view(exact, HALF, axis=(2, 3))
    found = moments(images, HALF)
    np.testing.assert_allclose(found.mean, windows.mean(axis=(0, 2, 3)), atol=1e-7)
    np.testing.assert_allclose(found.std, windows.std(axis=(0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("window", [SHAPE, HALF])
def test_merged_moments_equal_one_pass(window: tuple[int, int]) -> None:
    images = aligned_object()
    parts = [moments(part, window) for part in images.split([1, 7, 16])]
    merged = functools.reduce(operator.add, parts, PositionMoments.zero(window))
    whole = moments(images, window)
    assert merged.images == len(images)
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.std, whole.std)
    assert merged.position_share() == pytest.approx(whole.position_share(), rel=1e-9)


def test_position_share_is_the_product_of_different_images() -> None:
    """Against its definition: the covariance over positions of all pairs of two images."""
    images = aligned_object(6)
    exact = images.double().numpy().transpose(0, 3, 1, 2) / 255
    rows, columns = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    powers = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
    basis = np.stack([(rows**p * columns**q).ravel() for p, q in powers], axis=1).astype(float)

    def without_trend(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        flat = values.reshape(-1, rows.size).T
        rest: npt.NDArray[np.float64] = flat - basis @ np.linalg.lstsq(basis, flat)[0]
        return rest.T.reshape(values.shape)

    rest = without_trend(exact)
    pairs = [(rest[i] * rest[j]).sum(axis=0).mean() for i in range(6) for j in range(6) if i != j]
    trend = exact.mean(axis=0) - without_trend(exact.mean(axis=0))
    total = ((exact - trend) ** 2).mean(axis=(0, 2, 3)).sum()
    expected = np.mean(pairs) / total
    assert moments(images).position_share() == pytest.approx(expected, rel=1e-5)
    assert 0.3 < expected < 0.95


def test_uneven_light_makes_no_object_of_a_texture() -> None:
    rows, columns = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    light = 1 - 0.15 * (rows**2 + columns**2) + 0.05 * rows
    noise = np.random.default_rng(0).standard_normal((24, 64, 64, 1))
    lit = torch.from_numpy(np.clip(255 * light[..., None] * (0.5 + 0.02 * noise), 0, 255))
    images = to_network(lit.to(torch.uint8).expand(-1, -1, -1, 3), torch.device("cpu"))
    assert images.mean(dim=0).var() > 2 * images.var(dim=0).mean()  # light outweighs texture
    assert moments(images).position_share() < TEXTURE_SHARE


@pytest.mark.parametrize("count", [3, 24])
def test_few_images_of_a_texture_are_no_object(count: int) -> None:
    naive = moments(texture(count)).mean.var().item() / moments(texture(count)).std.square().mean()
    assert naive > 0.8 / count
    assert moments(texture(count)).position_share() < 0.04


def test_position_share_of_nothing_and_of_one_image() -> None:
    assert moments(torch.full((3, *SHAPE, 3), 77, dtype=torch.uint8)).position_share() == 0
    with pytest.raises(ValueError, match="at least 2 images, found 1"):
        moments(texture(1)).position_share()


def test_a_patch_is_swapped_and_nothing_else() -> None:
    images, donors = torch.zeros(2, 3, *SHAPE), torch.ones(2, 3, *SHAPE)
    swapped = swap_patches(images, donors, torch.tensor([[0, 0], [27, 35]]), 5)
    expected = torch.zeros(2, 3, *SHAPE)
    expected[0, :, :5, :5] = 1
    expected[1, :, 27:, 35:] = 1
    assert torch.equal(swapped, expected)


def test_an_exact_projection_is_told_below_half_the_area_and_not_above() -> None:
    images = texture()
    below, above = measured(images, projecting(images), [20, 31])
    assert below.output_hits.all()
    assert below.output_rms.abs().max() == 0
    assert below.output_patch_rms.max() == 0
    assert below.input_rms.min() > 0.1
    assert not above.output_hits.any()


def test_the_identity_gives_the_figures_of_its_input() -> None:
    for at in measured(texture(), identity, [0, 4, 31]):
        assert torch.equal(at.output_hits, at.input_hits)
        assert torch.equal(at.output_rms, at.input_rms)
        assert torch.equal(at.output_patch_rms, at.input_patch_rms)


def test_distances_of_patches() -> None:
    """Black against white: the patch differs by 1 everywhere, the image by w / sqrt(H W)."""
    images = torch.zeros(2, *SHAPE, 3, dtype=torch.uint8)
    images[1] = 255
    clean, patched = measured(images, identity, [0, 8])
    assert clean.input_rms.max() == 0 and clean.input_hits.all()
    torch.testing.assert_close(patched.input_patch_rms, torch.ones(30, dtype=torch.float64))
    expected = torch.full((30,), 8 / (SHAPE[0] * SHAPE[1]) ** 0.5, dtype=torch.float64)
    torch.testing.assert_close(patched.input_rms, expected)


def test_equal_images_are_equally_near() -> None:
    """Matrix products of an odd number of rows round equal rows differently."""
    images = texture(7).repeat(2, 1, 1, 1)
    [at] = measured(images, identity, [4])
    assert at.input_hits.all()


def test_the_generator_decides() -> None:
    first, again, other = (
        measured(texture(), identity, [6], seed=seed)[0].input_rms for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (texture(), "texture", "nuts is texture-like: a pixel's position explains"),
        (aligned_object(), "object", "nuts is not texture-like but an aligned object"),
        (aligned_pattern(), "aligned pattern", "nuts is a pattern that lies at the same place"),
    ],
)
def test_the_paragraph_says_what_it_is(images: Tensor, kind: str, words: str) -> None:
    diagnosis = diagnosed(images)
    assert diagnosis.kind == kind
    text = paragraph(diagnosis)
    assert text.startswith(words)
    assert f"explains {percent(diagnosis.pixels.position_share())} of the variance" in text
    assert "rough" not in text and "\n" not in text


def test_the_paragraph_names_the_largest_patch() -> None:
    images = texture()
    text = paragraph(diagnosed(images, projecting(images)))
    size = "22 x 22 px (38 % of the image's 40 x 32 px)"
    assert f"projects foreign patches of up to {size}" in text
    assert f"inside the patch (rms) up to {size}" in text
    assert "Over the whole image" not in text


def test_the_paragraph_of_a_model_that_copies() -> None:
    text = paragraph(diagnosed(texture(10)))
    assert "of no tested width: inside the patch its output is no nearer" in text
    assert "Even inside the smallest patch, 2 x 2 px" in text
    assert "With only 10 images these shares are rough." in text


@pytest.mark.parametrize(("misses", "stops"), [(1, False), (2, True)])
def test_projection_ends_where_too_many_trials_miss(misses: int, stops: bool) -> None:
    """29 of 30 trials are enough for 95 %, 28 are not; widths beyond the first failure are moot."""
    images = texture()
    exact = diagnosed(images, projecting(images))
    missed = replace(exact.projections[3], output_hits=torch.arange(30) >= misses)
    cut = replace(exact, projections=[*exact.projections[:3], missed, *exact.projections[4:]])
    reached = exact.projections[2].width if stops else exact.projected_width()
    assert cut.projected_width() == reached
    assert cut.repaired_width() == exact.repaired_width()


@pytest.mark.parametrize(("left", "stops"), [(0.49, False), (0.51, True)])
def test_repair_ends_where_half_of_the_patch_is_left(left: float, stops: bool) -> None:
    images = texture()
    exact = diagnosed(images, projecting(images))
    at = exact.projections[3]
    worse = replace(at, output_patch_rms=left * at.input_patch_rms)
    cut = replace(exact, projections=[*exact.projections[:3], worse, *exact.projections[4:]])
    assert cut.repaired_width() == (exact.projections[2].width if stops else exact.repaired_width())
    assert cut.projected_width() == exact.projected_width()


def test_a_model_that_loses_the_image_does_not_project() -> None:
    diagnosis = diagnosed(texture(), torch.zeros_like)
    assert diagnosis.projected_width() == 0
    assert "already at 2 px the clean image is the nearest of 24" in paragraph(diagnosis)


def test_a_small_patch_may_weigh_less_than_the_models_own_error() -> None:
    images = texture()
    exact = diagnosed(images, projecting(images))
    noisy = replace(
        exact,
        projections=[replace(at, output_rms=at.output_rms + 0.07) for at in exact.projections],
    )
    assert noisy.closer_from() == 6
    assert noisy.projected_width() == exact.projected_width()
    text = "the latter holds only from 6 px on, because the model's own error on a clean image (7 %"
    assert text in paragraph(noisy)


def test_tables_hold_what_was_measured() -> None:
    images = aligned_object()
    diagnosis = diagnosed(images, projecting(images))
    table = moments_table(diagnosis)
    assert table.schema.equals(MOMENTS)
    assert len(table) == SHAPE[0] * SHAPE[1] + HALF[0] * HALF[1]
    row = table.to_pylist()[3 * SHAPE[1] + 7]
    assert (row["view"], row["row"], row["column"]) == ("image", 3, 7)
    assert row["mean_blue"] == pytest.approx(diagnosis.pixels.mean[2, 3, 7].item())
    assert row["std_red"] == pytest.approx(diagnosis.pixels.std[0, 3, 7].item())
    projection = projection_table(diagnosis)
    assert projection.schema.equals(PROJECTION)
    at, row = diagnosis.projections[4], projection.to_pylist()[4]
    assert row["width_px"] == at.width == 6
    assert row["area_share"] == pytest.approx(36 / 1280)
    assert (row["trials"], row["images"], row["output_accuracy"]) == (30, 24, 1)
    assert row["input_rms_std"] == pytest.approx(at.input_rms.numpy().std())
    theorem = theorem_table(diagnosis)
    assert theorem.schema.equals(THEOREM)
    recipe, *radii = theorem.to_pylist()
    assert recipe["regions_of"] == "recipe" and {row["regions_of"] for row in radii} == {"radius"}
    assert (recipe["radius_min"], recipe["radius_max"]) == Corruption().patches.radius
    assert (recipe["pairs"], recipe["regions"]) == (24 * 23 // 2, 64)
    largest = diagnosis.theorem.radii[-1]
    assert radii[-1]["radius_min"] == radii[-1]["radius_max"] == 0.5
    assert radii[-1]["area_mean"] == pytest.approx(largest.areas.numpy().mean())
    assert radii[-1]["violated"] == largest.violated > 0.3
    assert radii[-1]["violated_though_small"] is None


def test_page_is_whole_escaped_and_fetches_nothing() -> None:
    diagnosis = diagnosed(aligned_object(), category=HOSTILE)
    html = render_diagnosis(diagnosis, "2026-06-14 09:30 UTC", "1.2.3")
    document = Document(html)
    assert document.open == []
    assert not document.all("script") and not document.all("link")
    for _, attributes in document.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:image/").startswith("data:image/")
    assert paragraph(diagnosis) in document.words
    assert len(document.all("svg")) == 6 and len(document.all("img")) == 2
    assert all("nan" not in (line["points"] or "") for line in document.all("polyline"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelArtifact) -> Path:
    """A store with a model of ``weave``."""
    place = tmp_path_factory.mktemp("models")
    artifact.save(tiny_model, Location.parse(place))
    publish(Location.parse(place), "weave", "v1", None)
    return place


def diagnose(*arguments: str | Path) -> str:
    result = CliRunner().invoke(
        cli, ["diagnose", *map(str, arguments)], standalone_mode=False, catch_exceptions=False
    )
    return result.output


def test_diagnose_writes_tables_and_page(store: Path, demo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = diagnose(
        "--data", demo_root, "--category", "weave", "--models", store, "--out", out, "--images", "5"
    )  # fmt: skip
    assert printed.startswith("weave is texture-like")
    assert "of the variance of 8 training images" in printed
    assert f"Page: {out}/diagnosis.html" in printed
    projection = pq.read_table(out / "projection.parquet").to_pylist()
    assert [row["width_px"] for row in projection] == [0, *patch_widths((64, 64))]
    assert {(row["model_version"], row["trials"], row["images"]) for row in projection} == {
        ("v1", 5, 5)
    }
    assert pq.read_table(out / "moments.parquet").num_rows == 64 * 64 + 32 * 32
    words = Document((out / "diagnosis.html").read_text()).words
    assert printed.splitlines()[0] in words
    again = tmp_path / "again"
    diagnose("--data", demo_root, "--category", "weave", "--models", store, "--out", again,
             "--images", "5")  # fmt: skip
    assert pq.read_table(again / "projection.parquet").to_pylist() == projection
    theorem = pq.read_table(out / "theorem.parquet").to_pylist()
    assert {row["pairs"] for row in theorem} == {10}
    assert pq.read_table(again / "theorem.parquet").to_pylist() == theorem


def test_diagnose_counts_images_that_cannot_be_read(
    store: Path, demo_root: Path, tmp_path: Path
) -> None:
    good = tmp_path / "data/weave/train/good"
    good.mkdir(parents=True)
    sources = sorted((demo_root / "weave/train/good").iterdir())[:3]
    for source in sources:
        (good / source.name).write_bytes(source.read_bytes())
    (good / "torn.png").write_bytes(sources[0].read_bytes()[:200])
    arguments = ("--data", tmp_path / "data", "--category", "weave", "--models", store,
                 "--out", tmp_path / "out")  # fmt: skip
    assert "of 3 training images" in diagnose(*arguments)
    assert "1 more could not be read" in (tmp_path / "out/diagnosis.html").read_text()
    (good / sources[0].name).unlink()
    with pytest.raises(SsrayError, match=r"2 usable images .* \(1 could not be read\); at least 3"):
        diagnose(*arguments)


@pytest.mark.parametrize(
    ("category", "models", "message"),
    [
        ("nut", "{store}", "no category nut. Found: grain, weave."),
        ("grain", "{store}", "no published model for 'grain'. Models here: weave."),
        ("weave", "{store}/nowhere", "no published model for 'weave'"),
    ],
)
def test_diagnose_names_what_is_missing(
    category: str, models: str, message: str, store: Path, demo_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(SsrayError, match=re.escape(message)):
        diagnose(
            "--data", demo_root, "--category", category, "--models", models.format(store=store),
            "--out", tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
