"""What each expert of a model is worth: the autoencoders, the neighbours, both joined.

    python benchmarks/experts.py --data ROOT --category C --models STORE [--features FILE]
        [--contaminated 0.05]

Takes the networks of the published model, fits the memory bank again, and calibrates each way of
making maps as a training does, so nothing is trained and no label is used but for the figures. The
column "synthetic" is the image AUROC on synthetic defects, by which experts are chosen. The row
"chosen" is what a training would have taken. With ``--contaminated``, so many of the images in the
bank are defective ones of the test set, which then do not count in the figures: what becomes of a
bank that was filled with parts that nobody looked at closely.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from labelled import TestSet, category_parser
from torch import Tensor

from ssray.calibration.calibrate import MAX_TRAINING, calibrate, filling_up
from ssray.config import Recipe, override
from ssray.data.dataset import index_dataset
from ssray.data.pretrained_weights import read_weights
from ssray.method.anomaly_map import Comparers
from ssray.method.feature_difference import FeatureDifference
from ssray.method.inference import Reconstructor, image_batches
from ssray.method.neighbours import MOST_IMAGES, MemoryBank
from ssray.method.pretrained import FeatureNetwork
from ssray.metrics.images import image_auroc
from ssray.models import artifact
from ssray.models.store import published_version
from ssray.recipes.request import with_features
from ssray.scoring.backends import on_openvino
from ssray.storage.location import Location
from ssray.training.images import load_feed

CPU = torch.device("cpu")
WAYS: dict[str, tuple[str, ...]] = {
    "autoencoders": ("anomaly_map.experts=autoencoders",),
    "in features": ("anomaly_map.experts=autoencoders", "anomaly_map.difference=features"),
    "neighbours": ("anomaly_map.experts=neighbours",),
    "joined": ("anomaly_map.experts=joined",),
    "chosen": (),
}
COLUMNS = (
    "image AUROC",
    "pixel AUROC",
    "AU-PRO 0.3",
    "held-out",
    "false alarms",
    "s an image",
    "synthetic",
)


@dataclass(frozen=True)
class Category:
    """What stays the same for all ways.

    Attributes:
        recipe: of the model, with its second expert.
        seed: of the model's training.
        experts: all of them.
        judged: the same with neighbours that do not know the references among the training images.
        held_out: (M, H, W, 3) uint8, images that none of them knows.
        training: (N, H, W, 3) uint8, images that they know.
        test_set: labelled images.
    """

    recipe: Recipe
    seed: int
    experts: Reconstructor
    judged: Reconstructor | None
    held_out: Tensor
    training: Tensor
    test_set: TestSet


def main() -> None:
    """Prints a row for each way."""
    parser = category_parser(__doc__ or "")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--contaminated", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Location.parse(options.models)
    version = published_version(store, options.category)
    model = artifact.load(store, options.category, version)
    manifest = index_dataset(Location.parse(options.data), [options.category])
    category = read(model, manifest, options.features, options.contaminated)
    print(f"{options.category} {version}, {len(category.held_out)} held-out images")
    print(f"{'':14s}" + "".join(f"{name:>14s}" for name in COLUMNS), flush=True)
    for name, settings in WAYS.items():
        whose, figures = judged(category, settings)
        values = "".join(f"{value:14.4f}" for value in figures)
        print(f"{name:14s}{values}" + (f"  {whose}" if name == "chosen" else ""), flush=True)


def read(
    model: artifact.ModelArtifact, manifest: pa.Table, weights: str, contaminated: float
) -> Category:
    """Reads images and networks, and fits the memory bank."""
    recipe = with_features(model.recipe, weights)
    assert recipe.features is not None
    uris = manifest.filter(pc.equal(manifest["split"], "train"))["uri"].to_pylist()
    feed = load_feed(uris, recipe, threads=1, seed=model.facts.seed)
    test_set = TestSet.read(manifest, model.framing)
    seen = feed.sample(MOST_IMAGES)
    if contaminated:
        defective = np.flatnonzero(test_set.labels)
        count = max(1, round(contaminated * len(seen) / (1 - contaminated)))
        chosen = np.random.default_rng(model.facts.seed).permutation(defective)[:count]
        seen = torch.cat([seen, test_set.images[chosen]])
        test_set = test_set.without(chosen)
    network = FeatureNetwork.of(read_weights(weights), weights)
    start = time.perf_counter()
    bank = MemoryBank.fitted(network, seen, recipe.features, model.facts.seed).eval()
    print(f"a bank of {len(bank.bank)} vectors in {time.perf_counter() - start:.0f} s")
    precision = model.precision("auto", CPU)
    networks = Reconstructor(model.build_all(CPU), precision)
    pairs = (
        (batch, reconstruction)
        for batch in networks.batches(feed.sample(MAX_TRAINING))
        for reconstruction in networks.reconstruct(batch)
    )
    by_features = FeatureDifference.fitted(network, pairs, recipe.features.image_size).eval()
    comparers: Comparers = {"features": by_features}
    experts = Reconstructor(networks.networks, precision, bank, comparers)
    known = None
    if references := filling_up(len(feed.held_out), feed.sample(MAX_TRAINING), neighbours=True):
        others = MemoryBank.fitted(network, seen[references:], recipe.features, model.facts.seed)
        known = Reconstructor(networks.networks, precision, others.eval(), comparers)
    training = feed.sample(MAX_TRAINING)
    return Category(recipe, model.facts.seed, experts, known, feed.held_out, training, test_set)


def judged(category: Category, settings: Sequence[str]) -> tuple[str | None, list[float]]:
    """Whose maps count, and what they are worth, as ``COLUMNS`` says."""
    recipe = override(category.recipe, list(settings))
    calibration, places = calibrate(
        category.experts,
        *(category.held_out, category.training, recipe, category.seed),
        judged=category.judged,
    )
    test_set, maker = category.test_set, calibration.map_maker(places, CPU)
    in_use = category.experts.only(calibration.anomaly_map.experts)
    fast = on_openvino(in_use)
    difference = calibration.anomaly_map.difference
    fast.stacked(test_set.images[:1], difference)  # compiles
    start = time.perf_counter()
    one_by_one = image_batches(test_set.images, 1, CPU)
    maps = torch.cat([maker(fast.differences(batch, difference)) for batch in one_by_one])
    seconds = (time.perf_counter() - start) / len(maps)
    scores = maker.scores(maps).numpy()
    pixel = test_set.pixels(maps[:, 0].numpy())
    unseen, defective = np.array(calibration.image_scores), scores[test_set.labels == 1]
    labels = np.repeat([0, 1], [len(unseen), len(defective)])
    alarms = scores[test_set.labels == 0] > calibration.image_threshold
    return calibration.anomaly_map.experts, [
        image_auroc(test_set.labels, scores),
        pixel["pixel_auroc"],
        pixel["aupro_30"],
        image_auroc(labels, np.concatenate([unseen, defective])),
        float(alarms.mean()),
        seconds,
        calibration.selection.image_auroc or float("nan"),
    ]


if __name__ == "__main__":
    main()
