"""AUROC against training minutes, from snapshots of one run.

    python benchmarks/curve.py --data ROOT --category C --models STORE --max-minutes 60

trains as ``ssray train`` does, with as many threads as cores it may use, and publishes the model in
``STORE``. At some minutes the averaged weights are put aside, in ``STORE/CATEGORY/VERSION``;
calibrating and measuring them comes after the training, so that its minutes are its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.compute as pc
import safetensors.torch
import torch
from labelled import TestSet, category_parser, judge

from ssray.calibration.calibrate import MAX_TRAINING, calibrate
from ssray.cluster.categories import survey_of
from ssray.config import Compute
from ssray.data.dataset import index_dataset
from ssray.method.autoencoder import Autoencoder
from ssray.method.inference import Reconstructor
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.models.artifact import new_version
from ssray.recipes.request import RecipeRequest
from ssray.storage.location import Location
from ssray.training.build import BuildRequest, Callbacks, build_model
from ssray.training.execution import Snapshot
from ssray.training.images import load_feed
from ssray.training.progress import ProgressRow

CPU = torch.device("cpu")
MINUTES = (1, 2, 4, 7, 10, 15, 20, 30, 40, 50, 60)


def main() -> None:
    """Trains once, then prints a row a snapshot."""
    parser = category_parser("AUROC against training minutes.")
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--max-minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    manifest = index_dataset(Location.parse(options.data), [options.category])
    uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
    request = RecipeRequest(options.recipe, tuple(options.set))
    recipe = request.resolve(options.category, lambda: survey_of(uris))
    threads = len(os.sched_getaffinity(0))
    compute = Compute(max_minutes=options.max_minutes, seed=options.seed)
    version = new_version()
    before = model_store.in_use(Location.parse(options.models), options.category)
    place = Path(options.models) / options.category / version
    place.mkdir(parents=True)
    epochs: list[ProgressRow] = []

    def keep(progress: Snapshot) -> None:
        epoch, network = progress.history[-1], progress.network
        print(json.dumps(vars(epoch)), flush=True)
        due = [minute for minute in MINUTES if 60 * minute <= epoch.seconds]
        if len(due) > len(epochs) or epoch.budget_spent == 1:
            file = place / f"snapshot-{len(epochs):02}.safetensors"
            weights = {name: value.contiguous() for name, value in network.state_dict().items()}
            file.write_bytes(safetensors.torch.save(weights))
            epochs.append(epoch)

    model = build_model(
        BuildRequest(uris, options.category, version, recipe, compute),
        CPU,
        threads=threads,
        callbacks=Callbacks(on_row=keep),
    )
    assert model is not None  # this is rank 0
    store = Location.parse(options.models)
    artifact.save(model, store)
    model_store.publish(store, options.category, version, before)
    feed = load_feed(uris, recipe, threads, options.seed)
    precision = model.precision("auto", CPU)
    test_set = TestSet.read(manifest, model.framing)
    network = Autoencoder(recipe.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    linear = model.build_linear(CPU)
    for number, epoch in enumerate(epochs):
        file = place / f"snapshot-{number:02}.safetensors"
        network.load_state_dict(safetensors.torch.load(file.read_bytes()))
        network.eval()
        networks = [network, linear] if linear else [network]
        calibration, average = calibrate(
            Reconstructor(networks, precision),
            feed.held_out,
            feed.sample(MAX_TRAINING),
            recipe,
            options.seed,
        )
        chosen = calibration.anomaly_map
        image, pixel = judge(networks, calibration, average, test_set, precision)
        print(
            f"{epoch.seconds / 60:6.1f} min  {epoch.images_seen:9,.0f} images  "
            f"validation {epoch.validation_loss:.5f}  image {image:.4f}  pixel {pixel:.4f}  "
            f"k {chosen.kernel}, {chosen.image_score} {chosen.top_fraction:g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
