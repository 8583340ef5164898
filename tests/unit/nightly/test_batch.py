"""A batch of a night: rows, reasons and heatmaps, without Ray."""

from __future__ import annotations

import dataclasses
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.config import Compute, Heatmaps, Recipe
from ssray.data.decode import decode_image, resize
from ssray.data.large import decode_framed
from ssray.data.pose import Framing
from ssray.errors import ImageError
from ssray.models import artifact
from ssray.models.artifact import ModelArtifact
from ssray.nightly import batch, preparing
from ssray.nightly.batch import BatchResult, BatchScorer
from ssray.nightly.quarantine import MOST_DEATHS, STRIKES, quarantined
from ssray.nightly.sources import Source
from ssray.scoring import judge
from ssray.scoring.heatmap import png_to_levels, predicted_mask
from ssray.scoring.scorer import Scorer
from ssray.storage import archives, fetch
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, build_model
from tests.helpers import breaking_off

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(demo_root: Path, tiny: Recipe) -> ModelArtifact:
    uris = sorted(str(path) for path in (demo_root / "weave/train/good").iterdir())
    model = build_model(
        BuildRequest(uris, "weave", "v1", tiny, Compute(precision="float32")), CPU, threads=1
    )
    assert model is not None
    return model


@pytest.fixture
def store(model: ModelArtifact, tmp_path: Path) -> Location:
    place = Location.parse(tmp_path / "models")
    artifact.save(model, place)
    return place


@pytest.fixture
def images(demo_root: Path) -> list[Path]:
    return sorted((demo_root / "weave/test").rglob("*.png"))


def scored(store: Location, sources: list[Source], heatmaps: Heatmaps = "flagged") -> BatchResult:
    scorer = BatchScorer(
        store, {"weave": "v1"}, CPU, "float32", "torch", readers=2, heatmaps=heatmaps
    )
    return scorer(sources)


def sources_of(images: list[Path]) -> list[Source]:
    return [Source(str(path), "weave", path.stat().st_size) for path in images]


def test_rows_are_what_the_scorer_says(
    store: Location, model: ModelArtifact, images: list[Path]
) -> None:
    result = scored(store, sources_of(images), "all")
    scorer = Scorer(model, CPU, torch.float32)
    calibration = model.calibration
    assert result.rows["uri"].to_pylist() == [str(path) for path in images]
    for path, row in zip(images, result.rows.to_pylist(), strict=True):
        image = decode_image(path.read_bytes())
        own = scorer(resize(image, model.input_shape)[np.newaxis])
        assert row["score"] == pytest.approx(float(own.scores[0]), rel=1e-4)
        assert row["flagged"] == (row["score"] > calibration.image_threshold)
        assert (row["height"], row["width"]) == image.shape[:2]
        mask = predicted_mask(png_to_levels(row["heatmap"]))
        assert row["defect_share"] == pytest.approx(mask.mean())
        assert row["pixel_threshold"] == pytest.approx(calibration.pixel_threshold)
        assert bool(row["boxes"]) == bool(mask.any())
    assert set(result.spent.seconds) == {"fetch", "decode", "model", "pack", "write"}


def test_heatmaps_are_kept_of_the_images_asked_for(store: Location, images: list[Path]) -> None:
    for wanted in ("flagged", "all", "none"):
        rows = scored(store, sources_of(images), wanted).rows.to_pylist()
        for row in rows:
            expected = wanted == "all" or (wanted == "flagged" and row["flagged"])
            assert (row["heatmap"] is not None) == expected


def png(mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def huge() -> bytes:
    """A PNG of 40,000 x 40,000 pixels, of which there is only the header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check + png("L")[33:]


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), level) for level in (0, 90, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


PECULIAR = {
    "truncated.png": (png("RGB")[:-40], "truncated", None),
    "empty.png": (b"", "empty", None),
    "text.png": (b"not an image at all", "unknown_format", None),
    "huge.png": (huge(), "too_large", None),
    "inks.jpg": (cmyk(), None, "cmyk, constant"),
    "deep.png": (png("I;16"), None, "16_bit, constant"),
    "moving.gif": (animated(), None, "animated, constant"),
}


def test_what_is_peculiar_keeps_its_row_and_names_the_reason(
    store: Location, images: list[Path], tmp_path: Path
) -> None:
    sources = sources_of(images[:1])
    expected: list[tuple[str | None, str | None]] = [(None, None)]
    for name, (content, error, note) in PECULIAR.items():
        (tmp_path / name).write_bytes(content)
        sources.append(Source(str(tmp_path / name), "weave", len(content)))
        expected.append((error, note))
    sources.append(Source(str(tmp_path / "gone.png"), "weave"))
    sources.append(Source(str(tmp_path / "a.tar"), "weave", error="bad_archive"))
    expected += [("missing", None), ("bad_archive", None)]
    sources += sources_of(images[1:2])
    expected += [(None, None)]
    rows = scored(store, sources).rows.to_pylist()
    assert [(row["error"], row["note"]) for row in rows] == expected
    for row in rows:
        assert (row["score"] is None) == (row["error"] is not None)
        assert (row["detail"] is None) == (row["error"] is None)
        assert row["model_version"] == "v1"


def test_a_category_without_a_model_is_not_fetched(store: Location) -> None:
    rows = scored(store, [Source("/nowhere/0.png", "bolt")]).rows.to_pylist()
    assert rows[0]["error"] == "unknown_category"
    assert "no model for 'bolt'" in rows[0]["detail"]
    assert rows[0]["model_version"] is None


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_archives(
    store: Location, images: list[Path], tmp_path: Path, suffix: str
) -> None:
    """Compressed ones are read from their beginning, with empty and missing members."""
    place = tmp_path / f"weave{suffix}"
    with tarfile.open(place, "w:gz" if suffix == ".tar.gz" else "w") as tar:
        for path in images:
            tar.add(path, f"{path.parent.name}/{path.name}")
        tar.addfile(tarfile.TarInfo("nothing.png"))
    names = [f"{path.parent.name}/{path.name}" for path in images] + ["nothing.png"]
    offsets = {}
    if suffix == ".tar":
        with tarfile.open(place) as tar:
            offsets = {info.name: (info.size, info.offset_data) for info in tar}
    sources = [Source(f"{place}#{name}", "weave", *offsets.get(name, ())) for name in names]
    sources.append(Source(f"{place}#gone.png", "weave"))
    rows = {row["uri"]: row for row in scored(store, sources).rows.to_pylist()}
    plain = scored(store, sources_of(images)).rows.to_pylist()
    assert len(rows) == len(sources)
    for path, row in zip(images, plain, strict=True):
        own = rows[f"{place}#{path.parent.name}/{path.name}"]
        assert own["score"] == pytest.approx(row["score"], rel=1e-4)
    assert rows[f"{place}#nothing.png"]["error"] == "empty"
    assert rows[f"{place}#gone.png"]["error"] == "missing"


def test_a_compressed_tar_that_breaks_off_is_read_again(
    store: Location, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "weave.tgz"
    with tarfile.open(place, "w:gz") as tar:
        for number, path in enumerate(images):
            tar.add(path, f"{number}.png")
    sources = [Source(f"{place}#{number}.png", "weave") for number in range(len(images))]
    expected = scored(store, sources).rows
    failures: list[Exception] = [OSError("reset")]
    breaking = breaking_off(archives.streamed, 2, failures)
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(preparing, "streamed", breaking)
    monkeypatch.setattr(preparing, "MOST_HELD_BYTES", 1)
    result = scored(store, sources)
    assert result.rows == expected
    assert result.retries == 1
    failures[:] = [OSError("reset")] * fetch.ATTEMPTS
    result = scored(store, sources)
    assert result.rows["error"].to_pylist() == [None] * 2
    assert result.postponed == {"unreadable": len(images) - 2}


def test_whatever_a_decoder_raises_is_a_row(
    store: Location, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = decode_framed

    def raising(content: bytes, framing: Framing) -> Any:
        if content == images[1].read_bytes():
            raise ZeroDivisionError("in a decoder")
        return decode(content, framing)

    monkeypatch.setattr(judge, "decode_framed", raising)
    rows = scored(store, sources_of(images)).rows.to_pylist()
    assert [row["error"] for row in rows] == [None, "unreadable", *[None] * (len(images) - 2)]
    assert rows[1]["detail"] == "ZeroDivisionError: in a decoder"


def test_an_image_that_kills_its_process_is_a_row_at_last(
    store: Location, images: list[Path], tmp_path: Path
) -> None:
    """Two of them; in place of the processes, exceptions that nothing catches on the way."""
    sources, killers = sources_of(images), {str(images[1]), str(images[4])}
    notes, scorer = (
        Location.parse(tmp_path / "notes"),
        BatchScorer(store, {"weave": "v1"}, CPU, "float32", "torch", readers=1),
    )

    class Killed(BaseException):
        pass

    def score(batch: Sequence[Source]) -> BatchResult:
        if any(source.uri in killers and not source.error for source in batch):
            raise Killed
        return scorer(batch)

    deaths = 0
    while True:
        try:
            result = BatchResult.joined(quarantined(score, sources, notes))
            break
        except Killed:
            deaths += 1
    assert deaths == MOST_DEATHS + STRIKES * len(killers)
    rows = result.rows.to_pylist()
    assert [row["uri"] for row in rows] == [source.uri for source in sources]
    errors = {row["uri"] for row in rows if row["error"] == "crashed"}
    assert errors == killers
    assert all(row["score"] is not None for row in rows if row["uri"] not in killers)


def test_a_locked_zip_and_a_strange_scheme_are_rows(store: Location, tmp_path: Path) -> None:
    place = tmp_path / "weave.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("0.png", png("RGB"))
    content = bytearray(place.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1  # encrypted
    place.write_bytes(content)
    sources = [Source(f"{place}#0.png", "weave"), Source("ftp://factory/0.png", "weave")]
    rows = scored(store, sources).rows.to_pylist()
    assert [row["error"] for row in rows] == ["bad_archive", "unreadable"]
    assert "password required" in rows[0]["detail"]
    assert "expected a path, or file:// or s3://" in rows[1]["detail"]


def test_members_of_a_tar_are_read_by_their_ranges(tmp_path: Path) -> None:
    """One beyond the end of an archive that was cut since it was listed is an error."""
    place = tmp_path / "weave.tar"
    place.write_bytes(b"0123456789")
    fetcher = Fetcher(attempts=2)
    assert fetcher(f"{place}#0.png", 3, 4) == b"456"
    assert fetcher(f"{place}#empty.png", 0, 4) == b""
    with pytest.raises(ImageError, match="2 of 3 bytes") as raised:
        fetcher(f"{place}#1.png", 3, 8)
    assert raised.value.code == "unreadable"
    assert fetcher.retries == 1


def test_what_fails_on_the_way_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The faults are made here; a network that makes them stands in between in test_nightly."""
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.001)
    answers: list[OSError | bytes] = [
        OSError("SLOW_DOWN (HTTP status 503)"),
        b"cut sh",
        OSError("reset"),
        b"complete",
    ]

    def read(self: Location, attempts: int, most: int, etag: str | None) -> bytes:
        assert attempts == 1
        assert etag is None
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(Location, "read", read)
    fetcher = Fetcher()
    assert fetcher(str(tmp_path / "0.png"), len(b"complete")) == b"complete"
    assert fetcher.retries == 3
    answers[:] = [OSError("reset")] * 3
    with pytest.raises(ImageError, match="not read in 3 attempts") as error:
        Fetcher(attempts=3)(str(tmp_path / "0.png"))
    assert error.value.code == "unreadable"
    answers[:] = [OSError("AWS Error ACCESS_DENIED")]
    with pytest.raises(ImageError) as error:
        Fetcher()(str(tmp_path / "0.png"))
    assert error.value.code == "forbidden"


def test_rows_of_a_model_that_cannot_be_used_name_it(store: Location, images: list[Path]) -> None:
    scorer = BatchScorer(store, {"weave": "v9"}, CPU, "float32", "torch", readers=1)
    [row] = scorer(sources_of(images[:1])).rows.to_pylist()
    assert (row["error"], row["score"], row["model_version"]) == ("model_unusable", None, "v9")
    assert "no complete model" in row["detail"]


def test_what_storage_does_not_give_has_no_row_until_it_is_given_up(
    store: Location, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Location, **options: object) -> bytes:
        raise OSError("reset")

    scorer = BatchScorer(store, {"weave": "v1"}, CPU, "float32", "torch", readers=1)
    scorer(sources_of(images[:1]))  # reads the model
    monkeypatch.setattr(Location, "read", refused)
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.0)
    sources = [*sources_of(images[:2]), Source("ftp://factory/0.png", "weave")]
    result = scorer(sources)
    assert result.postponed == {"unreadable": 2}
    assert result.rows["error"].to_pylist() == ["unreadable"], "no storage has such a place"
    given_up = scorer(sources, give_up=True)
    assert given_up.postponed == {}
    assert given_up.rows["error"].to_pylist() == ["unreadable"] * 3


def test_a_storage_that_is_down_is_not_asked_for_every_image(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def down(self: Location, **options: object) -> bytes:
        asked.append(self)
        raise OSError(answer)

    scorer = BatchScorer(store, {"weave": "v1"}, CPU, "float32", "torch", readers=1)
    scorer([Source("/nowhere", "weave")])  # reads the model
    monkeypatch.setattr(Location, "read", down)
    monkeypatch.setattr("ssray.storage.fetch.time.sleep", lambda seconds: None)
    sources = [Source(f"/images/{number}.png", "weave", 1) for number in range(200)]
    answer = "no route to host"
    assert scorer(sources).postponed == {"unreadable": 200}
    assert preparing.MOST_FAILURES <= len(asked) / fetch.ATTEMPTS <= preparing.MOST_FAILURES + 1
    asked.clear()
    answer = "AWS Error ACCESS_DENIED (HTTP status 403)"
    assert scorer(sources).rows["error"].to_pylist() == ["forbidden"] * 200
    assert len(asked) == 200, "one that is refused says nothing of the next"


def test_an_image_that_takes_more_memory_than_there_is_costs_its_own_row(
    store: Location, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(content: bytes, framing: Framing) -> Any:
        if content == images[0].read_bytes():
            raise MemoryError
        return decode_framed(content, framing)

    monkeypatch.setattr(judge, "decode_framed", decode)
    rows = scored(store, sources_of(images[:3])).rows.to_pylist()
    assert [row["error"] for row in rows] == ["out_of_memory", None, None]


def test_models_that_were_used_last_are_kept(
    model: ModelArtifact, store: Location, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"part-{number}" for number in range(4)]
    for name in names:
        artifact.save(dataclasses.replace(model, category=name), store)
    monkeypatch.setattr(batch, "MOST_MODEL_BYTES", 2 * model.nbytes + 1)
    loaded: list[str] = []
    load = judge.Judge.load

    def noted(place: Location, category: str, *rest: Any) -> judge.Judge:
        loaded.append(category)
        return load(place, category, *rest)

    monkeypatch.setattr(judge.Judge, "load", noted)
    scorer = BatchScorer(store, dict.fromkeys(names, "v1"), CPU, "float32", "torch", readers=1)
    for number in (0, 1, 0, 2, 0, 1, 3):
        source = Source(str(images[0]), names[number])
        assert scorer([source]).rows["error"].to_pylist() == [None]
    assert [int(name[-1]) for name in loaded] == [0, 1, 2, 1, 3]
    monkeypatch.setattr(batch, "MOST_MODEL_BYTES", 0)
    assert scorer([source]).rows["error"].to_pylist() == [None], "one there must be"


def test_an_archive_that_was_refused_or_replaced_while_it_was_listed_is_tried_again(
    store: Location,
) -> None:
    withheld = [
        Source(f"s3://prod/{code}.tar", "weave", error=code) for code in ("refused", "changed")
    ]
    lost = Source("/images/x.png", "weave", error="missing")
    result = scored(store, [*withheld, lost])
    assert result.postponed == {"forbidden": 1, "changed": 1}
    assert result.rows["error"].to_pylist() == ["missing"]
