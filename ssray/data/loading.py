"""A category's images, decoded and resized into one array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssray.data.decode import UInt8Image, network_shape, read_image, read_image_shape, resize
from ssray.errors import DataError, ImageError

SHAPE_SAMPLE = 33
"""Images whose sizes decide the shape of all."""


@dataclass(frozen=True)
class LoadedImages:
    """Images of one shape, and those that could not be used.

    Attributes:
        images: (N, H, W, 3) uint8.
        skipped: (uri, reason code) of each refused image.
    """

    images: npt.NDArray[np.uint8]
    skipped: list[tuple[str, str]]


def load_images(
    uris: Iterable[str],
    longer_side: int,
    threads: int,
    *,
    square: bool = False,
    shape: tuple[int, int] | None = None,
    on_decoded: Callable[[int, int], None] = lambda done, count: None,
) -> LoadedImages:
    """Decodes images in parallel and resizes them to the shape most of them call for.

    Args:
        uris: where they are.
        longer_side: of the resized images, pixels; the aspect ratio of the majority is kept.
        threads: how many to decode at once.
        square: take the middle square of each image.
        shape: rows and columns, if they are known.
        on_decoded: called after each image with how many are done, and how many there are.

    Raises:
        DataError: if no image can be used.
    """
    uris = list(uris)
    if square:
        shape = (longer_side, longer_side)
    shape = shape or common_shape(uris, longer_side, threads)
    images = np.empty((len(uris), *shape, 3), np.uint8)

    def load(number: int) -> str | None:
        try:
            image = read_image(uris[number])
        except ImageError as error:
            return error.code
        images[number] = resize(_middle(image) if square else image, shape)
        return None

    reasons: list[str | None] = []
    with ThreadPoolExecutor(threads) as pool:
        for reason in pool.map(load, range(len(uris))):
            reasons.append(reason)
            on_decoded(len(reasons), len(uris))
    skipped = [(uri, reason) for uri, reason in zip(uris, reasons, strict=True) if reason]
    if len(skipped) == len(uris):
        raise _nothing_usable([code for _, code in skipped], len(uris))
    if skipped:
        images = images[[reason is None for reason in reasons]]
    return LoadedImages(images, skipped)


def common_shape(uris: Sequence[str], longer_side: int, threads: int) -> tuple[int, int]:
    """The shape that most of the images call for, of 33 that are spread over them.

    Raises:
        DataError: if none of these is an image.
    """

    def shape_of(uri: str) -> tuple[int, int] | str:
        try:
            return network_shape(*read_image_shape(uri), longer_side)
        except ImageError as error:
            return error.code

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(shape_of, spread(uris, SHAPE_SAMPLE)))
    shapes = Counter(shape for shape in found if not isinstance(shape, str))
    if not shapes:
        raise _nothing_usable([code for code in found if isinstance(code, str)], len(uris))
    [(shape, _)] = shapes.most_common(1)
    return shape


def spread(uris: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of them, evenly spread from the first to the last.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    chosen = np.linspace(0, len(uris) - 1, min(most, len(uris))).round().astype(int)
    return [uris[i] for i in chosen]


def _nothing_usable(codes: Sequence[str], count: int) -> DataError:
    looked_at = "" if len(codes) == count else f" (of {len(codes)} looked at)"
    return DataError(f"none of {count} images can be used{looked_at}: {dict(Counter(codes))}.")


def _middle(image: UInt8Image) -> UInt8Image:
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])
