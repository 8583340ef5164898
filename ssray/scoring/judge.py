"""The way of every image that is scored: prepare, judge, row.

Evaluation, scoring, nights and the Python API all go it. They differ in where the bytes come from,
in how images travel between processes, and in which columns of a row they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ssray.config import Backend, Precision
from ssray.data.decode import UInt8Image, resize
from ssray.data.large import decode_resized
from ssray.errors import ImageError
from ssray.models.artifact import ModelArtifact, load
from ssray.scoring.scorer import Scorer
from ssray.scoring.verdict import Verdict
from ssray.storage.location import Location

SCORE_BATCH = 16
"""Images in one call of a model."""


@dataclass(frozen=True)
class Prepared:
    """An image at the size of a model's network, or the reason why there is none.

    Attributes:
        image: (h, w, 3) uint8; None where it can't be used.
        shape: rows and columns of the image as it was photographed; None where that is not known.
        error: the reason code of an image that can't be used.
        detail: the reason in words.
        note: what of the image was not taken into account (``ssray.data.decode.decode_noted``).
        size_bytes: of its file.
    """

    image: UInt8Image | None
    shape: tuple[int, int] | None = None
    error: str | None = None
    detail: str | None = None
    note: str | None = None
    size_bytes: int | None = None

    @classmethod
    def unusable(cls, code: str, detail: str) -> Self:
        """An image that can't be used, with the reason."""
        return cls(None, error=code, detail=detail)


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def prepare(
    read: Callable[[], bytes],
    shape: tuple[int, int],
    timed: Callable[[str], AbstractContextManager[None]] = _untimed,
) -> Prepared:
    """Fetches an image, decodes it and resizes it to a network's input. Whatever is wrong with it
    becomes a reason code, so that one image never ends the work on others.

    Args:
        read: gives the bytes of the image's file.
        shape: rows and columns of the network's input.
        timed: encloses each stage, ``fetch`` and ``decode``.
    """
    try:
        with timed("fetch"):
            content = read()
        with timed("decode"):
            image, photographed, note = decode_resized(content, shape)
    except ImageError as error:
        return Prepared.unusable(error.code, str(error))
    except MemoryError:
        raise
    except Exception as error:  # what a decoder does with damaged data is open-ended
        return Prepared.unusable("unreadable", f"{type(error).__name__}: {error}")
    return Prepared(image, photographed, note=note, size_bytes=len(content))


def prepare_pixels(image: UInt8Image, shape: tuple[int, int]) -> Prepared:
    """Resizes decoded pixels, (H, W, 3) uint8, to a network's input."""
    return Prepared(resize(image, shape), (image.shape[0], image.shape[1]))


@dataclass(frozen=True)
class Judged:
    """What came of an image: a verdict, or the reason why there is none."""

    prepared: Prepared
    verdict: Verdict | None = None

    @property
    def error(self) -> tuple[str, str] | None:
        """The reason code and the reason in words; None where there is a verdict."""
        if self.verdict:
            return None
        if self.prepared.error:
            return self.prepared.error, self.prepared.detail or self.prepared.error
        return "not_finite", "the model's output is no number"

    def row(self) -> dict[str, Any]:
        """All that tables keep of an image, beside its name: each takes the columns it has."""
        verdict, prepared = self.verdict, self.prepared
        code, detail = self.error or (None, None)
        height, width = prepared.shape or (None, None)
        row: dict[str, Any] = {
            "error": code,
            "detail": detail,
            "note": prepared.note,
            "height": height,
            "width": width,
            "size_bytes": prepared.size_bytes,
        }
        if verdict:
            row |= {
                "score": verdict.score,
                "p_value": verdict.p_value,
                "flagged": verdict.flagged,
                "defect_share": verdict.defect_share,
                "boxes": verdict.boxes,
            }
        return row


class Judge:
    """A model that is loaded and judges images.

    Attributes:
        artifact: the model.
    """

    def __init__(
        self, artifact: ModelArtifact, device: torch.device, precision: Precision, backend: Backend
    ) -> None:
        """Builds the networks.

        Args:
            artifact: the model.
            device: where its networks run.
            precision: of their inner layers; ``auto`` is the one the model was calibrated in.
            backend: what runs them.
        """
        self.artifact = artifact
        dtype = artifact.precision(precision, device)
        self._score = Scorer(artifact, device, dtype, backend)

    @classmethod
    def load(
        cls,
        store: Location,
        category: str,
        version: str,
        device: torch.device,
        precision: Precision,
        backend: Backend,
    ) -> Self:
        """Loads a version of a category's model from a store.

        Raises:
            ArtifactError: if it can't be used.
        """
        return cls(load(store, category, version), device, precision, backend)

    def __call__(self, prepared: Sequence[Prepared]) -> list[Judged]:
        """Judges images that were prepared for this model's ``input_shape``, in their order."""
        usable = [(p.image, p.shape) for p in prepared if p.image is not None and p.shape]
        if not usable:
            return [Judged(each) for each in prepared]
        images, shapes = zip(*usable, strict=True)
        verdicts = self._verdicts(np.stack(images), shapes)
        return [Judged(p, None if p.image is None else next(verdicts)) for p in prepared]

    def _verdicts(
        self, images: UInt8Image, shapes: Sequence[tuple[int, int]]
    ) -> Iterator[Verdict | None]:
        """A verdict for each of (B, h, w, 3) uint8 images; None where the output is no number."""
        scored, calibration = self._score(images), self.artifact.calibration
        p_values = calibration.p_values(scored.scores)
        limit = calibration.image_threshold
        for anomaly_map, score, p_value, shape in zip(
            scored.maps, scored.scores, p_values, shapes, strict=True
        ):
            if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
                yield None
                continue
            yield Verdict(
                score=float(score),
                p_value=float(p_value),
                flagged=bool(score > limit),
                anomaly_map=anomaly_map,
                pixel_threshold=calibration.pixel_threshold,
                shape=shape,
            )
