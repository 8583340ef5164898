"""Loads many images into one array, all decoded and resized to the same shape."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssray.config import Alignment, Decoding, Light
from ssray.data.decode import (
    AS_PHOTOGRAPHED,
    UInt8Image,
    bits_in_use,
    fetched,
    network_shape,
    read_image,
)
from ssray.data.headers import FORMATS
from ssray.data.large import decode_framed, shape_of
from ssray.data.orientation import Shape
from ssray.data.pose import Framing
from ssray.errors import DataError, ImageError

SHAPE_SAMPLE = 33
"""How many images are looked at to decide to which shape all are resized."""
_EXPECTED = {
    "constant": "images of some content",
    "shape": "images of about one aspect, not much smaller than the recipe's image_size",
}
"""Of images that can't be used, by the one reason that there is."""
LOOKED_AT = 64
"""How many training images are looked at before anything else."""


@dataclass(frozen=True)
class LoadedImages:
    """Images of one shape, and a list of those that could not be used.

    Attributes:
        images: (N, H, W, 3) uint8, in the order of the URIs.
        skipped: the URI and reason code of each image that could not be used.
    """

    images: npt.NDArray[np.uint8]
    skipped: list[tuple[str, str]]


def load_images(
    uris: Iterable[str],
    framing: Framing,
    threads: int,
    *,
    middle: bool = False,
    on_decoded: Callable[[int, int], None] = lambda done, count: None,
) -> LoadedImages:
    """Decodes images in parallel and brings them to one shape.

    Args:
        uris: where the images are.
        framing: makes a network's input of each.
        threads: how many images to decode at once.
        middle: whether to cut out the middle square of each image first.
        on_decoded: called after each image with the number done, and the number of all.

    Raises:
        DataError: if no image can be used.
    """
    uris = list(uris)
    images = np.empty((len(uris), *framing.shape, 3), np.uint8)

    def load(uri: str) -> UInt8Image:
        return framing(_middle(read_image(uri)))[0] if middle else load_image(uri, framing)

    def reason_against(number: int) -> str | None:
        try:
            images[number] = load(uris[number])
        except ImageError as error:
            return error.code
        return None

    reasons: list[str | None] = []
    with ThreadPoolExecutor(threads) as pool:
        for reason in pool.map(reason_against, range(len(uris))):
            reasons.append(reason)
            on_decoded(len(reasons), len(uris))
    skipped = [(uri, reason) for uri, reason in zip(uris, reasons, strict=True) if reason]
    if len(skipped) == len(uris):
        raise _nothing_usable([code for _, code in skipped], len(uris))
    if skipped:
        images = images[[reason is None for reason in reasons]]
    return LoadedImages(images, skipped)


def load_image(uri: str, framing: Framing) -> UInt8Image:
    """Decodes an image to train on, or to calibrate by, and brings it to a network's size.

    Returns:
        (*framing.shape, 3) uint8.

    Raises:
        ImageError: as ``ssray.data.large.decode_framed``, or with code ``unreadable``, or
            ``constant`` if all pixels are alike: nothing can be learned from it.
    """
    decoded = decode_framed(fetched(uri), framing)
    if "constant" in decoded.notes:
        raise ImageError("constant", "all pixels are alike")
    return decoded.image


@dataclass(frozen=True)
class FirstLook:
    """What the files of some training images say.

    Attributes:
        bits: those in use of images of more than 8 bits; None if none of those looked at is one.
        shapes: rows and columns of each image, upright.
    """

    bits: int | None
    shapes: list[Shape]

    @classmethod
    def at(cls, uris: Sequence[str], threads: int) -> FirstLook:
        """Looks at ``LOOKED_AT`` of the images, spread evenly over all; damaged ones say nothing.

        Args:
            uris: where the images are.
            threads: how many to read at once.
        """

        def look(uri: str) -> tuple[int | None, Shape] | None:
            bits = None
            try:
                content = fetched(uri)
                shape = shape_of(content)
            except ImageError:
                return None
            with contextlib.suppress(ImageError):
                bits = bits_in_use(content)
            return bits, shape

        with ThreadPoolExecutor(threads) as pool:
            found = [each for each in pool.map(look, spread(uris, LOOKED_AT)) if each]
        bits = max((bits for bits, _ in found if bits), default=None)
        return cls(bits, [shape for _, shape in found])

    def too_different(self, side: int) -> str | None:
        """Says how many images one model can't take with the others, because of their shape.

        Args:
            side: of a square with as many pixels as the network's input.

        Returns:
            A line for people; None if the model takes all that were looked at.
        """
        if not self.shapes:
            return None
        [(seen, _)] = Counter(network_shape(*each, side) for each in self.shapes).most_common(1)
        left_out = [shape for shape in self.shapes if not _fits(shape, Framing(seen))]
        if not left_out:
            return None
        taken = Counter(shape for shape in self.shapes if _fits(shape, Framing(seen)))
        (rows, columns), (usual_rows, usual_columns) = (
            Counter(shapes).most_common(1)[0][0] for shapes in (left_out, taken)
        )
        return (
            f"Warning: {len(left_out)} of {len(self.shapes)} training images looked at, such as "
            f"those of {columns} x {rows} px, differ too much in shape from most, of "
            f"{usual_columns} x {usual_rows} px: they are left out, and so are such photographs "
            "when they are scored (reason 'shape'). One model sees one position of the camera: "
            "give them a category of their own, or crop or turn all photographs alike."
        )


def _fits(shape: Shape, framing: Framing) -> bool:
    """Whether a network can see photographs of so many rows and columns whole."""
    try:
        framing.stretch(shape)
    except ImageError:
        return False
    return True


def common_framing(
    uris: Sequence[str],
    side: int,
    alignment: Alignment | None,
    threads: int,
    light: Light | None = None,
    decoding: Decoding | None = AS_PHOTOGRAPHED,
) -> Framing:
    """The framing that brings images to one shape.

    Args:
        uris: where the images are.
        side: of a square with as many pixels.
        alignment: the frame around a part that is located first; without one the shape is that
            which most images would get by ``network_shape``.
        threads: how many images to look at at once.
        light: what images are brought to.
        decoding: how files become photographs.

    Raises:
        DataError: as ``common_shape``.
    """
    shape = Framing.around(alignment, side).shape if alignment else None
    return Framing(shape or common_shape(uris, side, threads, decoding), alignment, light, decoding)


def common_shape(
    uris: Sequence[str],
    side: int,
    threads: int,
    decoding: Decoding | None = AS_PHOTOGRAPHED,
) -> Shape:
    """Returns the rows and columns that most images would be resized to by ``network_shape``.

    Of many images only ``SHAPE_SAMPLE`` are looked at, spread evenly over all.

    Raises:
        DataError: if none of these can be used.
    """

    def shape_or_reason(uri: str) -> Shape | str:
        try:
            return network_shape(*shape_of(fetched(uri), decoding), side)
        except ImageError as error:
            return error.code

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(shape_or_reason, spread(uris, SHAPE_SAMPLE)))
    shapes = Counter(shape for shape in found if not isinstance(shape, str))
    if not shapes:
        raise _nothing_usable([code for code in found if isinstance(code, str)], len(uris))
    [(shape, _)] = shapes.most_common(1)
    return shape


def spread(uris: Sequence[str], most: int) -> list[str]:
    """Returns at most ``most`` of the URIs, evenly spread from the first to the last.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    chosen = np.linspace(0, len(uris) - 1, min(most, len(uris))).round().astype(int)
    return [uris[i] for i in chosen]


def _nothing_usable(codes: Sequence[str], count: int) -> DataError:
    looked_at = "" if len(codes) == count else f" (of {len(codes)} looked at)"
    reasons = Counter(codes)
    expected = _EXPECTED.get(codes[0], ", ".join(FORMATS)) if len(reasons) == 1 else "others"
    return DataError(
        f"none of {count} images can be used{looked_at}: {dict(reasons)}. Expected {expected}."
    )


def _middle(image: UInt8Image) -> UInt8Image:
    """Cuts out the largest square in the middle of an image."""
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])
