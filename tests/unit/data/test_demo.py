"""Generated demo data: layout, determinism, honest masks, nothing given away by brightness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt, uniform_filter
from sklearn.metrics import roc_auc_score

from ssray.data.demo.category import Category
from ssray.data.demo.dataset import MARKER, write_demo_data
from ssray.data.demo.defects import VISIBLE
from ssray.data.demo.families import PRODUCT_FAMILIES, category_name
from ssray.errors import ConfigError

SIZE = 64
KINDS = [(i, kind) for i, family in enumerate(PRODUCT_FAMILIES) for kind in family.defects]
INDEX = {family.name: i for i, family in enumerate(PRODUCT_FAMILIES)}


@pytest.fixture(scope="module")
def default_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    assert write_demo_data(out, images=40) == ["weave", "grain", "washer"]
    return out


def pixels(root: Path) -> dict[str, npt.NDArray[np.uint8]]:
    return {
        path.relative_to(root).as_posix(): np.asarray(Image.open(path))
        for path in sorted(root.rglob("*.png"))
    }


def same(a: dict[str, npt.NDArray[np.uint8]], b: dict[str, npt.NDArray[np.uint8]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_layout_follows_mvtec_ad(default_data: Path) -> None:
    for index, name in enumerate(("weave", "grain", "washer")):
        folder = default_data / name
        kinds = sorted(PRODUCT_FAMILIES[index].defects)
        assert sorted(p.name for p in folder.iterdir()) == ["ground_truth", "test", "train"]
        assert sorted(p.name for p in (folder / "test").iterdir()) == sorted(["good", *kinds])
        assert sorted(p.name for p in (folder / "ground_truth").iterdir()) == kinds
        train = sorted(p.name for p in (folder / "train/good").iterdir())
        assert train == [f"{i:03d}.png" for i in range(40)]
        assert len(list((folder / "test/good").iterdir())) == 20
        for kind in kinds:
            images = sorted(p.stem for p in (folder / "test" / kind).iterdir())
            masks = sorted(p.name for p in (folder / "ground_truth" / kind).iterdir())
            assert images == [f"{i:03d}" for i in range(5)]
            assert masks == [f"{stem}_mask.png" for stem in images]


def test_images_are_8_bit_and_the_washers_grey(default_data: Path) -> None:
    modes = {
        name: {Image.open(p).mode for p in (default_data / name).glob("t*/*/*.png")}
        for name in ("weave", "grain", "washer")
    }
    assert modes == {"weave": {"RGB"}, "grain": {"RGB"}, "washer": {"L"}}
    assert {image.shape[:2] for image in pixels(default_data).values()} == {(128, 128)}


def test_masks_are_binary_and_of_modest_area(default_data: Path) -> None:
    masks = {name: m for name, m in pixels(default_data).items() if name.endswith("_mask.png")}
    assert len(masks) == 3 * 20
    for name, mask in masks.items():
        assert mask.dtype == np.uint8 and mask.ndim == 2, name
        assert set(np.unique(mask)) == {0, 255}, name
        assert 0.003 <= (mask > 0).mean() <= 0.045, name


def test_brightness_does_not_betray_defects(default_data: Path) -> None:
    # With 20 good and 20 defective images the AUROC of a score that knows nothing has a
    # standard deviation of sqrt(41 / (12 * 20 * 20)) = 0.09 per category and 0.05 averaged
    # over three: the bounds are two standard deviations. A real leak exceeds both.
    areas: dict[str, list[float]] = {"mean": [], "distance": []}
    for name in ("weave", "grain", "washer"):
        images = pixels(default_data / name)
        means = {n: float(i.mean()) for n, i in images.items() if not n.startswith("ground")}
        normal = np.mean([m for n, m in means.items() if n.startswith("train/")])
        test = [n for n in means if n.startswith("test/")]
        defective = [not n.startswith("test/good/") for n in test]
        brightness = np.array([means[n] for n in test])
        areas["mean"].append(roc_auc_score(defective, brightness))
        areas["distance"].append(roc_auc_score(defective, np.abs(brightness - normal)))
    for values in areas.values():
        assert all(0.3 <= value <= 0.7 for value in values), areas
        assert 0.4 <= np.mean(values) <= 0.6, areas


@pytest.mark.parametrize(("index", "kind"), KINDS)
def test_a_mask_marks_what_changed(index: int, kind: str) -> None:
    category = Category(index, seed=1, size=128)
    for number in range(2):
        sample = category.test(number, kind)
        image, clean = (np.atleast_3d(i).astype(float) / 255 for i in (sample.image, sample.clean))
        change = np.abs(image - clean).max(axis=-1)
        # The mask averages over 3 x 3 pixels: a thin edge just below that threshold may
        # differ by several times as much in single pixels, but nothing larger is left out.
        assert change[~sample.mask].mean() < 0.1 * VISIBLE
        assert np.quantile(change[~sample.mask], 0.99) < VISIBLE
        # Seen, but subtle. A misplaced part mixes strong edges with unchanged overlap.
        assert VISIBLE < change[sample.mask].mean() < 0.35
        least, most = category.family.areas
        assert sample.mask.any() and least <= sample.mask.mean() <= most


def test_a_misplaced_part_is_marked_where_it_is_and_where_it_belongs() -> None:
    category = Category(2, seed=0, size=128)
    misplaced = category.test(0, "misplaced").mask
    missing = category.test(0, "missing").mask
    assert misplaced.sum() > 1.15 * missing.sum()


def test_a_normal_image_has_no_mask() -> None:
    sample = Category(0, seed=0, size=SIZE).test(0)
    assert not sample.mask.any()
    assert np.array_equal(sample.image, sample.clean)


def test_same_seed_same_pixels_other_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_demo_data(tmp_path / name, categories=4, images=4, seed=seed, size=SIZE)
    a, b, c = (pixels(tmp_path / name) for name in "abc")
    assert same(a, b)
    assert not any(np.array_equal(a[n], c[n]) for n in a if "/ground_truth/" not in n)


def test_larger_data_starts_with_the_smaller(tmp_path: Path) -> None:
    write_demo_data(tmp_path / "small", categories=1, images=4, size=SIZE)
    write_demo_data(tmp_path / "large", categories=2, images=24, size=SIZE)
    small, large = pixels(tmp_path / "small"), pixels(tmp_path / "large")
    assert len(large) > len(small)
    assert same(small, {name: large[name] for name in small})


@pytest.mark.parametrize("name", ["strip", "screw", "relay"])
def test_an_image_depends_on_its_number_alone(name: str) -> None:
    index = INDEX[name]
    kind = next(iter(PRODUCT_FAMILIES[index].defects))
    category = Category(index, seed=0, size=SIZE)
    drawn = [category.test(number, kind).image for number in range(3)]
    assert np.array_equal(Category(index, seed=0, size=SIZE).test(2, kind).image, drawn[2])
    assert not np.array_equal(drawn[1], drawn[2])


def test_a_strip_is_long_and_grey() -> None:
    sample = Category(INDEX["strip"], seed=0, size=100).test(0, "crack")
    assert sample.image.shape == sample.clean.shape == sample.mask.shape == (252, 100)


def test_hair_cracks_are_up_to_three_pixels_wide_of_low_contrast_and_inside() -> None:
    category = Category(INDEX["strip"], seed=0, size=500)
    for number in range(2):
        sample = category.test(number, "crack")
        darker = sample.clean.astype(float) - sample.image
        line = darker > 0.5 * darker.max()
        # Half a line's width is where its distance to its surroundings has a maximum; at a fork
        # two lines merge.
        half = distance_transform_edt(line)
        assert np.quantile(half[line], 0.95) <= 1.5
        assert not binary_erosion(line, np.ones((5, 5))).any()
        rows, columns = np.nonzero(sample.mask)
        assert 0.05 * 500 < max(np.ptp(rows), np.ptp(columns)) < 0.75 * 500
        assert darker.min() >= -2  # a crack is dark everywhere
        texture = (sample.clean - _smooth(sample.clean)).std()
        assert 0.5 < darker[sample.mask].mean() / texture < 3


def _smooth(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return np.asarray(uniform_filter(image.astype(float), 25))


def test_crushed_flanks_of_a_thread_are_a_few_pixels() -> None:
    category = Category(INDEX["screw"], seed=0, size=256)
    areas = [category.test(number, "flank").mask.sum() for number in range(4)]
    assert 6 < np.mean(areas) < 0.002 * 256 * 256


def test_screws_lie_at_any_angle_and_within_the_photograph() -> None:
    category = Category(INDEX["screw"], seed=0, size=128)
    angles = []
    for number in range(12):
        image = category.train(number).image.astype(float)
        dark = image < 0.75 * np.median(image)
        assert not dark[[0, -1]].any() and not dark[:, [0, -1]].any()
        points = np.argwhere(dark) - np.argwhere(dark).mean(axis=0)
        axis = np.linalg.svd(points, full_matrices=False)[2][0]
        angles.append(np.arctan2(axis[0], axis[1]) % np.pi)
    quarters = np.histogram(angles, bins=4, range=(0, np.pi))[0]
    assert (quarters > 0).all()


def test_relays_are_tested_under_lamps_that_have_drifted() -> None:
    relay, connector = (Category(INDEX[name], seed=0, size=SIZE) for name in ("relay", "connector"))

    def light(images: list[npt.NDArray[np.uint8]]) -> tuple[float, float, float]:
        """Returns mean and spread of the brightness, and how much of red there is to blue."""
        channels = np.array([image.mean(axis=(0, 1)) for image in images])
        level = channels.mean(axis=1)
        warmth = channels[:, 0].mean() / channels[:, 2].mean()
        return float(level.mean()), float(level.std() / level.mean()), float(warmth)

    train, train_spread, train_warmth = light([relay.train(n).image for n in range(30)])
    good, good_spread, good_warmth = light([relay.test(n).image for n in range(30)])
    assert 0.84 < good / train < 0.93
    assert good_spread > 1.3 * train_spread
    assert 1.03 < good_warmth / train_warmth < 1.15

    defective, _, defective_warmth = light([relay.test(n, "missing").image for n in range(30)])
    assert defective / good == pytest.approx(1, abs=0.03)
    assert defective_warmth / good_warmth == pytest.approx(1, abs=0.03)

    steady = light([connector.test(n).image for n in range(30)])
    assert steady[0] / light([connector.train(n).image for n in range(30)])[0] == pytest.approx(
        1, abs=0.02
    )


def test_categories_differ_in_name_and_look() -> None:
    assert len({category_name(i) for i in range(24)}) == 24
    first = [Category(i, seed=0, size=SIZE).train(0).image for i in range(24)]
    means = {tuple(np.atleast_3d(image).mean(axis=(0, 1)).round(2)) for image in first}
    assert len(means) == 24


@pytest.mark.parametrize(
    ("argument", "value"), [("categories", 0), ("images", 3), ("size", 63), ("seed", -1)]
)
def test_out_of_range(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"found {argument}={value}, expected at least"):
        write_demo_data(tmp_path / "data", **{argument: value})
    assert not (tmp_path / "data").exists()


class TestExistingFolder:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        write_demo_data(tmp_path / "data", categories=1, images=4, size=SIZE)
        return tmp_path / "data"

    def test_same_request_writes_nothing(self, data: Path) -> None:
        before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
        assert write_demo_data(data, categories=1, images=4, size=SIZE) == ["weave"]
        assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before

    def test_other_request_replaces_the_data(self, data: Path) -> None:
        stray = data / "weave/train/good/999.png"
        shutil.copy(data / "weave/train/good/000.png", stray)
        before = pixels(data)
        write_demo_data(data, categories=1, images=4, size=SIZE, seed=1)
        after = pixels(data)
        assert not stray.exists()
        assert not any(
            np.array_equal(before[n], after[n]) for n in after if "/ground_truth/" not in n
        )

    def test_fewer_categories_leave_none_behind(self, tmp_path: Path) -> None:
        write_demo_data(tmp_path, categories=2, images=4, size=SIZE)
        write_demo_data(tmp_path, categories=1, images=4, size=SIZE)
        assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER, "weave"]

    def test_data_of_an_earlier_format_are_replaced_under_their_own_names(
        self, tmp_path: Path
    ) -> None:
        earlier = {"format": 2, "complete": True, "categories": 6, "images": 4, "seed": 0}
        (tmp_path / MARKER).write_text(json.dumps({**earlier, "size": SIZE}))
        for name in ("weave", "weave_2", "strip"):
            (tmp_path / name).mkdir()
        write_demo_data(tmp_path, categories=1, images=4, size=SIZE)
        assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER, "strip", "weave"]

    def test_interrupted_run_is_repeated(self, data: Path) -> None:
        complete = pixels(data)
        marker = json.loads((data / MARKER).read_text())
        (data / MARKER).write_text(json.dumps({**marker, "complete": False}))
        (data / "weave/test/good/000.png").unlink()
        write_demo_data(data, categories=1, images=4, size=SIZE)
        assert same(pixels(data), complete)

    @pytest.mark.parametrize("marker", [None, "not JSON", "[]", "{}"])
    def test_users_files_are_never_overwritten(self, tmp_path: Path, marker: str | None) -> None:
        precious = tmp_path / "weave" / "precious.txt"
        precious.parent.mkdir()
        precious.write_text("mine")
        if marker is not None:
            (tmp_path / MARKER).write_text(marker)
        with pytest.raises(ConfigError, match="not empty"):
            write_demo_data(tmp_path, categories=1, images=4, size=SIZE)
        assert precious.read_text() == "mine"

    def test_users_folder_among_the_data_is_kept(self, data: Path) -> None:
        precious = data / "grain" / "precious.txt"
        precious.parent.mkdir()
        precious.write_text("mine")
        before = pixels(data)
        with pytest.raises(ConfigError, match="not part of the demo data"):
            write_demo_data(data, categories=2, images=4, size=SIZE)
        assert precious.read_text() == "mine"
        assert same(pixels(data), before)

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ConfigError, match="is a file"):
            write_demo_data(tmp_path / "file")
