"""What tiles change in an anomaly map, against how much they overlap.

    python benchmarks/tiling.py --data ROOT --category C --models STORE --size 512 --side 256

reconstructs the test images, at ``--size`` pixels, in one pass and in tiles. Prints how far the
maps of good images differ in units of a threshold that one in a thousand of their pixels passes,
how many pixels of all images change their side of it, what happens to the AUROCs, and how many
pixels go through the network for one of the image. Give the size that the model was trained at: at
another, one pass is no reference.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from labelled import BATCH, TestSet, category_parser
from torch import Tensor

from ssray.data.dataset import index_dataset
from ssray.data.pose import Framing
from ssray.method.anomaly_map import difference_maps
from ssray.method.inference import autocast, image_batches
from ssray.method.tiling import Tiling, in_tiles
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.storage.location import Location

CPU = torch.device("cpu")
OVERLAPS = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
"""As shares of a tile's side."""


def main() -> None:
    """Prints a row an overlap."""
    parser = category_parser("What tiles change in an anomaly map.")
    parser.add_argument("--size", type=int, required=True, help="side of the images")
    parser.add_argument("--side", type=int, required=True, help="of the tiles")
    options = parser.parse_args()
    store = Location.parse(options.models)
    version = model_store.published_version(store, options.category)
    model = artifact.load(store, options.category, version)
    manifest = index_dataset(Location.parse(options.data), [options.category])
    test_set = TestSet.read(manifest, Framing((options.size, options.size)))
    network = model.build(CPU)
    maker = dataclasses.replace(model.map_maker(CPU), average=None)  # it is of another size
    precision = model.precision("auto", CPU)

    def one_pass(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(CPU, precision):
            found: Tensor = network(images)
        return found

    def differences(tiling: Tiling) -> Tensor:
        return torch.cat(
            [
                difference_maps(
                    batch, [in_tiles(one_pass, batch, tiling)], maker.settings.difference
                )
                for batch in image_batches(test_set.images, BATCH, CPU)
            ]
        )

    whole = differences(Tiling(options.size, 0))
    reference = maker(whole)
    good = torch.from_numpy(test_set.labels == 0)
    threshold = float(np.quantile(reference[good].numpy(), 0.999))
    image, pixel = test_set.judge(maker, whole)
    print(f"in one pass: image AUROC {image:.4f}, pixel {pixel:.4f}")
    print("overlap  good: largest / mean difference  change sides  image AUROC  pixel  computed")
    for share in OVERLAPS:
        tiling = Tiling(options.side, round(share * options.side / 8) * 8)
        stacks = differences(tiling)
        maps = maker(stacks)
        off = (maps - reference)[good].abs() / threshold
        changed = ((maps > threshold) != (reference > threshold)).float().mean()
        image, pixel = test_set.judge(maker, stacks)
        rows, columns = (
            sum(end - start for start, end in tiling.spans(side)) / side
            for side in test_set.images.shape[1:3]
        )
        print(
            f"{tiling.overlap:5} px  {off.max():14.3f} / {off.mean():.5f}  "
            f"{100 * changed:10.3f} %  {image:10.4f}  {pixel:.4f}  {rows * columns:6.2f} x"
        )


if __name__ == "__main__":
    main()
