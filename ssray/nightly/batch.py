"""Scores one batch of images, all of one category.

Some threads fetch and decode images while the model scores those before. An image that can't be
scored has a row, too, which names the reason.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy import ndimage

from ssray.config import Backend, Precision
from ssray.data.decode import UInt8Image
from ssray.data.large import decode_resized
from ssray.errors import ImageError
from ssray.models.artifact import load
from ssray.nightly.rows import NIGHT
from ssray.nightly.sources import Source
from ssray.scoring.heatmap import encode_levels, levels_to_png
from ssray.scoring.scorer import Scorer
from ssray.storage.archives import is_compressed_tar, split_member, streamed
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

Heatmaps = Literal["flagged", "all", "none"]

SCORE_BATCH = 16
"""How many images the model scores in one call."""
MOST_BOXES = 16
"""How many boxes around defective regions are kept for an image at most, the largest ones."""
MOST_HELD_BYTES = 256 * 1024**2
"""The most bytes of files from a compressed tar waiting to be decoded; a larger one waits alone."""
STAGES = ("fetch", "decode", "model", "pack", "write")
"""The stages of work whose times are measured."""


@dataclass
class Spent:
    """How long each stage of the work on a batch took.

    Attributes:
        seconds: the wall-clock seconds of each stage, added up over all threads.
        worker_seconds: the wall-clock seconds that the process worked on the batch.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    worker_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begun


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        rows: a ``NIGHT`` table, in the order of the batch.
        spent: how long each stage took.
        retries: how many requests failed and were made again.
    """

    rows: pa.Table
    spent: Spent
    retries: int


@dataclass(frozen=True)
class _Prepared:
    """An image that is ready to be scored, or the reason why it can't be.

    Attributes:
        image: the image at the size of the model's input, (H, W, 3) uint8; None if there is none.
        shape: the rows and columns of the image as it is stored.
        error: a reason code if it can't be scored.
        detail: the error in words.
        note: the note of ``ssray.data.decode.decode_noted``.
        size: the size of the file in bytes.
    """

    image: UInt8Image | None
    shape: tuple[int, int] | None = None
    error: str | None = None
    detail: str | None = None
    note: str | None = None
    size: int | None = None


class BatchScorer:
    """Scores batches; it keeps the model of every category that it has met."""

    def __init__(
        self,
        store: Location,
        versions: Mapping[str, str],
        device: torch.device,
        precision: Precision,
        backend: Backend,
        *,
        readers: int,
        heatmaps: Heatmaps = "flagged",
    ) -> None:
        """Sets up the scorer; a model is loaded when the first batch of its category comes.

        Args:
            store: the model store.
            versions: the version of the model to use for each category.
            device: where the models run.
            precision: the type in which their inner layers compute; ``auto`` takes the one that
                each model was calibrated with.
            backend: what runs the models.
            readers: how many threads fetch and decode images.
            heatmaps: which images' heatmaps are kept.
        """
        self._store, self._versions = store, versions
        self._device, self._precision, self._backend = device, precision, backend
        self._heatmaps = heatmaps
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._ahead = 2 * SCORE_BATCH + readers
        self._scorers: dict[str, Scorer] = {}

    def __call__(self, sources: Sequence[Source]) -> BatchResult:
        """Scores a batch of images, which must all be of one category.

        Raises:
            ArtifactError: if the category's model can't be used.
        """
        spent, fetch = Spent(), Fetcher()
        category = sources[0].category
        version = self._versions.get(category)
        if version is None:
            detail = f"no model for '{category}' was in use when the night began"
            unknown = _Prepared(None, error="unknown_category", detail=detail)
            rows = [_row(source, None, unknown) for source in sources]
        else:
            scorer = self._scorer(category, version)
            rows = []
            pending = iter(self._prepared(sources, scorer, fetch, spent))
            while chunk := list(itertools.islice(pending, SCORE_BATCH)):
                rows += self._scored(scorer, chunk, spent)
        return BatchResult(pa.Table.from_pylist(rows, schema=NIGHT), spent, fetch.retries)

    def _scorer(self, category: str, version: str) -> Scorer:
        """Returns the scorer of a category; loads its model the first time."""
        if category not in self._scorers:
            model = load(self._store, category, version)
            precision = model.precision(self._precision, self._device)
            self._scorers[category] = Scorer(model, self._device, precision, self._backend)
        return self._scorers[category]

    def _prepared(
        self, sources: Sequence[Source], scorer: Scorer, fetch: Fetcher, spent: Spent
    ) -> Iterator[tuple[Source, _Prepared]]:
        """Yields the images of a batch in order; threads prepare the next ones meanwhile."""

        def prepare(source: Source, content: Callable[[], bytes]) -> _Prepared:
            try:
                with spent.on("fetch"):
                    found = content()
                with spent.on("decode"):
                    image, shape, note = decode_resized(found, scorer.artifact.input_shape)
                return _Prepared(image, shape, note=note, size=len(found))
            except ImageError as error:
                return _Prepared(None, error=error.code, detail=str(error))
            except MemoryError:
                raise
            except Exception as error:  # one image must not end the night, whatever a decoder does
                return _Prepared(
                    None, error="unreadable", detail=f"{type(error).__name__}: {error}"
                )

        waiting: deque[tuple[Source, Future[_Prepared], int]] = deque()
        held_bytes = 0
        for source, content, held in _contents(sources, fetch, spent):
            waiting.append((source, self._readers.submit(prepare, source, content), held))
            held_bytes += held
            while len(waiting) > self._ahead or (waiting and held_bytes > MOST_HELD_BYTES):
                first, future, freed = waiting.popleft()
                held_bytes -= freed
                yield first, future.result()
        for first, future, _ in waiting:
            yield first, future.result()

    def _scored(
        self, scorer: Scorer, chunk: Sequence[tuple[Source, _Prepared]], spent: Spent
    ) -> list[dict[str, Any]]:
        """Scores some prepared images in one call of the model, and makes their rows."""
        rows = [_row(source, scorer.artifact.version, prepared) for source, prepared in chunk]
        usable = [number for number, (_, prepared) in enumerate(chunk) if prepared.error is None]
        if not usable:
            return rows
        with spent.on("model"):
            images = [image for _, p in chunk if (image := p.image) is not None]
            verdicts = scorer.judge(np.stack(images))
        threshold = scorer.artifact.calibration.pixel_threshold
        with spent.on("pack"):
            for number, verdict in zip(usable, verdicts, strict=True):
                row = rows[number]
                if verdict is None:
                    row.update(error="not_finite", detail="the model's output is no number")
                    continue
                mask = verdict.anomaly_map > np.float32(threshold)
                row.update(
                    score=verdict.score,
                    p_value=verdict.p_value,
                    flagged=verdict.flagged,
                    defect_share=float(mask.mean()),
                    boxes=_boxes(mask, (row["height"], row["width"])),
                )
                if self._heatmaps == "all" or (self._heatmaps == "flagged" and verdict.flagged):
                    row["heatmap"] = levels_to_png(encode_levels(verdict.anomaly_map, threshold))
                    row["pixel_threshold"] = threshold
        return rows


def _contents(
    sources: Sequence[Source], fetch: Fetcher, spent: Spent
) -> Iterable[tuple[Source, Callable[[], bytes], int]]:
    """Yields each image with a function that returns its bytes, and how many are in memory already.

    The files of a compressed tar come in its own order and are in memory; all others are fetched
    when the function is called.
    """
    parts = split_member(sources[0].uri)
    if parts is None or not is_compressed_tar(parts[0]):
        for source in sources:
            yield source, _reading(source, fetch), 0
        return
    for source in sources:
        if source.error:
            yield source, _reading(source, fetch), 0
    sources = [source for source in sources if not source.error]
    wanted = defaultdict[str, list[Source]](list)
    for source in sources:
        wanted[source.uri].append(source)
    left = len(sources)
    try:
        members = fetch.each(parts[0], lambda: streamed(Location.parse(parts[0])))
        while left:
            with spent.on("fetch"):
                name, content = next(members)
            same = wanted.get(f"{parts[0]}#{name}")
            if same:
                left -= 1
                yield same.pop(0), functools.partial(bytes, content), len(content)
    except StopIteration:
        reason = ImageError("missing", f"{parts[0]}: no longer has it")
    except ImageError as error:
        reason = error
    else:
        return
    for same in wanted.values():
        for source in same:
            yield source, _raising(reason), 0


def _reading(source: Source, fetch: Fetcher) -> Callable[[], bytes]:
    """Makes a function that fetches an image, or raises the error that is known already."""
    if source.error:
        return _raising(ImageError(source.error, f"{source.uri}: known before it was read"))
    return lambda: fetch(source.uri, source.size, source.offset)


def _raising(error: ImageError) -> Callable[[], bytes]:
    """Makes a function that raises an error in place of returning bytes."""

    def read() -> bytes:
        raise error

    return read


def _row(source: Source, version: str | None, prepared: _Prepared) -> dict[str, Any]:
    """Makes the row of an image that is not scored yet."""
    height, width = prepared.shape or (None, None)
    return {
        "uri": source.uri,
        "category": source.category,
        "model_version": version,
        "error": prepared.error,
        "detail": prepared.detail,
        "note": prepared.note,
        "height": height,
        "width": width,
        "size_bytes": source.size if source.size is not None else prepared.size,
    }


def _boxes(mask: npt.NDArray[np.bool_], shape: tuple[int, int]) -> list[list[int]]:
    """Finds the boxes around the connected regions of a mask; corners connect, too.

    Args:
        mask: (h, w) bool.
        shape: the rows and columns of the image, in whose pixels the boxes are given.

    Returns:
        Left, top, width and height of at most ``MOST_BOXES`` boxes, the largest region first.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return []
    areas = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    rows, columns = (own / seen for own, seen in zip(shape, mask.shape, strict=True))
    boxes = []
    for number in np.argsort(-areas, kind="stable")[:MOST_BOXES]:
        down, across = places[number]
        top, left = int(down.start * rows), int(across.start * columns)
        bottom, right = round(down.stop * rows), round(across.stop * columns)
        boxes.append([left, top, right - left, bottom - top])
    return boxes
