"""A category's images, decoded and resized into one array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssray.data.decode import UInt8Image, network_shape, read_image, resize
from ssray.errors import DataError, ImageError


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
    uris: Iterable[str], longer_side: int, threads: int, *, square: bool = False
) -> LoadedImages:
    """Decodes images in parallel and resizes them to the shape most of them call for.

    Args:
        uris: where they are.
        longer_side: of the resized images, pixels; the aspect ratio of the majority is kept.
        threads: how many to decode at once.
        square: take the middle square of each image.

    Raises:
        DataError: if no image can be used.
    """

    def load(uri: str) -> tuple[tuple[int, int], UInt8Image] | ImageError:
        try:
            image = read_image(uri)
        except ImageError as error:
            return error
        if square:
            image = _middle(image)
        shape = network_shape(image.shape[0], image.shape[1], longer_side)
        return shape, resize(image, shape)

    uris = list(uris)
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(load, uris))
    usable = [result for result in results if not isinstance(result, ImageError)]
    skipped = [
        (uri, result.code)
        for uri, result in zip(uris, results, strict=True)
        if isinstance(result, ImageError)
    ]
    if not usable:
        reasons = Counter(code for _, code in skipped)
        raise DataError(f"none of {len(uris)} images can be used ({dict(reasons)}).")
    [(shape, _)] = Counter(shape for shape, _ in usable).most_common(1)
    return LoadedImages(np.stack([resize(image, shape) for _, image in usable]), skipped)


def spread(uris: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of them, evenly spread from the first to the last.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    chosen = np.linspace(0, len(uris) - 1, min(most, len(uris))).round().astype(int)
    return [uris[i] for i in chosen]


def _middle(image: UInt8Image) -> UInt8Image:
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])
