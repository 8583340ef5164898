"""Ray Data around the Scorer: manifest -> decode -> Scorer actors -> Parquet.

Decoding runs as tasks on any CPU, scoring in actors that each hold every model of the run.
An image that can't be used becomes a row with a reason code.

All stages together ask for one CPU, whatever the number of actors, so that a pipeline always
fits: where actors hold every CPU, tasks in front of them wait for ever. No number of actors
makes their share equal to that of decoding, or Ray Data would fuse decoding into them and
leave the other cores idle.
"""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from ssray.cluster.resources import WorkerResources, check_capacity, scoring_workers
from ssray.cluster.session import one_line
from ssray.config import Compute
from ssray.data.decode import read_image, read_mask, resize
from ssray.errors import ImageError, ScoringError
from ssray.metrics.pixels import PixelCounts
from ssray.models.artifact import load, load_facts
from ssray.models.device import resolve_device, use_cores
from ssray.scoring.heatmap import encode_levels, levels_to_png
from ssray.scoring.scorer import Scorer, resize_map
from ssray.scoring.tables import SCORED_PARTS
from ssray.storage.location import Location

DECODE_BATCH = 16
SCORE_BATCH = 16
NO_PROGRESS_TIMEOUT_S = 600
_DECODE_CPUS = 0.3
_ALL_SCORING_CPUS = 0.5
_WRITE_CPUS = 0.2

_PREPARED = pa.schema(
    [
        *(pa.field(name, SCORED_PARTS.field(name).type) for name in ("uri", "category")),
        pa.field("split_type", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("image", pa.binary(), metadata={"layout": "(H, W, 3) uint8, network size"}),
        pa.field("shape", pa.list_(pa.int32(), 2), metadata={"of": "the mask, or the image"}),
        pa.field("truth", pa.binary(), metadata={"layout": "packed bits of that shape"}),
        pa.field("error", pa.string()),
    ]
)


def score_manifest(
    manifest: pa.Table,
    store: Location,
    versions: Mapping[str, str],
    compute: Compute,
    out: Location,
    maps: Location | None = None,
) -> None:
    """Scores every image of a manifest on the connected Ray.

    Args:
        manifest: as ``ssray.data.dataset`` makes it. Where it has labels, pixels are counted
            against the masks.
        store: the model store, readable from every worker.
        versions: the model version to use for each category of the manifest.
        compute: how many actors, with what each.
        out: an existing folder that receives Parquet files of ``SCORED_PARTS`` rows, in no fixed
            order.
        maps: an existing folder that receives each anomaly map as ``map_place`` says, (H, W)
            float32 at the resolution of the mask, or of the image where there is none.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    ordered = manifest.sort_by([("category", "ascending"), ("uri", "ascending")])
    blocks = [ordered.slice(i, DECODE_BATCH) for i in range(0, len(ordered), DECODE_BATCH)]
    actors, each = scoring_workers(compute, len(blocks))
    shapes = {
        category: load_facts(store, category, version).input_shape
        for category, version in versions.items()
    }
    check_capacity(actors, 0, each.gpus)
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            prepare_images,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_DECODE_CPUS,
            fn_kwargs={"shapes": shapes},
        )
        .map_batches(
            ScoringActor,
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
            },
        )
    )
    try:
        dataset.write_parquet(
            out.path,
            filesystem=out.filesystem,
            ray_remote_args={"num_cpus": _WRITE_CPUS},
            compression="zstd",
        )
    except (RayError, ExecutionTimeoutError) as error:
        raise ScoringError(f"scoring failed: {one_line(error)}") from error


def prepare_images(manifest: pa.Table, shapes: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Fetches, decodes and resizes; failures keep their row and name a reason."""
    rows = [_prepared_row(row, shapes[row["category"]]) for row in manifest.to_pylist()]
    return pa.Table.from_pylist(rows, schema=_PREPARED)


def _prepared_row(row: dict[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    prepared = {name: row[name] for name in ("uri", "category", "split_type", "label")}
    try:
        image = read_image(row["uri"])
        prepared["image"] = resize(image, shape).tobytes()
        truth = _ground_truth(row, image.shape[:2])
    except ImageError as error:
        return prepared | {"image": None, "error": error.code}
    if truth is None:
        return prepared | {"shape": list(image.shape[:2])}
    return prepared | {"shape": list(truth.shape), "truth": np.packbits(truth).tobytes()}


def _ground_truth(
    row: dict[str, Any], image_shape: tuple[int, ...]
) -> npt.NDArray[np.bool_] | None:
    """The mask; all good for a good image; None where a defect has no mask or labels lack."""
    if row["mask_uri"] is not None:
        try:
            mask = read_mask(row["mask_uri"])
        except ImageError as error:
            raise ImageError(f"mask_{error.code}", str(error)) from None
        if row["label"] == 1 and not mask.any():
            raise ImageError("mask_empty", f"{row['mask_uri']}: no pixel above 127 of 255")
        return mask
    return np.zeros(image_shape, bool) if row["label"] == 0 else None


class ScoringActor:
    """Holds every model of the run and scores batches."""

    def __init__(
        self,
        store: Location,
        versions: Mapping[str, str],
        compute: Compute,
        worker: WorkerResources,
        maps: Location | None,
    ) -> None:
        use_cores(worker.threads())
        device = resolve_device(worker.device)
        self._maps = maps
        self._scorers = {}
        for category, version in versions.items():
            artifact = load(store, category, version)
            precision = artifact.precision(compute.precision, device)
            self._scorers[category] = Scorer(artifact, device, precision, compute.backend)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        groups = defaultdict(list)
        for row in prepared.to_pylist():
            groups[row["category"], row["split_type"]].append(row)
        rows = [
            scored
            for (category, _), members in groups.items()
            for scored in score_rows(self._scorers[category], members, self._maps)
        ]
        return pa.Table.from_pylist(rows, schema=SCORED_PARTS)


def map_place(maps: Location, category: str, split_type: str | None, uri: str) -> Location:
    """Where the anomaly map of an image is kept: ``CATEGORY/TYPE/NAME.npy``."""
    return maps / category / (split_type or "images") / f"{PurePosixPath(uri).stem}.npy"


def score_rows(
    scorer: Scorer, prepared: list[dict[str, Any]], maps: Location | None = None
) -> list[dict[str, Any]]:
    """Scores the prepared rows of one category and type; rows with an error pass through."""
    artifact = scorer.artifact
    threshold = artifact.calibration.pixel_threshold
    rows: list[dict[str, Any]] = [
        {name: row[name] for name in ("uri", "category", "split_type", "label", "error")}
        | {"model_version": artifact.version}
        for row in prepared
    ]
    usable = [i for i, row in enumerate(prepared) if row["error"] is None]
    if not usable:
        return rows
    shape = (*artifact.input_shape, 3)
    images = [np.frombuffer(prepared[i]["image"], np.uint8).reshape(shape) for i in usable]
    counts = PixelCounts()
    for i, verdict in zip(usable, scorer.judge(np.stack(images)), strict=True):
        row = rows[i]
        if verdict is None:
            row["error"] = "not_finite"
            continue
        truth = _unpack_truth(prepared[i])
        full_size = verdict.anomaly_map
        if truth is not None or maps is not None:
            full_size = resize_map(full_size, tuple(prepared[i]["shape"]))
        row["score"] = verdict.score
        row["p_value"] = verdict.p_value
        row["flagged"] = verdict.flagged
        row["heatmap"] = levels_to_png(encode_levels(verdict.anomaly_map, threshold))
        if truth is not None:
            counts.add(full_size, truth)
        if maps is not None:
            place = map_place(maps, row["category"], row["split_type"], row["uri"])
            place.write(_npy(full_size))
    if counts.good_pixels or counts.defective_pixels:
        rows[0]["pixel_counts"] = counts.to_bytes()
    return rows


def _npy(array: npt.NDArray[Any]) -> bytes:
    """The array as a file that ``numpy.load`` reads."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _unpack_truth(row: dict[str, Any]) -> npt.NDArray[np.bool_] | None:
    if row["truth"] is None:
        return None
    height, width = row["shape"]
    bits = np.unpackbits(np.frombuffer(row["truth"], np.uint8), count=height * width)
    return bits.astype(bool).reshape(height, width)
