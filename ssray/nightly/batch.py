"""Scores one batch of images, all of one category.

Some threads fetch and decode images while the model scores those before. An image that can't be
scored has a row, too, which names the reason.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import torch

from ssray.config import Backend, Heatmaps, Precision
from ssray.errors import ArtifactError
from ssray.nightly.preparing import Pair, Preparer, Spent
from ssray.nightly.rows import NIGHT
from ssray.nightly.sources import Source
from ssray.scoring.heatmap import levels_to_png
from ssray.scoring.judge import SCORE_BATCH, Judge, Judged, Prepared
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

MOST_MODEL_BYTES = 512 * 1024**2
"""How many bytes the tensors of all kept models may have; in memory a model that is ready to run
takes about three times as much."""
SCORE_BATCH_ON_GPU = 256
"""Images in one call of a model on a GPU."""


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        rows: a ``NIGHT`` table, in the order of the batch.
        spent: how long each stage took.
        retries: how many requests failed and were made again.
        postponed: how many images have no row, as storage failed, by reason.
    """

    rows: pa.Table
    spent: Spent
    retries: int
    postponed: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def joined(cls, results: Sequence[Self]) -> Self:
        """Joins the results of parts of a batch."""
        spent = Spent.added(result.spent for result in results)
        rows = pa.concat_tables([result.rows for result in results])
        postponed = sum((Counter(result.postponed) for result in results), Counter[str]())
        return cls(rows, spent, sum(result.retries for result in results), postponed)


class BatchScorer:
    """Scores batches; it keeps the models of the categories that it has met last."""

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
        self._prepare = Preparer(readers)
        self._at_once = SCORE_BATCH if device.type == "cpu" else SCORE_BATCH_ON_GPU
        self._judges = OrderedDict[str, Judge]()
        self._one_at_a_time = threading.Lock()  # threads may pack while one computes

    def __call__(self, sources: Sequence[Source], give_up: bool = False) -> BatchResult:
        """Scores a batch of images.

        Args:
            sources: the images, all of one category.
            give_up: makes rows with an error of images that storage did not give; else they have
                none, and are counted as postponed.
        """
        spent, fetch, category = Spent(), Fetcher(), sources[0].category
        model = self._model(category)
        if isinstance(model, Judge):
            pairs = self._prepare(sources, model.artifact.framing, fetch, spent)
        else:
            pairs = ((source, model) for source in sources)
        rows, postponed = self.rows(category, pairs, spent, give_up)
        return BatchResult(rows, spent, fetch.retries, postponed)

    def rows(
        self, category: str, pairs: Iterable[Pair], spent: Spent, give_up: bool
    ) -> tuple[pa.Table, Counter[str]]:
        """Judges prepared images; returns their ``NIGHT`` rows, and how many are postponed, by
        reason.

        Args:
            category: of the images.
            pairs: the images.
            spent: counts the time.
            give_up: as for a call.
        """
        model, version = self._model(category), self._versions.get(category)
        rows, postponed = list[dict[str, Any]](), Counter[str]()
        pending = iter(pairs)
        while chunk := list(itertools.islice(pending, self._at_once)):
            if isinstance(model, Judge):
                with self._one_at_a_time, spent.on("model"):
                    judged = model([prepared for _, prepared in chunk])
            else:
                judged = [Judged(model)] * len(chunk)
            with spent.on("pack"):
                for (source, _), each in zip(chunk, judged, strict=True):
                    if each.prepared.transient and not give_up:
                        postponed[each.prepared.error or ""] += 1
                    else:
                        rows.append(self._row(source, version, each))
        return pa.Table.from_pylist(rows, schema=NIGHT), postponed

    def shape(self, category: str) -> tuple[int, int]:
        """Rows and columns of the inputs of a category's network; (0, 0) if it has no model."""
        model = self._model(category)
        return model.artifact.input_shape if isinstance(model, Judge) else (0, 0)

    def _model(self, category: str) -> Judge | Prepared:
        """Returns the category's judge, whose model is loaded the first time, or why there is
        none.
        """
        version = self._versions.get(category)
        if version is None:
            detail = f"no model for '{category}' was in use when the run began"
            return Prepared.unusable("unknown_category", detail)
        with self._one_at_a_time:
            if category in self._judges:
                self._judges.move_to_end(category)
            else:
                try:
                    self._judges[category] = Judge.load(
                        self._store, category, version, self._device, self._precision, self._backend
                    )
                except ArtifactError as error:
                    return Prepared.unusable("model_unusable", str(error))
            judge = self._judges[category]
            while sum(each.artifact.nbytes for each in self._judges.values()) > MOST_MODEL_BYTES:
                if next(iter(self._judges)) == category:
                    break
                self._judges.popitem(last=False)
            return judge

    def _row(self, source: Source, version: str | None, judged: Judged) -> dict[str, Any]:
        row = judged.row() | {
            "uri": source.uri,
            "category": source.category,
            "model_version": version,
            "etag": source.etag,
        }
        if source.size is not None:
            row["size_bytes"] = source.size
        verdict = judged.verdict
        if verdict and (
            self._heatmaps == "all" or (self._heatmaps == "flagged" and verdict.flagged)
        ):
            row["heatmap"] = levels_to_png(verdict.levels)
            row["pixel_threshold"] = verdict.pixel_threshold
        return row
