"""The way of every image that is scored: prepare, judge, row.

Evaluation, scoring, nights and the Python API all go it. They differ in where the bytes come from,
in how images travel between processes, and in which columns of a row they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ssray.config import Backend, Experts, Precision
from ssray.data.decode import UInt8Image
from ssray.data.large import decode_framed, stretch_note
from ssray.data.pose import Framing, Placement
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
        placement: where the part lies, for a model that aligns its parts.
        error: the reason code of an image that can't be used.
        detail: the reason in words.
        note: what of the image was not taken into account or is remarkable (``Decoded.notes``).
        size_bytes: of its file.
        transient: whether storage is the reason of the error, and it may be read later.
    """

    image: UInt8Image | None
    shape: tuple[int, int] | None = None
    placement: Placement | None = None
    error: str | None = None
    detail: str | None = None
    note: str | None = None
    size_bytes: int | None = None
    transient: bool = False

    @classmethod
    def unusable(cls, code: str, detail: str, transient: bool = False) -> Self:
        """An image that can't be used, with the reason."""
        return cls(None, error=code, detail=detail, transient=transient)


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def prepare(
    read: Callable[[], bytes],
    framing: Framing,
    timed: Callable[[str], AbstractContextManager[None]] = _untimed,
) -> Prepared:
    """Fetches an image, decodes it and makes a network's input of it. Whatever is wrong with it
    becomes a reason code, so that one image never ends the work on others.

    Args:
        read: gives the bytes of the image's file.
        framing: the model's.
        timed: encloses each stage, ``fetch`` and ``decode``.
    """
    try:
        with timed("fetch"):
            content = read()
        with timed("decode"):
            decoded = decode_framed(content, framing)
    except ImageError as error:
        return Prepared.unusable(error.code, str(error), error.transient)
    except MemoryError:
        detail = "decoding it takes more memory than there is"
        return Prepared.unusable("out_of_memory", detail)
    except Exception as error:  # what a decoder does with damaged data is open-ended
        return Prepared.unusable("unreadable", f"{type(error).__name__}: {error}")
    return Prepared(
        decoded.image,
        decoded.shape,
        decoded.placement,
        note=", ".join(decoded.notes) or None,
        size_bytes=len(content),
    )


def prepare_pixels(image: UInt8Image, framing: Framing) -> Prepared:
    """Makes a network's input of decoded pixels, (H, W, 3) uint8."""
    shape = image.shape[0], image.shape[1]
    try:
        note = ", ".join(stretch_note(framing, shape)) or None
        framed, placement = framing(image)
    except ImageError as error:
        return Prepared.unusable(error.code, str(error))
    return Prepared(framed, shape, placement, note=note)


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
                "seen_by": verdict.seen_by,
                **_expert_columns(verdict.by_expert),
                "defect_share": verdict.defect_share,
                "boxes": verdict.boxes,
            }
        return row


def _expert_columns(scores: Mapping[Experts, float]) -> dict[str, float]:
    """The score of each of several experts, by the names of their columns."""
    return {f"{expert}_score": score for expert, score in scores.items()} if len(scores) > 1 else {}


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
        """Judges images that were prepared with this model's ``framing``, in their order."""
        usable = [each for each in prepared if each.image is not None]
        verdicts = self._verdicts(usable) if usable else iter(())
        return [Judged(p, None if p.image is None else next(verdicts)) for p in prepared]

    def _verdicts(self, prepared: Sequence[Prepared]) -> Iterator[Verdict | None]:
        """A verdict for each of some usable images; None where the output is no number."""
        scored = self._score(np.stack([each.image for each in prepared if each.image is not None]))
        calibration, framing = self.artifact.calibration, self.artifact.framing
        p_values = calibration.p_values(scored.scores)
        limit = calibration.image_threshold
        for anomaly_map, score, by_expert, p_value, image in zip(
            scored.maps, scored.scores, scored.by_expert, p_values, prepared, strict=True
        ):
            if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
                yield None
                continue
            shape = image.shape or framing.shape
            flagged = bool(score > limit)
            yield Verdict(
                score=float(score),
                p_value=float(p_value),
                flagged=flagged,
                seen_by=calibration.seen_by(by_expert) if flagged else None,
                by_expert=dict(zip(calibration.experts, map(float, by_expert), strict=True)),
                anomaly_map=framing.laid_back(anomaly_map, image.placement, shape),
                pixel_threshold=calibration.pixel_threshold,
                shape=shape,
                decoding=framing.decoding,
            )
