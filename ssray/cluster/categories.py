"""What the command line and the jobs have in common: data set and store in, results out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ssray.cluster.evaluate import evaluate
from ssray.cluster.progress import Progress, Silent
from ssray.cluster.resources import side_by_side
from ssray.cluster.session import ray_session
from ssray.cluster.train import Trained, train_category
from ssray.config import Compute, Decoding
from ssray.data.dataset import categories, index_dataset, index_images, training_uris
from ssray.data.labels import GOOD
from ssray.data.loading import FirstLook, common_shape, load_images, spread
from ssray.data.pose import Framing
from ssray.errors import ArtifactError, ConfigError, DataError, PoorModelError
from ssray.models.artifact import load
from ssray.models.quality import in_words, refusal
from ssray.models.store import in_use, publish, published
from ssray.recipes.request import RecipeRequest, with_bits
from ssray.recipes.survey import Survey
from ssray.storage.location import Location
from ssray.training.progress import ProgressRow
from ssray.training.tensorboard import event_log

SAMPLE = 64
"""How many training images are looked at to choose a recipe."""
SAMPLE_SIDE = 384
"""The side of a square with as many pixels as they are shrunk to."""
MAX_NAME_BYTES = 200
"""How long a category's name may be: file systems allow 255 bytes a folder, some less."""
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
    force: bool = False,
    good_name: str = GOOD,
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
        force: puts a model into use even if it can't be shown to be better than guessing.
        good_name: the name of the folders of good images.

    Returns:
        The error of each category that failed.

    Raises:
        DataError: if there is no category below ``root``, or one asked for is not there.
    """
    present = categories(root)
    names = list(dict.fromkeys(only)) or present
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(f"{root}: no category {', '.join(missing)}. Found: {', '.join(present)}.")
    sources = {name: functools.partial(training_uris, root, name, good_name) for name in names}
    return _train(sources, recipe, compute, store, at_once, events, progress, force)


def train_on_folder(
    good: Location,
    name: str,
    recipe: RecipeRequest,
    compute: Compute,
    store: Location,
    events: Path | None = None,
    progress: Progress = _SILENT,
    force: bool = False,
) -> None:
    """Trains one model on every image below a folder.

    Args:
        good: a folder or prefix of defect-free images, at any depth.
        name: of the category, in the store.
        recipe: what was asked for.
        compute: of the training.
        store: where the model goes.
        events: a local folder for TensorBoard events.
        progress: is told how it goes.
        force: puts the model into use even if it can't be shown to be better than guessing.

    Raises:
        ConfigError: if the name is none.
        DataError: if there is no image.
        PoorModelError: if the model is hardly better than guessing, and not forced.
        SsrayError: as ``train_category``.
    """
    if not name or name.startswith(".") or "/" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(
            f"'{name}' can't be the name of a category: it becomes a folder of the store. Expected "
            "a word such as bracket, without '/', not beginning with '.' and of at most "
            f"{MAX_NAME_BYTES} bytes."
        )

    def uris() -> list[str]:
        found: list[str] = index_images(good, name)["uri"].to_pylist()
        return found

    failed = _train({name: uris}, recipe, compute, store, 1, events, progress, force)
    for error in failed.values():
        raise error


def _train(
    sources: Mapping[str, Callable[[], list[str]]],
    recipe: RecipeRequest,
    compute: Compute,
    store: Location,
    at_once: int | None,
    events: Path | None,
    progress: Progress,
    force: bool,
) -> dict[str, Exception]:
    """Trains categories on one Ray; ``sources`` gives the training images of each."""
    progress.begin(list(sources))
    with ray_session():
        trainings = side_by_side(compute, len(sources), at_once)

        def train(name: str) -> str:
            uris, cores, before = sources[name], trainings.cores, in_use(store, name)
            trained = _train_one(uris, name, recipe, compute, store, cores, progress, events)
            return _outcome(trained, name, store, before, progress, force)

        return each_category(list(sources), trainings.at_once, train, progress)


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
        progress: is told how each ended; why a single one failed is left to whoever gets the error.
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
                reason = f"failed: {error or type(error).__name__}"
                progress.state(name, reason if len(names) > 1 else "failed")
            on_end()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _train_one(
    source: Callable[[], list[str]],
    category: str,
    recipe: RecipeRequest,
    compute: Compute,
    store: Location,
    cores: int | None,
    progress: Progress,
    events: Path | None,
) -> Trained:
    """Trains one category of a data set."""
    progress.state(category, "reading images")
    uris = source()
    look = FirstLook.at(uris, os.cpu_count() or 1)
    bits = look.bits
    if bits:
        progress.note(category, f"training images have {bits} bits in use of those in their files")
    chosen = with_bits(
        recipe.resolve(category, lambda: _surveyed(uris, bits, category, progress)), bits
    )
    if chosen.alignment is None and (warning := look.too_different(chosen.image_size)):
        progress.note(category, warning)
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

        return train_category(
            uris,
            category,
            chosen,
            compute,
            store,
            cores=cores,
            on_row=on_row,
            on_state=functools.partial(progress.state, category),
        )


def _outcome(
    trained: Trained,
    category: str,
    store: Location,
    before: str | None,
    progress: Progress,
    force: bool,
) -> str:
    """Says how a training ended, in a few words; a model that was refused goes into use by force,
    in place of the version ``before`` that was in use when it began.

    Raises:
        ConflictError: if another version was published meanwhile.
        PoorModelError: if the model is hardly better than guessing, and not forced.
    """
    model = load(store, category, trained.version)
    for line in in_words(model):
        progress.note(category, line)
    if trained.published and trained.new:
        return f"published {trained.version}"
    if trained.published:
        return f"up to date: {trained.version} has this recipe, seed, budget and these images"
    refused = refusal(model)
    if refused and not force:
        raise PoorModelError(refused)
    if refused:
        publish(store, category, trained.version, before)
        return f"published {trained.version} by force, in place of {before or 'none'}"
    return (
        f"complete but not in use: {trained.version}. To use it: ssray models publish "
        f"--models {store} --category {category} --version {trained.version}"
    )


def _surveyed(uris: Sequence[str], bits: int | None, category: str, progress: Progress) -> Survey:
    """Looks at some training images, and says what they show."""
    survey = survey_of(uris, bits)
    progress.note(category, survey.in_words())
    return survey


def survey_of(uris: Sequence[str], bits: int | None = None) -> Survey:
    """What up to ``SAMPLE`` training images show, evenly spread over all.

    Args:
        uris: the training images.
        bits: those in use of images of more than 8 bits (``FirstLook``).

    Raises:
        DataError: if none can be used.
    """
    chosen, threads = spread(uris, SAMPLE), os.cpu_count() or 1
    shape = common_shape(chosen, SAMPLE_SIDE, threads)
    loaded = load_images(chosen, Framing(shape, decoding=Decoding(bits=bits)), threads)
    return Survey.of(loaded.images)


def evaluate_categories(
    root: Location,
    only: Sequence[str],
    store: Location,
    compute: Compute,
    out: Location,
    maps: Location | None = None,
    on_scored: Callable[[int, int], None] = lambda done, count: None,
    good_name: str = GOOD,
) -> tuple[pa.Table, pa.Table]:
    """Evaluates published models on the labelled test images of a data set.

    Args:
        only: categories to evaluate; empty takes those that have both images and a model.
        maps: keeps every anomaly map, ``CATEGORY/TYPE/NAME.npy``.
        on_scored: called with how many images are scored, and how many there are.
        good_name: the name of the folders of good images.

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
    table = index_dataset(root, wanted, good_name)
    tested = table.filter(pc.equal(table["split"], "test"))["category"].to_pylist()
    untested = [name for name in wanted if name not in tested]
    if untested:
        raise DataError(
            f"{root}: no test images of {', '.join(untested)}. Expected test/TYPE/*.png, or name "
            "other categories with --category."
        )
    chosen = {name: versions[name] for name in wanted}
    with ray_session():
        return evaluate(table, store, chosen, compute, out, maps, on_scored)
