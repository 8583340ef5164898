"""Ensembles of two trials of a search: the best models are tried in pairs, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import ray
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ssray.calibration.calibrate import MAX_TRAINING
from ssray.cluster.resources import WorkerResources, check_capacity
from ssray.cluster.tune import Search
from ssray.data.loading import load_images
from ssray.models.artifact import ModelArtifact, load, save
from ssray.models.device import resolve_device, use_cores
from ssray.search.ensembles import best_ensemble
from ssray.search.trials import TrialResult, ranked
from ssray.storage.json_file import read_json
from ssray.training.images import split_uris

MOST = 4
"""How many of the best models are tried in pairs."""
RESULT = "pair.json"
"""Name of the file that says what came of the pairs, in the folder of the search."""


class _Outcome(BaseModel):
    """What came of trying candidates in pairs, as it is kept for a restart.

    Attributes:
        of: the same for the same candidates.
        ensemble: None if no pair was clearly better than the best of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    ensemble: TrialResult | None


def ensemble_of(search: Search, trials: Sequence[TrialResult]) -> TrialResult | None:
    """The best ensemble of two trials, its model in the trials' store; None if none is worth it.

    Asked again after the same trials, it answers from what it found then.

    Args:
        search: that the trials belong to.
        trials: how they ended.
    """
    candidates = _candidates(search, trials)
    if len(candidates) < 2:
        return None
    place = search.folder / RESULT
    names = json.dumps([search.key, *(trial.version for trial in candidates)])
    key = hashlib.sha256(names.encode()).hexdigest()[:16]
    known = read_json(place, _Outcome, "Delete it, and pairs are tried again.")
    if known and known.of == key:
        return known.ensemble
    worker = WorkerResources.of(search.compute)
    check_capacity(1, worker.cpus, worker.gpus)
    task = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus, max_retries=0)(_find)
    ensemble: TrialResult | None = ray.get(task.remote(search, candidates, worker))
    place.write(_Outcome(of=key, ensemble=ensemble).model_dump_json(indent=2).encode())
    return ensemble


def _candidates(search: Search, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """The best trials with one network each that see photographs as the best one does."""
    found: list[TrialResult] = []
    framing = None
    for trial in ranked(trials):
        recipe = search.recipe_of(trial.settings)
        if trial.state != "finished" or recipe.objective.kind == "ensemble":
            continue
        seen = (recipe.image_size, recipe.alignment, recipe.light, recipe.decoding)
        framing = framing or seen
        if framing == seen and len(found) < MOST:
            found.append(trial)
    return found


def _find(
    search: Search, candidates: Sequence[TrialResult], worker: WorkerResources
) -> TrialResult | None:
    threads = worker.threads()
    use_cores(threads)
    models = [_model(search, trial) for trial in candidates]
    device = resolve_device(worker.device)
    held_out, training = _images(search, models[0], threads)
    found = best_ensemble(models, held_out, training, search.criterion, device)
    if found is None:
        return None
    save(found.model, search.store)
    one, other = candidates[found.first], candidates[found.second]
    selection = found.model.calibration.selection
    return TrialResult(
        trial=f"{one.trial} + {other.trial}",
        settings=one.settings,
        is_default=False,
        state="finished",
        error=selection.error,
        seconds=one.seconds + other.seconds,
        version=found.model.version,
        anomaly_map=found.model.calibration.anomaly_map,
        image_auroc=selection.image_auroc,
        pixel_auroc=selection.pixel_auroc,
        uncertainty=selection.uncertainty,
        partner=other.trial,
    )


def _model(search: Search, trial: TrialResult) -> ModelArtifact:
    assert trial.version is not None
    return load(search.store, search.category, trial.version)


def _images(search: Search, model: ModelArtifact, threads: int) -> tuple[Tensor, Tensor]:
    """Those that the models were not trained on, and some of those that they were."""
    held_out, training = split_uris(search.uris, model.recipe.schedule.holdout, search.compute.seed)
    loaded = (
        load_images(uris, model.framing, threads).images
        for uris in (held_out, training[:MAX_TRAINING])
    )
    one, other = map(torch.from_numpy, loaded)
    return one, other
