"""What a training draws from when its images do not all fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssray.config import Compute, Recipe, override
from ssray.data.decode import UInt8Image, read_image
from ssray.data.pose import Framing
from ssray.data.window import DRAWS, START, ImageWindow
from ssray.errors import ConfigError, DataError, ImageError, TrainingError
from ssray.training.build import BuildRequest, build_model
from ssray.training.checkpoint import Checkpoint
from ssray.training.fit import Checkpointing, fit
from ssray.training.folds import cut_folds
from ssray.training.images import (
    data_fingerprint,
    exceeds_memory,
    load_feed,
    stream_feed,
)
from ssray.training.trainer import Numerics

CPU = torch.device("cpu")
GIB = 1024**3
URIS = [str(number) for number in range(40)]


def numbered(damaged: Sequence[str] = ()) -> Callable[..., Iterator[UInt8Image | None]]:
    """Stands for decoding: an image's pixels are its number."""

    def decode(uris: Sequence[str], framing: Framing) -> Iterator[UInt8Image | None]:
        for uri in uris:
            image = np.full((*framing.shape, 3), int(uri), np.uint8)
            yield None if uri in damaged else image

    return decode


def window(capacity: int, uris: Sequence[str] = URIS, damaged: Sequence[str] = ()) -> ImageWindow:
    return ImageWindow(uris, Framing((2, 2)), numbered(damaged), capacity)


def held(images: ImageWindow) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_the_oldest_image_makes_way_and_all_get_their_turn() -> None:
    moving = window(10)
    moving.advance(0)
    arrived = held(moving)
    assert len(set(arrived)) == 10
    for number in range(10, 200):
        before = held(moving)
        moving.advance(DRAWS * (number - 9))
        slot = number % 10
        arrived.append(held(moving)[slot])
        assert [v for i, v in enumerate(held(moving)) if i != slot] == [
            v for i, v in enumerate(before) if i != slot
        ]
    passes = [arrived[i : i + 40] for i in range(0, 200, 40)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5, "every pass has its own order"


def test_a_large_window_begins_before_it_is_full() -> None:
    uris = [str(number % 256) for number in range(2000)]
    moving = window(START + 100, uris)
    moving.advance(0)
    assert len(moving.images) == START
    moving.advance(DRAWS * 60)
    assert len(moving.images) == START + 60
    moving.advance(DRAWS * 300)
    assert len(moving.images) == START + 100


def test_images_that_come_in_together_are_copied_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To a GPU each copy costs a launch, and from memory that is not its own a wait."""
    sizes: list[int] = []
    take_in = ImageWindow._take_in

    def counted(self: ImageWindow, arrivals: Iterator[UInt8Image], place: int, count: int) -> None:
        sizes.append(count)
        take_in(self, arrivals, place, count)

    monkeypatch.setattr(ImageWindow, "_take_in", counted)
    moving = window(100, [str(number % 256) for number in range(300)])
    moving.to(torch.device("meta"))
    moving.advance(0)
    assert sizes == [64, 36]
    moving.advance(DRAWS * 90)
    assert sizes[2:] == [64, 26]
    moving.advance(DRAWS * 120)
    assert sizes[4:] == [10, 20], "up to the last slot, and on from the first"


@pytest.mark.parametrize("drawn", [0, 7, 39, 40, 41, 1000, 12345])
@pytest.mark.parametrize("damaged", [(), ("3", "17", "30"), URIS[:20]])
def test_any_position_can_be_reached_at_once(drawn: int, damaged: Sequence[str]) -> None:
    stepwise, at_once, back = (window(10, damaged=damaged) for _ in range(3))
    for position in range(drawn + 1):
        stepwise.advance(position)
    at_once.advance(drawn)
    back.advance(99999)
    back.advance(drawn)
    assert held(stepwise) == held(at_once) == held(back)


def test_damaged_images_are_replaced_and_counted() -> None:
    damaged = ["3", "17", "30"]
    moving = window(10, damaged=damaged)
    seen = set()
    for drawn in range(0, 400, DRAWS):
        moving.advance(drawn)
        seen |= set(held(moving))
    assert seen == set(range(40)) - {3, 17, 30}
    assert moving.damaged == set(damaged)


def test_only_damaged_images_are_an_error() -> None:
    with pytest.raises(DataError, match="none of 40 images can be used"):
        window(10, damaged=URIS).advance(0)


@pytest.fixture
def folder(tmp_path: Path) -> list[str]:
    """Sixty images of stripes, one of them damaged."""
    rng = np.random.default_rng(0)
    uris = []
    for number in range(60):
        stripes = 120 + 60 * np.sin(np.arange(64)[None, :, None] / 3 + rng.uniform(0, 6))
        noisy = stripes + rng.normal(0, 5, (64, 64, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
        uris.append(str(tmp_path / f"{number:02}.png"))
    return uris


def decode(uris: Sequence[str], framing: Framing) -> Iterator[UInt8Image | None]:
    for uri in uris:
        try:
            yield framing(read_image(uri))[0]
        except ImageError:
            yield None


def memory_for(images: int, size: int = 64) -> float:
    return images * 3 * size**2 / GIB


def test_a_streamed_training_is_within_its_memory_and_resumes_to_the_same_weights(
    folder: list[str], tiny: Recipe
) -> None:
    recipe = override(tiny, ["schedule.images=120", "schedule.batch=6"])

    def train(resume: Checkpoint | None = None) -> tuple[dict[str, torch.Tensor], list[Checkpoint]]:
        feed = stream_feed(folder, recipe, 1, 0, memory_for(24), decode)
        assert isinstance(feed.training, ImageWindow)
        taken: list[Checkpoint] = []
        fitted = fit(
            feed,
            recipe,
            Numerics(CPU, torch.float32),
            checkpointing=Checkpointing(resume, every_minutes=0, callback=taken.append),
        )
        assert len(feed.training.images) + len(feed.held_out) <= 24
        assert fitted.history[-1].epoch == pytest.approx(120 / 54, rel=0.05)
        return fitted.model.state_dict(), taken

    weights, checkpoints = train()
    middle = checkpoints[len(checkpoints) * 2 // 3]
    assert 0.5 < middle.facts["budget_spent"] < 0.8
    resumed, _ = train(resume=Checkpoint.from_bytes(middle.to_bytes()))
    for name, weight in weights.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_model_of_streamed_images_is_complete(folder: list[str], tiny: Recipe) -> None:
    Path(folder[7]).write_bytes(b"not an image")
    recipe = override(tiny, ["schedule.images=240", "schedule.batch=6"])
    compute = Compute(memory_gib=memory_for(24))
    built = build_model(
        BuildRequest(folder, "s", "v1", recipe, compute), CPU, threads=1, decode=decode
    )
    assert built is not None
    assert built.facts.training_images + built.facts.held_out_images == 59
    assert built.facts.held_out_images == 6
    assert built.facts.skipped_images == 1
    assert len(built.calibration.image_scores) == 6


def test_too_little_memory_is_refused_with_what_is_needed(folder: list[str], tiny: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"64 x 64 pixels need at least 0\.00025 GiB"):
        stream_feed(folder, tiny, 1, 0, memory_for(12), decode)
    assert exceeds_memory(folder, tiny, memory_for(59), threads=1)
    assert not exceeds_memory(folder, tiny, memory_for(60), threads=1)


def test_folds_need_all_images(folder: list[str], tiny: Recipe) -> None:
    feed = stream_feed(folder, tiny, 1, 0, memory_for(24), decode)
    with pytest.raises(TrainingError, match="calibration folds need all images in memory"):
        cut_folds(feed, 2)


def test_decoding_tells_how_far_it_is(folder: list[str], tiny: Recipe) -> None:
    told: list[tuple[int, int]] = []
    load_feed(folder, tiny, 2, 0, lambda done, count: told.append((done, count)))
    assert told == [(done, 60) for done in range(1, 61)]


def test_the_same_images_are_held_out_whatever_the_memory(folder: list[str], tiny: Recipe) -> None:
    """A training that goes on with more memory must not be judged on what it was trained on."""
    for damaged in (None, 7, 30):
        if damaged:
            Path(folder[damaged]).write_bytes(b"not an image")
        whole = load_feed(folder, tiny, 1, 0)
        streamed = stream_feed(folder, tiny, 1, 0, memory_for(24), decode)
        assert torch.equal(whole.held_out, streamed.held_out)
        assert whole.counted() == (60 - 6 - whole.skipped, whole.skipped)


def test_a_changed_image_or_texture_makes_it_another_training(
    folder: list[str], tiny: Recipe
) -> None:
    images, textures = folder[:4], folder[4:6]
    foreign = Path(images[0]).parent / "textures"
    foreign.mkdir()
    for number, texture in enumerate(textures):
        (foreign / f"{number}.png").write_bytes(Path(texture).read_bytes())
    settings = ['corruption.foreign=["textures"]', f"corruption.textures={foreign}"]
    recipe = override(tiny, settings)
    before = data_fingerprint(images, recipe)
    assert before == data_fingerprint(images, recipe) != data_fingerprint(images, tiny)
    (foreign / "0.png").write_bytes(Path(images[0]).read_bytes())
    changed = data_fingerprint(images, recipe)
    assert changed != before
    Path(images[1]).write_bytes(Path(images[0]).read_bytes())
    assert data_fingerprint(images, recipe) not in (before, changed)
