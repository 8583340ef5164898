"""Searches over many categories at once, and what comes of them: models in use, tables, a page."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.compute as pc
import ray
from ray.util.queue import Empty, Queue

import ssray
from ssray.calibration.calibrate import MAX_REFERENCES
from ssray.calibration.criterion import Criterion
from ssray.calibration.defect_images import LabelledImage
from ssray.calibration.map_settings import NT, WIDE, Grid
from ssray.cluster.categories import each_category, survey_of
from ssray.cluster.ensembles import ensemble_of
from ssray.cluster.progress import Progress, Silent
from ssray.cluster.resources import side_by_side
from ssray.cluster.session import one_line, ray_session
from ssray.cluster.state_folder import make_private
from ssray.cluster.train import TRAININGS
from ssray.cluster.tune import Search, search_category
from ssray.config import STRIDE, Basis, Compute
from ssray.data.dataset import categories, index_dataset, training_uris
from ssray.data.labels import GOOD
from ssray.data.loading import FirstLook, common_shape
from ssray.data.masks import with_mask_levels
from ssray.errors import ConfigError, DataError, PoorModelError, SsrayError, TrainingError
from ssray.models.artifact import SweepFacts, load, save
from ssray.models.quality import refusal
from ssray.models.store import in_use, publish
from ssray.models.stored import is_complete
from ssray.recipes.request import RecipeRequest, with_bits
from ssray.report.search import render_sweep
from ssray.search.space import (
    SPACES,
    fitted_to,
    largest_size,
    read_space,
    seen_alike,
    size_of,
)
from ssray.search.trials import CategorySweep, TrialResult, best, leaderboard
from ssray.storage.fingerprint import fingerprint
from ssray.storage.json_file import read_json
from ssray.storage.lease import Lease
from ssray.storage.location import Location
from ssray.storage.parquet import write_table
from ssray.training.images import data_fingerprint, split_uris

STATE = ".sweep"
"""Folder of the results for what a restart needs."""
RESULT = "search.json"
"""How the search of a category ended, below ``STATE``."""
MODELS = "trials"
"""Folder of the results with the trials' models."""
_POLL_SECONDS = 0.5
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a user asked for.

    Attributes:
        recipe: whose settings are varied.
        space: a name, or the place of a file.
        trials: of each category, the recipe itself included.
        by: what chooses.
        validation: the folder above the categories of a labelled validation set, if that chooses.
        grid: settings of the anomaly map to try on every model; None tries repetitions and average
            maps, and all there are where labelled images choose.
        ensemble: whether the best models are tried in pairs, too.
        force: whether the best model goes into use even if it can't be shown to be better than
            guessing.
        good_name: the name of the folders of good images.
    """

    recipe: RecipeRequest
    space: str = "default"
    trials: int = 12
    by: Basis = "synthetic"
    validation: Location | None = None
    grid: Grid | None = None
    ensemble: bool = False
    force: bool = False
    good_name: str = GOOD

    def __post_init__(self) -> None:
        """Finds mistakes before any data is read.

        Raises:
            ConfigError: if there is no such space, or a validation set is missing or not used.
        """
        read_space(self.space)
        if (self.by == "labelled") != (self.validation is not None):
            raise ConfigError(
                "--select-by labelled and --validation ROOT go together: the labelled images that "
                "choose are to be others than those the models are evaluated on."
            )
        if self.ensemble and self.by == "reconstruction":
            raise ConfigError(
                "--ensemble: the reconstruction error does not tell how good an ensemble is. Use "
                "--select-by synthetic or labelled."
            )

    @property
    def map_grid(self) -> Grid:
        """The settings of the anomaly map to try on every model.

        Synthetic defects choose neither difference nor kernel by default: they can't tell how large
        real ones are.
        """
        return self.grid or (WIDE if self.by == "labelled" else NT)


def sweep_categories(
    root: Location,
    only: Sequence[str],
    request: SweepRequest,
    compute: Compute,
    store: Location,
    out: Location,
    progress: Progress = _SILENT,
) -> dict[str, Exception]:
    """Searches categories of a data set on one Ray and publishes the best model of each.

    Started again with the same arguments, it goes on where it was.

    Args:
        root: the folder above the categories.
        only: which to search; empty takes all below ``root``.
        request: what to search, and how.
        compute: of each trial.
        store: where the best models go.
        out: ``leaderboard.parquet``, ``sweep.html``, the trials' models, and what a restart needs.
        progress: is told how it goes.

    Returns:
        The error of each category that failed.

    Raises:
        DataError: if there is no category below ``root``.
    """
    names = list(dict.fromkeys(only)) or categories(root)
    progress.begin(names)
    with ray_session():
        trainings = side_by_side(compute, len(names) * request.trials)
        if trainings.cores:
            cpus = max(1, trainings.cores // (compute.workers or 1))
            compute = compute.model_copy(update={"cpus_per_worker": cpus})
        searches_at_once = min(len(names), trainings.at_once)
        each = max(1, trainings.at_once // searches_at_once)
        sweep = _Sweep(root, request, compute, store, out, each, progress)
        return each_category(
            names, searches_at_once, sweep.search, progress, on_end=lambda: _write_results(out)
        )


@dataclass(frozen=True)
class _Sweep:
    """What the searches of all categories have in common."""

    root: Location
    request: SweepRequest
    compute: Compute
    store: Location
    out: Location
    at_once: int
    progress: Progress

    def search(self, category: str) -> str:
        """Searches one category; returns how it ended in a few words."""
        self.progress.state(category, "reading images")
        before = in_use(self.store, category)
        search = self._begun(category)
        make_private(search.folder)
        lease = Lease(search.folder / f"{search.key}.lease", f"{category}: the same search")
        try:
            with lease, _Reported(self.progress, search):
                trials: list[TrialResult] = ray.get(search_category.remote(search))
                if self.request.ensemble:
                    self.progress.state(category, "trying pairs of the best models")
                    pair = ensemble_of(search, trials)
                    trials += [pair] if pair else []
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SsrayError):
                raise error.cause from error
            raise TrainingError(f"{category}: {one_line(error)}") from error
        finally:
            search.updates.shutdown()
        swept = CategorySweep(
            category=category, recipe=search.recipe.name, by=search.criterion.by, trials=trials
        )
        (search.folder / RESULT).write(swept.model_dump_json(indent=2).encode())
        return self._put_into_use(search, _chosen(category, trials), trials, before)

    def _begun(self, category: str) -> Search:
        """The search of a category, once its images and the user's settings have been looked at."""
        uris = sorted(training_uris(self.root, category, self.request.good_name))
        look = FirstLook.at(uris, os.cpu_count() or 1)
        bits = look.bits
        survey = survey_of(uris, bits)  # where none can be used, no trial needs to find out
        recipe = with_bits(self.request.recipe.resolve(category, lambda: survey), bits)
        if recipe.alignment is None and (warning := look.too_different(recipe.image_size)):
            self.progress.note(category, warning)
        if self.request.ensemble and recipe.decision.folds:
            raise ConfigError(
                f"{category}: --ensemble and --calibration-folds exclude each other: models of "
                "different trials have no folds in common."
            )
        wanted = read_space(self.request.space)(recipe)
        if self.request.by == "reconstruction":
            wanted = seen_alike(wanted, stated=self.request.space not in SPACES)
        space = fitted_to(wanted, recipe)
        held_out, _ = split_uris(uris, recipe.schedule.holdout, self.compute.seed)
        labelled = _labelled(self.request.validation, category, self.request.good_name)
        files = [row.uri for row in labelled]
        files += [uri for row in labelled for uri in row.mask_uris]
        return Search(
            uris=uris,
            category=category,
            recipe=recipe,
            space=space,
            criterion=Criterion(
                by=self.request.by,
                seed=self.compute.seed,
                labelled=labelled,
                labelled_fingerprint=fingerprint(files),
                photographs=tuple(held_out[:MAX_REFERENCES]),
                image_size=largest_size(space, recipe),
                alignment=recipe.alignment,
                grid=self.request.map_grid,
            ),
            compute=self.compute,
            trials=min(self.request.trials, size_of(space)),
            at_once=self.at_once,
            store=self.out / MODELS,
            folder=self.out / STATE / category,
            data_fingerprint=data_fingerprint(uris, recipe),
            updates=Queue(actor_options={"num_cpus": 0}),
        )

    def _put_into_use(
        self, search: Search, chosen: _Chosen, trials: Sequence[TrialResult], before: str | None
    ) -> str:
        """Puts the best trial's model into use, in place of the version before the search; returns
        how the search ended in a few words.

        Raises:
            PoorModelError: if the model is hardly better than guessing, and not forced.
        """
        category, version = search.category, chosen.version
        model = load(search.store, category, version)
        refused = refusal(model)
        if is_complete(self.store / category / version):
            if in_use(self.store, category) == version:
                return f"up to date: {version}"
            if not refused:
                return (
                    f"complete but not in use: {version}. To use it: ssray models publish "
                    f"--models {self.store} --category {category} --version {version}"
                )
        else:
            facts = model.facts.model_copy(update={"sweep": _facts(search, chosen, trials)})
            save(dataclasses.replace(model, facts=facts), self.store)
        if refused and not self.request.force:
            raise PoorModelError(refused)
        publish(self.store, category, version, before)
        _delete_checkpoints(search, trials)
        return f"published {version}, {_origin(chosen.trial)}; {_count(trials)}"


@dataclass(frozen=True)
class _Chosen:
    """The best trial of a search, which has a model that could be judged."""

    trial: TrialResult
    version: str
    error: float


def _chosen(category: str, trials: Sequence[TrialResult]) -> _Chosen:
    """The best of the trials.

    Raises:
        TrainingError: if none has a model that could be judged.
    """
    trial = best(trials)
    if trial is None or trial.version is None or trial.error is None:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise TrainingError(
            f"{category}: none of {len(trials)} trials ended with a model that could be "
            f"judged. {' '.join(reasons)}"
        )
    return _Chosen(trial, trial.version, trial.error)


def _facts(search: Search, chosen: _Chosen, trials: Sequence[TrialResult]) -> SweepFacts:
    """What the model says of the search that it comes from."""
    single = [trial for trial in trials if trial.partner is None]
    return SweepFacts(
        key=search.key,
        trial=chosen.trial.trial,
        criterion=search.criterion.by,
        error=chosen.error,
        default_error=next((trial.error for trial in trials if trial.is_default), None),
        trials=len(single),
        finished=sum(trial.state == "finished" for trial in single),
        settings=chosen.trial.settings,
        partner=chosen.trial.partner,
    )


def _delete_checkpoints(search: Search, trials: Sequence[TrialResult]) -> None:
    """Deletes what trials that were not trained to their end would go on from."""
    for trial in trials:
        if trial.partner is None and trial.state != "finished":
            key = search.training_key(trial.settings)
            (search.store / TRAININGS / search.category / key).delete()


def _origin(trial: TrialResult) -> str:
    """Where a model comes from, for people."""
    if trial.is_default:
        return "the recipe as it is"
    return f"{'ensemble' if trial.partner else 'trial'} {trial.trial}"


def _write_results(out: Location) -> None:
    """``leaderboard.parquet`` and ``sweep.html``, of all categories that were searched so far."""
    places = [out.at(info) for info in (out / STATE).files() if info.base_name == RESULT]
    remedy = "Delete it, and the next sweep of its category writes it again."
    found = (read_json(place, CategorySweep, remedy) for place in places)
    sweeps = [sweep for sweep in found if sweep]
    write_table(leaderboard({s.category: s.trials for s in sweeps}), out / "leaderboard.parquet")
    generated = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    (out / "sweep.html").write(render_sweep(sweeps, generated, ssray.__version__).encode())


class _Reported:
    """Hands on what the trials of a search report, while the block runs."""

    def __init__(self, progress: Progress, search: Search) -> None:
        self._progress, self._search = progress, search
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        self._thread.join()

    def _follow(self) -> None:
        begun = finished = 0
        while not self._left.is_set():
            try:
                more_begun, more_finished = self._search.updates.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            except ray.exceptions.RayError:
                return
            begun += more_begun
            finished += more_finished
            self._progress.state(
                self._search.category,
                f"{begun} of {self._search.trials} trials begun, {finished} finished",
            )


def _labelled(
    validation: Location | None, category: str, good_name: str
) -> tuple[LabelledImage, ...]:
    """The test images of a category of the validation set.

    Raises:
        DataError: if it has none, or no defective one can be used.
    """
    if validation is None:
        return ()
    rows = index_dataset(validation, [category], good_name)
    rows = with_mask_levels(rows.filter(pc.equal(rows["split"], "test"))).to_pylist()
    defective = [row["uri"] for row in rows if row["label"]]
    if not defective:
        raise DataError(
            f"{validation / category}: no defective image in test/; nothing to choose by."
        )
    common_shape(defective, STRIDE, threads=os.cpu_count() or 1)
    return tuple(
        LabelledImage(
            uri=row["uri"],
            defective=bool(row["label"]),
            mask_uris=row["mask_uris"] or (),
            mask_level=row["mask_level"],
        )
        for row in rows
    )


def _count(trials: Sequence[TrialResult]) -> str:
    """How the trials ended, such as "4 finished, 7 stopped early, 1 failed"; ensembles apart."""
    names = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    counts = {
        name: sum(trial.state == state and trial.partner is None for trial in trials)
        for state, name in names.items()
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
