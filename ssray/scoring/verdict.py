"""What a model says of one image."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ssray.config import Decoding, Experts
from ssray.data.decode import AS_PHOTOGRAPHED, UInt8Image, resize
from ssray.data.large import decode_resized
from ssray.scoring.heatmap import encode_levels, overlay, pictured_shape

Decision = Literal["passed", "flagged"]
Box = tuple[int, int, int, int]
"""Left, top, width and height, in pixels of the image as it was photographed."""

MAX_BOXES = 16


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a model says of one image.

    Attributes:
        score: the image score; larger is more anomalous.
        p_value: how usual such a score is among defect-free images, from 0 (never seen) to 1.
        flagged: whether the p-value is at most the false-alarm rate that the model promises.
        anomaly_map: (h, w) float32 at the network's resolution, non-negative; 1 is what a
            defect-free image typically reaches at its worst place.
        pixel_threshold: a pixel whose value in the anomaly map is above it belongs to a defect.
        shape: rows and columns of the image as it was photographed.
        seen_by: which expert finds a flagged image unusual, ``joined`` where both do, or neither by
            itself; None for an image that passed.
        by_expert: the score of each expert of the model, on scales that are alike.
        source: the image's file, or its (H, W, 3) uint8 pixels, where they were kept for
            ``heatmap``.
        decoding: how the model had the file decoded, so that the heatmap is drawn over what it saw.
    """

    score: float
    p_value: float
    flagged: bool
    anomaly_map: npt.NDArray[np.float32] = field(repr=False)
    pixel_threshold: float
    shape: tuple[int, int]
    seen_by: Experts | None = None
    by_expert: Mapping[Experts, float] = field(default_factory=dict)
    source: bytes | UInt8Image | None = field(default=None, repr=False)
    decoding: Decoding | None = field(default=AS_PHOTOGRAPHED, repr=False)

    @property
    def decision(self) -> Decision:
        """``flagged`` or ``passed``."""
        return "flagged" if self.flagged else "passed"

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(h, w) bool: where the anomaly map is above the pixel threshold."""
        above: npt.NDArray[np.bool_] = self.anomaly_map > np.float32(self.pixel_threshold)
        return above

    @property
    def defect_share(self) -> float:
        """The share of the image that is above the pixel threshold, from 0 to 1."""
        return float(self.mask.mean())

    @functools.cached_property
    def levels(self) -> UInt8Image:
        """The anomaly map in 8 bits, (h, w) uint8, as ``ssray.scoring.heatmap`` defines them."""
        return encode_levels(self.anomaly_map, self.pixel_threshold)

    @functools.cached_property
    def boxes(self) -> list[Box]:
        """A box around each 8-connected region above the pixel threshold, the largest region first.

        At most 16; further regions have none.
        """
        labels, count = ndimage.label(self.mask, np.ones((3, 3)))
        if not count:
            return []
        areas = np.bincount(labels.ravel())[1:]
        places = ndimage.find_objects(labels)
        rows, columns = (own / seen for own, seen in zip(self.shape, labels.shape, strict=True))
        boxes = []
        for number in np.argsort(-areas, kind="stable")[:MAX_BOXES]:
            down, across = places[number]
            top, left = int(down.start * rows), int(across.start * columns)
            bottom, right = round(down.stop * rows), round(across.stop * columns)
            boxes.append((left, top, right - left, bottom - top))
        return boxes

    def heatmap(self) -> Image.Image:
        """The photograph under heat colours, with an outline around what is above the threshold.

        It lies as the model saw it: for models of formats 2 to 10, as it is stored. Photographs of
        more than 4,096 pixels a side are drawn smaller.

        Raises:
            ValueError: if the photograph was not kept, as in the rows of a night.
        """
        if self.source is None:
            raise ValueError("the verdict has no photograph to draw its heatmap over")
        shape = pictured_shape(self.shape)
        if isinstance(self.source, bytes):
            photograph = decode_resized(self.source, shape, self.decoding).image
        else:
            photograph = resize(self.source, shape)
        return Image.fromarray(overlay(photograph, self.levels))
