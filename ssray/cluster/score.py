"""Ray Data around the scoring of a table of images: decode, judge in actors, write Parquet.

Decoding runs as tasks on any CPU, judging in actors that each hold every model of the run.
An image that can't be used becomes a row with a reason code.

All stages together ask for one CPU, whatever the number of actors, so that a pipeline always
fits: where actors hold every CPU, tasks in front of them wait for ever. No number of actors
makes their share equal to that of decoding, or Ray Data would fuse decoding into them and
leave the other cores idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.util.queue import Queue

from ssray.cluster.prepared import PREPARED, packed, unpacked
from ssray.cluster.progress import forwarded
from ssray.cluster.resources import WorkerResources, check_capacity, scoring_workers
from ssray.cluster.session import one_line
from ssray.config import Compute
from ssray.data.pose import Framing
from ssray.errors import ScoringError
from ssray.models.artifact import load_framing
from ssray.models.device import resolve_device, use_cores
from ssray.scoring.judge import SCORE_BATCH, Judge
from ssray.scoring.labelled import LabelledImage, judge_labelled, prepare_labelled
from ssray.scoring.tables import SCORED_PARTS
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

DECODE_BATCH = 16
NO_PROGRESS_TIMEOUT_S = 600
_DECODE_CPUS = 0.3
_ALL_SCORING_CPUS = 0.5
_WRITE_CPUS = 0.2

_PREPARED = pa.schema(
    [
        *(pa.field(name, SCORED_PARTS.field(name).type) for name in ("uri", "category")),
        pa.field("split_type", pa.string()),
        pa.field("label", pa.int8()),
        *PREPARED,
        pa.field("truth", pa.binary(), metadata={"layout": "packed bits of truth_shape"}),
        pa.field("truth_shape", pa.list_(pa.int32(), 2)),
        pa.field("mask_error", pa.string()),
        pa.field("mask_detail", pa.string()),
    ]
)


def score_images(
    images: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
    maps: Location | None = None,
    on_scored: Callable[[int, int], None] = lambda done, count: None,
) -> None:
    """Scores every image of a table on the connected Ray.

    Args:
        images: as ``ssray.data.dataset`` makes it. Where it has labels, pixels are counted
            against the masks.
        store: the model store, readable from every worker.
        versions: the model version to use for each category of the table.
        compute: how many actors, with what each.
        out: an existing folder that receives Parquet files of ``SCORED_PARTS`` rows, in no fixed
            order.
        maps: an existing folder that keeps every anomaly map
            (``ssray.scoring.labelled.judge_labelled``).
        on_scored: called with how many images are scored, and how many there are.

    Raises:
        ScoringError: if the work could not be finished.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    reports = Queue(actor_options={"num_cpus": 0})
    done = 0

    def add(scored: int) -> None:
        nonlocal done
        done += scored
        on_scored(min(done, len(images)), len(images))  # a batch that is repeated counts twice

    try:
        scored = _scored(images, store, versions, compute, maps, reports)
        with forwarded(reports, {"scored": add}):
            scored.write_parquet(
                out.path,
                filesystem=out.filesystem,
                ray_remote_args={"num_cpus": _WRITE_CPUS},
                compression="zstd",
            )
    except (RayError, ExecutionTimeoutError) as error:
        raise ScoringError(f"scoring failed: {one_line(error)}") from error
    finally:
        reports.shutdown()


def _scored(
    images: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    maps: Location | None,
    reports: Queue,
) -> ray.data.Dataset:
    """The ``SCORED_PARTS`` rows of a table of images, not computed yet."""
    ordered = images.sort_by([("category", "ascending"), ("uri", "ascending")])
    blocks = [ordered.slice(i, DECODE_BATCH) for i in range(0, len(ordered), DECODE_BATCH)]
    actors, each = scoring_workers(compute, len(blocks))
    check_capacity(actors, 0, each.gpus)
    framings = {
        category: load_framing(store, category, version) for category, version in versions.items()
    }
    prepared = ray.data.from_arrow(blocks).map_batches(
        _prepare,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=_DECODE_CPUS,
        fn_kwargs={"framings": framings},
    )
    return prepared.map_batches(
        _JudgingActor,
        batch_format="pyarrow",
        batch_size=SCORE_BATCH,
        num_cpus=_ALL_SCORING_CPUS / actors,
        num_gpus=each.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_kwargs={
            "store": store,
            "versions": dict(versions),
            "compute": compute,
            "worker": each,
            "maps": maps,
            "reports": reports,
        },
    )


def _prepare(images: pa.Table, framings: Mapping[str, Framing]) -> pa.Table:
    """Makes networks' inputs of a block of images; ``_PREPARED`` rows."""
    fetch = Fetcher()
    prepared = [
        _packed(prepare_labelled(row, framings[row["category"]], fetch))
        for row in images.to_pylist()
    ]
    return pa.Table.from_pylist(prepared, schema=_PREPARED)


def _packed(image: LabelledImage) -> dict[str, Any]:
    truth = image.truth
    return packed(image.prepared) | {
        "uri": image.uri,
        "category": image.category,
        "split_type": image.split_type,
        "label": image.label,
        "truth": None if truth is None else np.packbits(truth).tobytes(),
        "truth_shape": None if truth is None else truth.shape,
        "mask_error": image.mask_error,
        "mask_detail": image.mask_detail,
    }


def _unpacked(row: Mapping[str, Any], shape: tuple[int, int]) -> LabelledImage:
    """What ``_packed`` packed, for a model with inputs of so many rows and columns."""
    truth = None
    if row["truth"] is not None:
        height, width = row["truth_shape"]
        bits = np.unpackbits(np.frombuffer(row["truth"], np.uint8), count=height * width)
        truth = bits.astype(bool).reshape(height, width)
    return LabelledImage(
        row["uri"],
        row["category"],
        row["split_type"],
        row["label"],
        unpacked(row, shape),
        truth,
        row["mask_error"],
        row["mask_detail"],
    )


class _JudgingActor:
    """Holds every model of the run and judges batches."""

    def __init__(
        self,
        store: Location,
        versions: Mapping[str, str],
        compute: Compute,
        worker: WorkerResources,
        maps: Location | None,
        reports: Queue,
    ) -> None:
        use_cores(worker.threads())
        device = resolve_device(worker.device)
        self._maps, self._reports = maps, reports
        self._judges = {
            category: Judge.load(
                store, category, version, device, compute.precision, compute.backend
            )
            for category, version in versions.items()
        }

    def __call__(self, prepared: pa.Table) -> pa.Table:
        groups = defaultdict(list)
        for row in prepared.to_pylist():
            groups[row["category"], row["split_type"]].append(row)
        rows: list[dict[str, Any]] = []
        for (category, _), members in groups.items():
            judge = self._judges[category]
            images = [_unpacked(row, judge.artifact.input_shape) for row in members]
            rows += judge_labelled(judge, images, self._maps)
        self._reports.put(("scored", len(rows)))
        return pa.Table.from_pylist(rows, schema=SCORED_PARTS)
