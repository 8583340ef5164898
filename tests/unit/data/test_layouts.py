"""Which images of a data set are good, and which are for training, in every known layout."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssray.data.dataset import categories, index_dataset, index_images, training_uris
from ssray.data.decode import read_image
from ssray.data.masks import read_masks
from ssray.errors import DataError, ImageError
from ssray.storage.location import Location
from tests.helpers import Ended

GREY = np.full((4, 6), 90, np.uint8)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(root / name)


def write_mask(place: Path, column: int, shape: tuple[int, int] = (4, 6)) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[:, column] = 255
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(place)


def counted(root: Path, good_name: str = "good") -> Counter[tuple[str, str, int]]:
    """How many images there are of each split, type and label."""
    rows = index_dataset(Location.parse(root), good_name=good_name).to_pylist()
    return Counter((row["split"], row["split_type"], row["label"]) for row in rows)


def write_mvtec_ad(place: Path, good: str = "good") -> None:
    write(place, *(f"train/{good}/{n}.png" for n in range(3)))
    write(place, f"test/{good}/0.png", "test/spot/0.png", "test/spot/1.png")
    write(place, *(f"ground_truth/spot/{n}_mask.png" for n in range(2)))


MVTEC_AD = {("train", "good", 0): 3, ("test", "good", 0): 1, ("test", "spot", 1): 2}


def test_hidden_files_are_no_images_and_no_types(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part")
    for folder in ("train/good", "train", "test", "test/spot", "ground_truth/spot", "../part"):
        write(tmp_path / "part" / folder, ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/0.png")
        (tmp_path / "part" / folder / "._0.png").write_bytes(b"\0\5\26\7")
        (tmp_path / "part" / folder / "Thumbs.db").write_bytes(b"x")
    write(tmp_path, ".old/train/good/0.png", "__MACOSX/train/good/0.png")
    assert counted(tmp_path) == MVTEC_AD
    unlabelled = index_images(Location.parse(tmp_path / "part/test"), "part")
    assert unlabelled["uri"].to_pylist() == [
        str(tmp_path / "part/test" / name) for name in ("good/0.png", "spot/0.png", "spot/1.png")
    ]
    everything = index_images(Location.parse(tmp_path / "part"), "part")
    assert len(everything) == 6, "masks are no photographs"


def test_a_link_to_its_own_folder_adds_no_image(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part")
    (tmp_path / "part/train/good/again").symlink_to(".")
    (tmp_path / "part/test/again").symlink_to("..")
    assert counted(tmp_path) == MVTEC_AD


def test_a_link_to_an_image_that_is_gone_is_listed(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part")
    (tmp_path / "part/train/good/gone.png").symlink_to("nowhere.png")
    uris = training_uris(Location.parse(tmp_path), "part")
    assert str(tmp_path / "part/train/good/gone.png") in uris
    assert len(uris) == 4


@pytest.mark.parametrize("link", ["lost", "lost.tar", "part/test/bent"])
def test_a_link_to_a_folder_that_is_gone_is_refused(tmp_path: Path, link: str) -> None:
    write_mvtec_ad(tmp_path / "part")
    (tmp_path / link).symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"{link}: a link whose target is not there"):
        index_dataset(Location.parse(tmp_path))


@pytest.mark.parametrize("name", ["Good", "GOOD", "ok", "OK", "Okay", "normal", "defect-free"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_good_images_by_another_name_are_refused(tmp_path: Path, split: str, name: str) -> None:
    write_mvtec_ad(tmp_path / "part")
    (tmp_path / f"part/{split}/good").rename(tmp_path / f"part/{split}/{name}")
    with pytest.raises(DataError, match=rf"{split}/{name} is called .* Rename '{name}' to 'good'"):
        index_dataset(Location.parse(tmp_path))


def test_the_name_of_good_images_may_be_given(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part", "OK")
    assert counted(tmp_path, good_name="OK") == MVTEC_AD
    assert len(training_uris(Location.parse(tmp_path), "part", "OK")) == 3
    write(tmp_path, "part/test/good/0.png")
    with pytest.raises(DataError, match=r"test/good is called .* those lie in 'OK'"):
        index_dataset(Location.parse(tmp_path), good_name="OK")


def test_the_command_line_says_what_to_do_and_takes_the_name(
    tmp_path: Path, program: Callable[..., Ended]
) -> None:
    write_mvtec_ad(tmp_path / "data/part", "ok")
    command = ["diagnose", "--data", tmp_path / "data", "--category", "part"]
    command += ["--models", tmp_path / "models", "--out", tmp_path / "out"]
    refused = program(*command)
    assert refused.code == 2
    assert "Rename 'ok' to 'good', or give --good-name ok" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert "no published model for 'part'" in program(*command, "--good-name", "ok").err


def test_an_image_in_no_folder_of_a_type_is_refused(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part")
    write(tmp_path, "part/overview.png", "part/drafts/0.png", "part/ground_truth/0.png")
    assert counted(tmp_path) == MVTEC_AD, "what lies elsewhere is nobody's"
    write(tmp_path, "part/test/7.png")
    with pytest.raises(DataError, match=r"test/7\.png lies in no folder of a type"):
        index_dataset(Location.parse(tmp_path))


def test_btad_is_read_as_published(tmp_path: Path) -> None:
    for name in ("train/ok/0.bmp", "train/ok/1.bmp", "test/ok/0.bmp", "test/ko/0.bmp"):
        write(tmp_path / "01", name)
    write_mask(tmp_path / "01/ground_truth/ko/0.png", 1)
    assert counted(tmp_path) == {
        ("train", "good", 0): 2,
        ("test", "good", 0): 1,
        ("test", "ko", 1): 1,
    }
    rows = index_dataset(Location.parse(tmp_path)).to_pylist()
    assert [row["mask_uris"] for row in rows if row["label"]] == [
        [str(tmp_path / "01/ground_truth/ko/0.png")]
    ]
    write(tmp_path, "01/test/scratch/0.bmp")  # no longer the whole of BTAD
    with pytest.raises(DataError, match="/ok is called like good images"):
        index_dataset(Location.parse(tmp_path))


def test_of_mvtec_loco_all_masks_of_an_image_count(tmp_path: Path) -> None:
    place = tmp_path / "juice"
    write(place, "train/good/000.png", "train/good/001.png", "validation/good/000.png")
    write(place, "test/good/000.png", "test/structural_anomalies/000.png")
    write(place, *(f"test/logical_anomalies/{n:03}.png" for n in range(2)))
    write_mask(place / "ground_truth/structural_anomalies/000/000.png", 5)
    write_mask(place / "ground_truth/logical_anomalies/000/000.png", 1)
    write_mask(place / "ground_truth/logical_anomalies/001/000.png", 2)
    write_mask(place / "ground_truth/logical_anomalies/001/001.png", 4)
    assert counted(tmp_path) == {
        ("train", "good", 0): 2,
        ("test", "good", 0): 1,
        ("test", "logical_anomalies", 1): 2,
        ("test", "structural_anomalies", 1): 1,
    }
    rows = index_dataset(Location.parse(tmp_path)).to_pylist()
    masks = [read_masks(row["mask_uris"]) for row in rows if row["label"]]
    columns = [np.flatnonzero(mask.all(axis=0)).tolist() for mask in masks]
    assert columns == [[1], [2, 4], [5]]
    assert [len(row["mask_uris"]) for row in rows if row["label"]] == [1, 2, 1]
    write_mask(place / "ground_truth/logical_anomalies/001/001.png", 4, (5, 6))
    with pytest.raises(ImageError, match="differ in size") as refusal:
        read_masks(rows[4]["mask_uris"])
    assert refusal.value.code == "sizes_differ"


VISA_SPLIT = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,train,normal,candle/Data/Images/Normal/0001.JPG,
candle,test,normal,candle/Data/Images/Normal/0002.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
fryum,train,normal,fryum/Data/Images/Normal/0000.JPG,
"""


def write_visa(root: Path) -> None:
    write(root / "candle/Data/Images", *(f"Normal/{n:04}.JPG" for n in range(3)), "Anomaly/000.JPG")
    write_mask(root / "candle/Data/Masks/Anomaly/000.png", 3)


def test_visa_is_divided_by_its_split(tmp_path: Path) -> None:
    write_visa(tmp_path)
    assert categories(Location.parse(tmp_path)) == ["candle"]
    with pytest.raises(DataError, match=r"Expected a table .* at .*split_csv/1cls\.csv"):
        index_dataset(Location.parse(tmp_path))
    (tmp_path / "split_csv").mkdir()
    split = tmp_path / "split_csv/1cls.csv"
    split.write_text(VISA_SPLIT)
    assert counted(tmp_path) == {
        ("train", "good", 0): 2,
        ("test", "good", 0): 1,
        ("test", "anomaly", 1): 1,
    }
    rows = index_dataset(Location.parse(tmp_path)).to_pylist()
    assert [row["mask_uris"] for row in rows if row["label"]] == [
        [str(tmp_path / "candle/Data/Masks/Anomaly/000.png")]
    ]
    (tmp_path / "candle/Data/Images/Normal/0001.JPG").unlink()
    with pytest.raises(DataError, match=r"1 images of candle are not there: .*Normal/0001\.JPG"):
        index_dataset(Location.parse(tmp_path))
    for wrong in ("object,image\ncandle,0.JPG\n", VISA_SPLIT.replace("test,", "later,"), "\xff"):
        split.write_bytes(wrong.encode("latin-1"))
        with pytest.raises(DataError, match=r"1cls\.csv: not VisA's split\."):
            index_dataset(Location.parse(tmp_path))


def test_kolektor_sdd_is_recognised_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    write(tmp_path, "kos01/Part0.jpg", "kos01/Part0_label.bmp", "kos01/Part1.jpg")
    with pytest.raises(DataError, match=r"Found kos01/Part0\.jpg, .*KolektorSDD.*which images are"):
        categories(Location.parse(tmp_path))


def test_the_script_that_sorts_kolektor_sdd_does(tmp_path: Path) -> None:
    for part in range(1, 6):
        folder = tmp_path / f"KolektorSDD/kos{part:02}"
        for number in range(2):
            write(folder, f"Part{number}.jpg")
            write_mask(folder / f"Part{number}_label.bmp", 2)
            if number != part % 2:
                Image.fromarray(0 * GREY).save(folder / f"Part{number}_label.bmp")
    page = (Path(__file__).parents[3] / "docs/how-to/data.md").read_text()
    [script] = [
        each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "kos*" in each
    ]
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert counted(tmp_path / "data") == {
        ("train", "good", 0): 3,
        ("test", "good", 0): 2,
        ("test", "defect", 1): 5,
    }
    rows = index_dataset(Location.parse(tmp_path / "data")).to_pylist()
    masks = [read_masks(row["mask_uris"]) for row in rows if row["label"]]
    assert [np.flatnonzero(mask.all(axis=0)).tolist() for mask in masks] == [[2]] * 5


def test_photographs_of_a_phone_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, "part/train/good/0.png")
    for name in ("IMG_1.HEIC", "IMG_2.heif", "IMG_3.avif", "notes.pdf"):
        (tmp_path / "part/train/good" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    uris = training_uris(Location.parse(tmp_path), "part")
    assert [Path(uri).name for uri in uris] == ["0.png", "IMG_1.HEIC", "IMG_2.heif", "IMG_3.avif"]
    assert index_images(Location.parse(tmp_path), "part")["uri"].to_pylist() == uris
    with pytest.raises(ImageError) as refusal:
        read_image(uris[1])
    assert refusal.value.code == "unknown_format"


def test_photographs_alone_are_told_the_command_for_them(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "monday/b.png")
    with pytest.raises(DataError, match=r"ssray train --good FOLDER --name CATEGORY\."):
        categories(Location.parse(tmp_path))


def test_a_category_in_place_of_the_folder_above_is_told(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "part")
    with pytest.raises(
        DataError, match=r"category itself: expected the folder above it, and --cat"
    ):
        categories(Location.parse(tmp_path / "part"))


def test_what_was_found_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    write(tmp_path, "photos/a.png", "photos/b.png")
    with pytest.raises(
        DataError, match=r"no category found\. Found photos/a\.png, photos/b\.png\."
    ):
        categories(Location.parse(tmp_path))
    write(tmp_path, "part/test/bent/0.png")
    with pytest.raises(DataError, match=r"no images in train/good\. Found test/bent/0\.png\."):
        training_uris(Location.parse(tmp_path), "part")


def write_zip(place: Path, folder: Path, rename: Callable[[str], str]) -> None:
    with zipfile.ZipFile(place, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            info = zipfile.ZipInfo()
            info.filename = rename(path.relative_to(folder).as_posix())  # kept as it is
            archive.writestr(info, path.read_bytes())
        archive.writestr("__MACOSX/part/train/good/._0.png", b"\0\5\26\7")
        archive.writestr("readme.txt", "about these images")
        archive.writestr("overview.png", "a picture for people")


@pytest.mark.parametrize(
    "rename",
    [
        lambda path: path,
        lambda path: f"part/{path}",
        lambda path: f"dataset v2/final/{path}",
        lambda path: f"/home/test/Data/{path}",
        lambda path: f"train/{path}",
        lambda path: f"./{path}",
        lambda path: f"../{path}",
        lambda path: "C:\\photos\\" + path.replace("/", "\\"),
        lambda path: path.replace("/", "\\"),
    ],
)
def test_an_archive_may_have_folders_around_those_of_the_layout(
    tmp_path: Path, rename: Callable[[str], str]
) -> None:
    write_mvtec_ad(tmp_path / "in")
    (tmp_path / "root").mkdir()
    write_zip(tmp_path / "root/part.zip", tmp_path / "in", rename)
    assert counted(tmp_path / "root") == MVTEC_AD
    for row in index_dataset(Location.parse(tmp_path / "root")).to_pylist():
        if row["mask_uris"]:
            assert read_masks(row["mask_uris"]).shape == GREY.shape


def test_photographs_in_an_archive_are_taken_as_those_in_a_folder(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "in")
    write_zip(tmp_path / "all photos.zip", tmp_path / "in", lambda path: path)
    place = tmp_path / "all photos.zip"
    table = index_images(Location.parse(place), "part")
    names = ["overview.png", "test/good/0.png", "test/spot/0.png", "test/spot/1.png"]
    names += [f"train/good/{number}.png" for number in range(3)]
    assert table["uri"].to_pylist() == [f"{place}#{name}" for name in names]
    assert read_image(table["uri"][1].as_py()).shape == (*GREY.shape, 3)
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing to see")
    with pytest.raises(DataError, match=r"1 files, none with an image's ext.*Found readme\.txt"):
        index_images(Location.parse(tmp_path / "notes.zip"), "part")


def test_an_archive_of_several_categories_is_told_by_what_it_has(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("bolt/train/good/0.png", "nut/train/good/0.png"):
            archive.writestr(name, buffer.getvalue())
    with pytest.raises(
        DataError, match=r"Found bolt/train/good/0\.png.*\. Unpack an archive of several categories"
    ):
        training_uris(Location.parse(tmp_path), "all")
