"""Generated demo data: layout, determinism, honest masks, nothing given away by brightness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from ssray.data.demo.dataset import (
    MARKER,
    PRODUCT_FAMILIES,
    Category,
    category_name,
    write_demo_data,
)
from ssray.data.demo.defects import VISIBLE
from ssray.errors import ConfigError

SIZE = 64
KINDS = [(i, kind) for i, family in enumerate(PRODUCT_FAMILIES) for kind in family.defects]


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


def test_categories_differ_in_name_and_look() -> None:
    assert len({category_name(i) for i in range(15)}) == 15
    first = [Category(i, seed=0, size=SIZE).train(0).image for i in range(15)]
    means = {tuple(np.atleast_3d(image).mean(axis=(0, 1)).round(2)) for image in first}
    assert len(means) == 15


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
