"""Ray Tune around ``train_category``: the search of one category.

Each category's search is a Ray task of its own, so that many of them share a cluster, and what goes
wrong in one stays there. A trial is a training like any other, into a store of its own: known by
its images, recipe, seed, budget and criterion, so that no restart repeats one that is complete, and
one that was interrupted goes on from its checkpoint. Tune remembers which settings were tried.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from ray import tune
from ray.tune import Result
from ray.tune.result import DONE
from ray.tune.result_grid import ResultGrid
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.queue import Queue

from ssray.calibration.criterion import Criterion
from ssray.cluster.session import one_line
from ssray.cluster.state_folder import check_private
from ssray.cluster.train import Rung, Trial, train_category
from ssray.config import Compute, Recipe
from ssray.models.artifact import load
from ssray.search.space import FloatRange, SearchSpace, own_values, with_settings
from ssray.search.trials import TrialResult
from ssray.storage.location import Location
from ssray.training.build import training_key

REDUCTION = 3
"""Of three trials that reach a rung, the best one goes on."""
RUNGS = (11, 33)
"""Percent of the budget after which a trial is judged, and may be stopped."""
LEAST_AT_RANDOM = 4
"""Trials before the sampler learns from others, if a third of all are fewer."""
WORST = 1.0
"""The error of a trial whose model could not be judged."""
_MOST_DRAWS = 1000
_STOP_SECONDS = 120
"""How long Tune waits for the workers of a trial that it stops."""
_TUNE_STATE = "experiment_state-"
_TRIAL_MEMORY = 1
"""Bytes. A trial's own process trains nothing, and must not take a CPU from those that do."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What every process of a category's search gets to know.

    Attributes:
        recipe: whose settings are varied; tried as it is in the first trial.
        space: fitted to the recipe.
        trials: how many in all.
        at_once: how many of them.
        store: of the trials' models.
        folder: where Tune keeps its state.
        updates: gets how many more trials have begun, and how many have been trained to their end.
    """

    uris: Sequence[str]
    category: str
    recipe: Recipe
    space: SearchSpace
    criterion: Criterion
    compute: Compute
    trials: int
    at_once: int
    store: Location
    folder: Location
    data_fingerprint: str
    updates: Queue

    @property
    def key(self) -> str:
        """A digest that is the same for searches that try the same."""
        space = {
            key: values.model_dump() if isinstance(values, FloatRange) else values
            for key, values in self.space.items()
        }
        decisive = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"name"}),
            "space": space,
            "criterion": self.criterion.model_dump(mode="json"),
            "seed": self.compute.seed,
            "max_minutes": self.compute.max_minutes,
            "trials": self.trials,
            "data": self.data_fingerprint,
        }
        if self.compute.images_per_step:
            decisive["images_per_step"] = self.compute.images_per_step
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def recipe_of(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of the trial with some settings.

        The light is that of aligned parts where the search's own recipe aligns them, so a trial
        that does not takes images in the light they have.
        """
        recipe = with_settings(self.recipe, settings)
        if recipe.alignment == self.recipe.alignment or "light" in settings:
            return recipe
        return recipe.model_copy(update={"light": None})

    def training_key(self, settings: Mapping[str, Any]) -> str:
        """The key of the training with some settings (``ssray.training.build.training_key``)."""
        recipe = self.recipe_of(settings)
        return training_key(recipe, self.compute, self.data_fingerprint, self.criterion)


def run_search(search: Search) -> list[TrialResult]:
    """Runs or goes on with a search; returns its trials in no particular order.

    Raises:
        ConfigError: if it would go on with what someone else could have written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainable = trainable_of(search)
    place = search.folder / search.key
    if _is_restorable(place):
        check_private(search.folder)
        tuner = tune.Tuner.restore(
            place.path,
            trainable=trainable,
            resume_unfinished=True,
            storage_filesystem=place.filesystem,
        )
        before = [result for result in tuner.get_results() if _is_over(result)]
        search.updates.put((len(before), sum(map(_is_finished, before))))
    else:
        place.delete()
        tuner = _new_tuner(search, trainable)
    return _results(tuner.fit(), search)


def trainable_of(search: Search) -> type[tune.Trainable]:
    """What Tune runs for a trial."""
    trainable: type[tune.Trainable] = tune.with_resources(
        tune.with_parameters(_TrialRun, search=search), {"memory": _TRIAL_MEMORY}
    )
    # Under this name a whole Ray looks the class up: searches side by side need different ones.
    trainable.__name__ = f"{search.category}-{search.key}"
    return trainable


search_category = ray.remote(num_cpus=0, max_retries=0)(run_search)
"""``run_search`` as a task of its own."""


def _is_restorable(place: Location) -> bool:
    """Whether Tune left a state that can be read: a kill may come before the first, or within."""
    if not tune.Tuner.can_restore(place.path, storage_filesystem=place.filesystem):
        return False
    states = [info for info in place.files() if info.base_name.startswith(_TUNE_STATE)]
    try:
        json.loads(place.at(states[-1]).read())
    except (IndexError, OSError, ValueError):
        return False
    return True


def _new_tuner(search: Search, trainable: Any) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="error",
            mode="min",
            num_samples=search.trials,
            max_concurrent_trials=search.at_once,
            search_alg=_DistinctSearch(search),
            scheduler=_SparingTheDefault(_configuration(search)),
        ),
        run_config=tune.RunConfig(
            name=search.key,
            storage_path=search.folder.path,
            storage_filesystem=search.folder.filesystem,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trainings have own
        ),
    )


class _DistinctSearch(Searcher):  # type: ignore[misc]
    """Optuna's sampler (TPE), the recipe as it is first; what it asks for again is left out."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric="error", mode="min")
        self._distributions = {key: _distribution(v) for key, v in search.space.items()}
        at_random = max(LEAST_AT_RANDOM, search.trials // 3)
        sampler = TPESampler(seed=search.compute.seed, n_startup_trials=at_random)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._study.enqueue_trial(_configuration(search))
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._seen: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        for _ in range(_MOST_DRAWS):
            asked = self._study.ask(self._distributions)
            name = json.dumps(asked.params, sort_keys=True)
            if name not in self._seen:
                self._seen.add(name)
                self._asked[trial_id] = asked
                return dict(asked.params)
            self._study.tell(asked, state=TrialState.FAIL)
        finished: str = Searcher.FINISHED
        return finished

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._asked and result["percent"]:
            self._asked[trial_id].report(result["error"], result["percent"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        asked = self._asked.pop(trial_id, None)
        if asked is None:  # suggested after the state that was restored
            return
        if error or not result:
            self._study.tell(asked, state=TrialState.FAIL)
        elif result["percent"] < 100:
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, result["error"])

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))  # noqa: S301


class _SparingTheDefault(ASHAScheduler):  # type: ignore[misc]
    """Successive halving that trains to its end what all others are compared with."""

    def __init__(self, default: Mapping[str, Any]) -> None:
        super().__init__(
            time_attr="percent", max_t=100, grace_period=RUNGS[0], reduction_factor=REDUCTION
        )
        self._default = default

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(controller, trial, result)
        if trial.config == self._default and result["percent"] < 100:
            decision = TrialScheduler.CONTINUE
        return decision


def _distribution(values: Any) -> BaseDistribution:
    """Optuna's distribution of a setting; choices are JSON, as Optuna knows no lists."""
    if isinstance(values, FloatRange):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution([json.dumps(value) for value in values])


def _configuration(search: Search) -> dict[str, Any]:
    """Tune's configuration of the trial with the recipe as it is."""
    return {
        key: float(value) if isinstance(search.space[key], FloatRange) else json.dumps(value)
        for key, value in own_values(search.space, search.recipe).items()
    }


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that Tune's configuration of a trial stands for."""
    return {k: json.loads(v) if isinstance(v, str) else v for k, v in config.items()}


class _TrialRun(tune.Trainable):  # type: ignore[misc]
    """A training that reports at its rungs, and ends in good order when Tune stops it.

    Where Tune kills a trial's process instead, Ray Train's placement group stays, and with it the
    CPUs or GPUs of its workers.
    """

    def setup(self, config: dict[str, Any], search: Search) -> None:
        self._search, self._settings = search, _settings(config)
        self._stop = search.folder / "stop" / self.trial_id
        self._stop.delete()
        self._reported: dict[str, Any] = {"percent": 0, "error": WORST, "first_error": None}
        self._reports: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self._reports.put(dict(self._reported))  # Tune forgets a trial that never reported
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """Waits for the next report."""
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def cleanup(self) -> None:
        """Ends the training if it still runs."""
        if self._thread.is_alive():
            self._stop.write(b"")
            self._thread.join(_STOP_SECONDS)
        self._stop.delete()

    def _train(self) -> None:
        search = self._search
        search.updates.put((1, 0))
        try:
            trained = train_category(
                search.uris,
                search.category,
                search.recipe_of(self._settings),
                search.compute,
                search.store,
                trial=Trial(search.criterion, [percent / 100 for percent in RUNGS], self._stop),
                on_rung=self._on_rung,
            )
            model = load(search.store, search.category, trained.version)
        except BaseException as error:
            self._reports.put(error)
            return
        search.updates.put((0, 1))
        self._report(
            100, model.calibration.selection.error, version=trained.version, **{DONE: True}
        )

    def _on_rung(self, rung: Rung) -> None:
        if rung.share == RUNGS[0] / 100:
            self._reported["first_error"] = rung.error
        self._report(round(100 * rung.share), rung.error)

    def _report(self, percent: int, error: float | None, **others: Any) -> None:
        self._reported.update(others, percent=percent, error=WORST if error is None else error)
        self._reports.put(dict(self._reported))


def _results(grid: ResultGrid, search: Search) -> list[TrialResult]:
    own = own_values(search.space, search.recipe)
    return [_result(result, search, own) for result in grid]


def _is_finished(result: Result) -> bool:
    return (result.metrics or {}).get("percent") == 100


def _is_over(result: Result) -> bool:
    return _is_finished(result) or result.error is not None


def _result(result: Result, search: Search, own: Mapping[str, Any]) -> TrialResult:
    metrics = result.metrics or {}
    settings = _settings(result.config or {})
    version = metrics.get("version")
    common = TrialResult(
        trial=metrics.get("trial_id") or PurePosixPath(result.path).name,
        settings=settings,
        is_default=settings == own,
        state="failed" if result.error else "stopped",
        error=metrics.get("error") if metrics.get("percent") else None,
        first_error=metrics.get("first_error"),
        seconds=metrics.get("time_total_s", 0.0),
        reason=one_line(result.error) if result.error else None,
    )
    if version is None:
        return common
    model = load(search.store, search.category, version)
    selection = model.calibration.selection
    return common.model_copy(
        update={
            "state": "finished",
            "error": selection.error,
            "seconds": model.facts.seconds,
            "version": version,
            "anomaly_map": model.calibration.anomaly_map,
            "image_auroc": selection.image_auroc,
            "pixel_auroc": selection.pixel_auroc,
            "uncertainty": selection.uncertainty,
            "reason": None,
        }
    )
