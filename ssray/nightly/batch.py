"""One batch of images: fetched and decoded by some threads while the model scores those before.

A batch has one category. What can't be scored keeps its row and names the reason.
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
"""Images in one call of the model."""
MOST_BOXES = 16
MOST_HELD_BYTES = 256 * 1024**2
"""Of files out of a compressed tar that wait to be decoded; a larger one waits alone."""
STAGES = ("fetch", "decode", "model", "pack", "write")


@dataclass
class Spent:
    """Where the time went, in seconds of each thread's clock on the wall, added up.

    Attributes:
        seconds: by stage.
        worker_seconds: for which the process was at work on the batch, whatever its threads did.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    worker_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Counts the time that the block takes."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begun


@dataclass(frozen=True)
class BatchResult:
    """A batch that is done.

    Attributes:
        rows: a ``NIGHT`` table, in the order of the batch.
        spent: where the time went.
        retries: requests that were made again.
    """

    rows: pa.Table
    spent: Spent
    retries: int


@dataclass(frozen=True)
class _Prepared:
    """An image at the model's size, or why there is none; and its own size."""

    image: UInt8Image | None
    shape: tuple[int, int] | None = None
    error: str | None = None
    detail: str | None = None
    note: str | None = None
    size: int | None = None


class BatchScorer:
    """Holds the model of every category it has met."""

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
        """Loads nothing yet.

        Args:
            store: of the models.
            versions: of each category's model.
            device: where models run.
            precision: of their inner layers; ``auto`` is what each was calibrated in.
            backend: what runs them.
            readers: threads that fetch and decode.
            heatmaps: of which images the heatmap is kept.
        """
        self._store, self._versions = store, versions
        self._device, self._precision, self._backend = device, precision, backend
        self._heatmaps = heatmaps
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._ahead = 2 * SCORE_BATCH + readers
        self._scorers: dict[str, Scorer] = {}

    def __call__(self, sources: Sequence[Source]) -> BatchResult:
        """Scores a batch.

        Raises:
            ArtifactError: if the model can't be used.
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
        if category not in self._scorers:
            model = load(self._store, category, version)
            precision = model.precision(self._precision, self._device)
            self._scorers[category] = Scorer(model, self._device, precision, self._backend)
        return self._scorers[category]

    def _prepared(
        self, sources: Sequence[Source], scorer: Scorer, fetch: Fetcher, spent: Spent
    ) -> Iterator[tuple[Source, _Prepared]]:
        """Images in order, some ahead of their use."""

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
    """What gives the bytes of each image, and how many are held for it already: those of a
    compressed tar, which come as it is read.
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
    if source.error:
        return _raising(ImageError(source.error, f"{source.uri}: known before it was read"))
    return lambda: fetch(source.uri, source.size, source.offset)


def _raising(error: ImageError) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


def _row(source: Source, version: str | None, prepared: _Prepared) -> dict[str, Any]:
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
    """Around each 8-connected region of (h, w) bool, in pixels of an image of another size."""
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
