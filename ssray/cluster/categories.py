"""What the command line and the jobs have in common: data set and store in, results out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssray.cluster.evaluate import evaluate
from ssray.cluster.progress import Progress, Silent
from ssray.cluster.resources import side_by_side
from ssray.cluster.session import ray_session
from ssray.cluster.train import train_category
from ssray.config import Compute
from ssray.data.dataset import categories, index_dataset
from ssray.data.loading import load_images, spread
from ssray.errors import ArtifactError, DataError
from ssray.method.inference import to_network
from ssray.models.store import published
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location
from ssray.training.progress import ProgressRow
from ssray.training.tensorboard import event_log

SAMPLE = 32
SAMPLE_SIDE = 128
_SILENT = Silent()


def train_categories(
    root: Location,
    only: Sequence[str],
    recipe: RecipeRequest,
    compute: Compute,
    store: Location,
    at_once: int | None = None,
    events: Path | None = None,
    progress: Progress = _SILENT,
) -> dict[str, Exception]:
    """Trains categories of a data set on one Ray, as many at once as it holds.

    Each gets its share of the CPUs. A failure stops only its own category.

    Args:
        root: the folder above the categories.
        only: which to train; empty takes all below ``root``.
        recipe: what was asked for; resolved for each category.
        compute: of each training; ``max_minutes`` and ``workers`` count for each.
        store: where the models go.
        at_once: how many to train at once; default: as many as Ray's resources hold now.
        events: a local folder for TensorBoard events, one folder in it for each category.
        progress: is told how it goes.

    Returns:
        The error of each category that failed.

    Raises:
        DataError: if there is no category below ``root``.
    """
    names = list(dict.fromkeys(only)) or categories(root)
    progress.begin(names)
    with ray_session():
        trainings = side_by_side(compute, len(names), at_once)

        def train(name: str) -> str:
            return _train_category_from(
                root, name, recipe, compute, store, trainings.cores, progress, events
            )

        return each_category(names, trainings.at_once, train, progress)


def each_category(
    names: Sequence[str],
    at_once: int,
    work: Callable[[str], str],
    progress: Progress,
    on_end: Callable[[], None] = lambda: None,
) -> dict[str, Exception]:
    """Works on categories in threads; what goes wrong with one leaves the others alone.

    Args:
        names: of the categories.
        at_once: how many to work on at once.
        work: on one, by its name; returns how it ended in a few words.
        progress: is told how each ended.
        on_end: called whenever one has.

    Returns:
        The error of each category that failed.
    """
    failed: dict[str, Exception] = {}
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(work, name): name for name in names}
        for future in as_completed(futures):
            name = futures[future]
            try:
                progress.state(name, future.result())
            except Exception as error:  # whatever it is, the others go on
                failed[name] = error
                progress.state(name, f"failed: {error or type(error).__name__}")
            on_end()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def training_uris(root: Location, category: str) -> list[str]:
    """The defect-free training images of a category.

    Raises:
        DataError: as ``index_dataset``, or if there is none.
    """
    manifest = index_dataset(root, [category])
    training = manifest.filter(pc.equal(manifest["split"], "train"))
    if not len(training):
        raise DataError(f"{root / category}: no images in train/good.")
    uris: list[str] = training["uri"].to_pylist()
    return uris


def _train_category_from(
    root: Location,
    category: str,
    recipe: RecipeRequest,
    compute: Compute,
    store: Location,
    cores: int | None,
    progress: Progress,
    events: Path | None,
) -> str:
    """Trains one category of a data set; returns how it ended, in a few words."""
    progress.state(category, "reading images")
    uris = training_uris(root, category)
    chosen = recipe.resolve(category, lambda: sample_images(uris))
    budget = [f"{chosen.schedule.images:,} images"]
    if chosen.schedule.epochs:
        budget.append(f"{chosen.schedule.epochs:g} passes")
    if compute.max_minutes:
        budget.append(f"{compute.max_minutes:g} minutes")
    progress.state(
        category, f"{len(uris)} images, recipe {chosen.name}, ends after " + " or ".join(budget)
    )
    with event_log(events and events / category) as log:

        def on_row(epoch: ProgressRow) -> None:
            progress.update(category, epoch)
            log(epoch)

        trained = train_category(
            uris,
            category,
            chosen,
            compute,
            store,
            cores=cores,
            on_row=on_row,
            on_state=functools.partial(progress.state, category),
        )
    if trained.new:
        return f"published {trained.version}"
    if trained.published:
        return f"up to date: {trained.version} has this recipe, seed, budget and these images"
    return (
        f"complete but not in use: {trained.version}. To use it: ssray models publish "
        f"--models {store} --category {category} --version {trained.version}"
    )


def sample_images(uris: Sequence[str]) -> Tensor:
    """Up to 32 training images, evenly spread, as (N, 3, H, W) float32 of 128 px.

    Raises:
        DataError: if none can be used.
    """
    loaded = load_images(spread(uris, SAMPLE), SAMPLE_SIDE, threads=os.cpu_count() or 1)
    return to_network(torch.from_numpy(loaded.images), torch.device("cpu"))


def evaluate_categories(
    root: Location,
    only: Sequence[str],
    store: Location,
    compute: Compute,
    out: Location,
    maps: Location | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Evaluates published models on the labelled test images of a data set.

    Args:
        only: categories to evaluate; empty takes those that have both images and a model.
        maps: keeps every anomaly map, ``CATEGORY/TYPE/NAME.npy``.

    Returns:
        The ``METRICS`` and the ``SCORES`` table.

    Raises:
        ArtifactError: if a category asked for has no model, or none has.
        DataError: as ``index_dataset``, or if there are no test images.
    """
    versions = published(store)
    wanted = list(only) or [name for name in categories(root) if name in versions]
    missing = [name for name in wanted if name not in versions]
    if missing or not wanted:
        lacking = ", ".join(missing) or f"any category of {root}"
        raise ArtifactError(
            f"{store}: no published model for {lacking}. "
            f"Models here: {', '.join(versions) or 'none'}."
        )
    manifest = index_dataset(root, wanted)
    tested = manifest.filter(pc.equal(manifest["split"], "test"))["category"].to_pylist()
    untested = [name for name in wanted if name not in tested]
    if untested:
        raise DataError(
            f"{root}: no test images of {', '.join(untested)}. Expected test/TYPE/*.png, or name "
            "other categories with --category."
        )
    chosen = {name: versions[name] for name in wanted}
    with ray_session():
        return evaluate(manifest, store, chosen, compute, out, maps)
