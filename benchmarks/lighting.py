"""Does drifting light read as a defect?

    python benchmarks/lighting.py --data ROOT --category C --models STORE

Brightness or contrast of the good test images is changed by up to 10 %, that of the defective
ones is not, and the image AUROC is measured again. Two ways to take the difference are compared:
as it is, and after a gain and an offset that bring the reconstruction nearest to the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from labelled import BATCH, TestSet, category_parser
from torch import Tensor, nn

from ssray.data.dataset import index_dataset
from ssray.method.anomaly_map import MapMaker, difference_maps
from ssray.method.augmentation import relight
from ssray.method.inference import image_batches, reconstruct
from ssray.metrics.images import image_auroc
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.storage.location import Location

CPU = torch.device("cpu")
CHANGES = {
    "none": (1.0, 1.0),
    "brightness -10 %": (0.9, 1.0),
    "brightness +10 %": (1.1, 1.0),
    "contrast -10 %": (1.0, 0.9),
    "contrast +10 %": (1.0, 1.1),
}
"""Gain and contrast."""


def main() -> None:
    """Prints a row a change."""
    options = category_parser("Does drifting light read as a defect?").parse_args()
    store = Location.parse(options.models)
    version = model_store.published_version(store, options.category)
    model = artifact.load(store, options.category, version)
    manifest = index_dataset(Location.parse(options.data), [options.category])
    test_set = TestSet.read(manifest, model.framing)
    networks, maker = model.build_all(CPU), model.map_maker(CPU)
    precision = model.precision("auto", CPU)
    as_it_is, fitted = (
        under_light(networks, maker, test_set, precision, matching) for matching in (False, True)
    )
    print(f"{'change':18}  image AUROC: as it is   gain and offset matched")
    for name, found in as_it_is.items():
        print(f"{name:18}  {found:20.4f}   {fitted[name]:.4f}")


def under_light(
    networks: Sequence[nn.Module],
    maker: MapMaker,
    test_set: TestSet,
    precision: torch.dtype,
    matching: bool = False,
) -> dict[str, float]:
    """Image AUROC for each of ``CHANGES`` of the good images."""
    good, defective = (
        test_set.images[torch.from_numpy(test_set.labels == label)] for label in (0, 1)
    )
    labels = np.repeat([0, 1], [len(good), len(defective)])

    def scores(images: Tensor, gain: float, contrast: float) -> Tensor:
        found = []
        for batch in image_batches(images, BATCH, CPU):
            lit = relight(batch, gain, contrast)
            reconstructions = [reconstruct(network, lit, precision) for network in networks]
            if matching:
                reconstructions = [matched(each, lit) for each in reconstructions]
            maps = maker(difference_maps(lit, reconstructions, maker.settings.difference))
            found.append(maker.scores(maps))
        return torch.cat(found)

    unchanged = scores(defective, 1.0, 1.0)
    return {
        name: image_auroc(labels, torch.cat([scores(good, *change), unchanged]).numpy())
        for name, change in CHANGES.items()
    }


def matched(reconstruction: Tensor, images: Tensor) -> Tensor:
    """The reconstruction under the gain and offset that bring it nearest to its image."""
    flat, target = reconstruction.flatten(1), images.flatten(1)
    mean, wanted = flat.mean(dim=1, keepdim=True), target.mean(dim=1, keepdim=True)
    centred = flat - mean
    gain = (centred * (target - wanted)).sum(dim=1, keepdim=True) / centred.square().sum(
        dim=1, keepdim=True
    )
    return (gain * centred + wanted).view_as(images)


if __name__ == "__main__":
    main()
