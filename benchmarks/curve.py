"""AUROC against training minutes, from snapshots of one run.

    python benchmarks/curve.py --data ROOT --category C --models STORE --max-minutes 60

trains as ``ssray train`` does, with the default recipe and as many threads as there are cores,
keeps the averaged weights at some minutes, and publishes the last ones in ``STORE``. Snapshots are
calibrated and measured after the training, so that its minutes are its own.
"""

from __future__ import annotations

import argparse
import json
import os

import pyarrow.compute as pc
import torch
from labelled import TestSet, difference_stack
from torch import Tensor, nn

import ssray
from ssray import artifact
from ssray.artifact import ModelArtifact, TrainingFacts, new_version
from ssray.building import split_held_out
from ssray.calibration import calibrate
from ssray.cluster.workflow import sample_images
from ssray.data.index import index_dataset
from ssray.data.loading import load_images
from ssray.data.storage import Location
from ssray.device import resolve_precision
from ssray.method.anomaly_map import MapMaker
from ssray.method.autoencoder import Autoencoder
from ssray.recipes import RecipeRequest
from ssray.training import Epoch, fit

CPU = torch.device("cpu")
MINUTES = (1, 2, 4, 7, 10, 15, 20, 30, 40, 50)


def main() -> None:
    """Trains once, then prints a row a snapshot."""
    parser = argparse.ArgumentParser(description="AUROC against training minutes.")
    for name in ("data", "category", "models"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--max-minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    manifest = index_dataset(Location.parse(options.data), [options.category])
    uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
    request = RecipeRequest(options.recipe, tuple(options.set))
    recipe = request.resolve(options.category, lambda: sample_images(uris))
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    loaded = load_images(uris, recipe.image_size, threads)
    training, held_out = split_held_out(
        torch.from_numpy(loaded.images), recipe.schedule.holdout, options.seed
    )
    precision = resolve_precision("auto", CPU, recipe.network)
    snapshots: list[tuple[Epoch, dict[str, Tensor]]] = []

    def keep(epoch: Epoch, network: nn.Module) -> None:
        print(json.dumps(vars(epoch)), flush=True)
        due = [minute for minute in MINUTES if 60 * minute <= epoch.seconds]
        if len(due) > len(snapshots) or epoch.budget_spent == 1:
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            snapshots.append((epoch, weights))

    fit(
        training,
        held_out,
        recipe,
        device=CPU,
        precision=precision,
        seed=options.seed,
        max_minutes=options.max_minutes,
        on_epoch=keep,
    )
    test_set = TestSet.read(manifest, recipe.image_size)
    network = Autoencoder(recipe.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for epoch, weights in snapshots:
        network.load_state_dict(weights)
        network.eval()
        calibration, average = calibrate(
            [network], held_out, training, recipe, precision, options.seed
        )
        chosen = calibration.anomaly_map
        maker = MapMaker(chosen, torch.tensor(calibration.scale), average)
        stack = difference_stack([network], test_set.images, chosen.difference, precision)
        image, pixel = test_set.judge(maker, stack)
        print(
            f"{epoch.seconds / 60:6.1f} min  {epoch.images_seen:9,.0f} images  "
            f"validation {epoch.validation_loss:.5f}  image {image:.4f}  pixel {pixel:.4f}  "
            f"k {chosen.kernel}, {chosen.image_score} {chosen.top_fraction:g}",
            flush=True,
        )
    model = ModelArtifact(
        category=options.category,
        version=new_version(),
        recipe=recipe,
        calibration=calibration,
        facts=TrainingFacts(
            training_images=len(training),
            held_out_images=len(held_out),
            skipped_images=len(loaded.skipped),
            input_shape=(training.shape[1], training.shape[2]),
            images_seen=epoch.images_seen,
            seconds=epoch.seconds,
            validation_loss=epoch.validation_loss,
            device="cpu",
            precision="bfloat16" if precision == torch.bfloat16 else "float32",
            workers=1,
            seed=options.seed,
            ssray_version=ssray.__version__,
            torch_version=torch.__version__,
        ),
        weights=(weights,),
        average_map=average,
    )
    artifact.save(model, Location.parse(options.models))


if __name__ == "__main__":
    main()
