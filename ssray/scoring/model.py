"""A trained model in the hands of a Python program: photographs in, verdicts out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ssray.config import Backend, Decoding, Device, Precision, Recipe
from ssray.data.decode import UInt8Image, to_rgb
from ssray.errors import ImageError
from ssray.models.device import resolve_device
from ssray.models.store import published_version
from ssray.scoring.judge import SCORE_BATCH, Judge, Judged, Prepared, prepare, prepare_pixels
from ssray.scoring.verdict import Verdict
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

Photograph = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path or URI, the bytes of a file, a PIL image, or (H, W, 3) uint8 in red, green, blue."""


class Model:
    """The model of one category, loaded to judge photographs.

    Not safe for several threads at once.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._fetch = Fetcher()

    @classmethod
    def load(
        cls,
        store: str | Path,
        category: str,
        version: str | None = None,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        backend: Backend = "auto",
    ) -> Self:
        """Loads a model; see ``ssray.load``."""
        place = Location.parse(store)
        version = version or published_version(place, category)
        return cls(Judge.load(place, category, version, resolve_device(device), precision, backend))

    def __repr__(self) -> str:
        """Names the model and its version."""
        return f"<ssray model of {self.category}, version {self.version}>"

    @property
    def category(self) -> str:
        """The name of the category whose parts it knows."""
        return self._judge.artifact.category

    @property
    def version(self) -> str:
        """The name of its version in the store."""
        return self._judge.artifact.version

    @property
    def recipe(self) -> Recipe:
        """What it was trained with."""
        return self._judge.artifact.recipe

    @property
    def threshold(self) -> float:
        """A photograph with a score above it is flagged."""
        return self._judge.artifact.calibration.image_threshold

    @property
    def false_alarm_rate(self) -> float:
        """The share of defect-free parts that are flagged at most, as far as they are like those
        the model was calibrated on; from 0 to 1.
        """
        return self._judge.artifact.calibration.supported_rate

    def judge(self, image: Photograph) -> Verdict:
        """Judges one photograph.

        Args:
            image: a path or URI, the bytes of a file, a PIL image, or (H, W, 3) uint8 in red,
                green, blue. A PIL image is turned upright by its EXIF orientation; of colours of
                16 bits Pillow keeps 8, so give their path or bytes.

        Raises:
            ImageError: if it can't be used; its ``code`` is a short reason such as ``truncated``.
        """
        [result] = self.judge_many([image])
        if isinstance(result, ImageError):
            raise result
        return result

    def judge_many(self, images: Iterable[Photograph]) -> Iterator[Verdict | ImageError]:
        """Judges any number of photographs, a batch at a time.

        Args:
            images: as for ``judge``; an iterator is read 16 photographs ahead.

        Yields:
            For each photograph, in order, its verdict, or the error that ``judge`` would raise: one
            damaged file does not end the work on the others.
        """
        pending = iter(images)
        while batch := list(itertools.islice(pending, SCORE_BATCH)):
            prepared, sources = zip(*map(self._prepare, batch), strict=True)
            for judged, source, image in zip(self._judge(prepared), sources, batch, strict=True):
                yield _result(judged, source, image)

    def _prepare(self, image: Photograph) -> tuple[Prepared, bytes | UInt8Image]:
        """The photograph at the network's size, and what its heatmap is drawn over."""
        framing = self._judge.artifact.framing
        if isinstance(image, str | Path | bytes):
            content = b""

            def read() -> bytes:
                nonlocal content
                if not isinstance(image, bytes) and Path(image).is_dir():
                    raise ImageError("not_a_file", f"{image}: a folder; expected one image")
                content = image if isinstance(image, bytes) else self._fetch(str(image))
                return content

            return prepare(read, framing), content
        try:
            pixels = _pixels(image, framing.decoding)
        except ImageError as error:
            return Prepared.unusable(error.code, str(error)), b""
        return prepare_pixels(pixels, framing), pixels


def _pixels(image: Image.Image | npt.NDArray[np.uint8], decoding: Decoding | None) -> UInt8Image:
    """The pixels of an image or an array, (H, W, 3) uint8; refuses what is none."""
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image) if decoding else image, decoding)
    if not isinstance(image, np.ndarray):
        raise ImageError(
            "unsupported_type",
            f"found a {type(image).__name__}; expected a path or URI, bytes of a file, a PIL image "
            "or an array",
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(
            "unsupported_array",
            f"found an array of {image.dtype} and shape {image.shape}; expected uint8 of shape "
            "(H, W, 3) in red, green, blue",
        )
    return image


def _result(judged: Judged, source: bytes | UInt8Image, image: Photograph) -> Verdict | ImageError:
    """The verdict, or the error that names the photograph where it has a name."""
    if judged.verdict:
        return dataclasses.replace(judged.verdict, source=source)
    code, detail = judged.error or ("unreadable", "")
    if isinstance(image, str | Path) and str(image) not in detail:
        detail = f"{image}: {detail}"
    return ImageError(code, detail)
