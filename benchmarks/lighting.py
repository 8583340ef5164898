"""Does drifting light read as a defect?

    python benchmarks/lighting.py --data ROOT --category C --models STORE [--change 0.2]

The light on the good test photographs is changed, that on the defective ones is not: brightness or
contrast of all pixels up or down, brightness along a gradient by the same amount from one side to
the other, or the lamp's colour: red up by half of it and blue down, or the reverse. For each change
a row shows the image AUROC, the share of the good images that is flagged at the model's threshold,
and in how many no part was found, which so have no score. The photographs are changed as a camera
would have taken them, 8 bits a channel, before the part is located in them and turned upright: a
gradient lies across the photograph, and where the part is found may depend on the light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from labelled import TestSet, category_parser, difference_stack
from torch import nn

from ssray.data.dataset import index_dataset
from ssray.data.decode import UInt8Image, read_image
from ssray.data.pose import Framing
from ssray.errors import ImageError
from ssray.method.anomaly_map import MapMaker
from ssray.method.augmentation import relight
from ssray.method.inference import to_network
from ssray.metrics.images import image_auroc
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.scoring.scorer import Scorer
from ssray.storage.location import Location

CPU = torch.device("cpu")
AS_IT_IS = "none"

Scores = npt.NDArray[np.float32]
Score = Callable[[npt.NDArray[np.uint8]], Scores]
"""(N,) image scores of (N, H, W, 3) uint8 images as networks see them."""
Light = Callable[[UInt8Image], UInt8Image]
"""A photograph, (H, W, 3) uint8, in another light."""


def even(change: float) -> dict[str, Light]:
    """Brightness or contrast changed alike everywhere, by a share of them up or down."""
    percent = f"{100 * change:g} %"
    return {
        f"brightness -{percent}": _relit(1 - change, 1.0),
        f"brightness +{percent}": _relit(1 + change, 1.0),
        f"contrast -{percent}": _relit(1.0, 1 - change),
        f"contrast +{percent}": _relit(1.0, 1 + change),
    }


def gradients(change: float) -> dict[str, Light]:
    """Brightness that rises evenly from ``1 - change / 2`` at one side to ``1 + change / 2``."""
    percent = f"{100 * change:g} %"
    return {
        f"gradient of {percent} to the right": _gradient(1, change),
        f"gradient of {percent} to the left": _gradient(1, -change),
        f"gradient of {percent} downwards": _gradient(0, change),
        f"gradient of {percent} upwards": _gradient(0, -change),
    }


def colours(change: float) -> dict[str, Light]:
    """Warmer light: ``1 + change / 2`` of red and ``1 - change / 2`` of blue; and colder light."""
    percent = f"{100 * change:g} %"
    return {
        f"warmer by {percent}": _tinted(change),
        f"colder by {percent}": _tinted(-change),
    }


def _relit(gain: float, contrast: float) -> Light:
    def light(photograph: UInt8Image) -> UInt8Image:
        [image] = relight(to_network(torch.tensor(photograph)[None], CPU), gain, contrast)
        return _photograph(image.permute(1, 2, 0).numpy() * 255)

    return light


def _gradient(axis: int, change: float) -> Light:
    def light(photograph: UInt8Image) -> UInt8Image:
        gain = np.linspace(1 - change / 2, 1 + change / 2, photograph.shape[axis])
        return _photograph(photograph * (gain[:, None, None] if axis == 0 else gain[:, None]))

    return light


def _tinted(change: float) -> Light:
    def light(photograph: UInt8Image) -> UInt8Image:
        return _photograph(photograph * np.array([1 + change / 2, 1.0, 1 - change / 2]))

    return light


def _photograph(pixels: npt.NDArray[np.floating]) -> UInt8Image:
    """The nearest 8-bit values, of what is 255 at full scale."""
    return pixels.round().clip(0, 255).astype(np.uint8)


ABLATED = even(0.1)
"""What the ablation asks of every run."""
CHANGES = even(0.2) | gradients(0.2) | colours(0.2)
"""What a model should stand."""


@dataclass(frozen=True)
class Found:
    """What a model makes of the good images in one light.

    Attributes:
        image_auroc: of them and the defective images in the light they were taken in.
        scores: of those in which the part was found.
        lost: in how many it was not.
    """

    image_auroc: float
    scores: Scores
    lost: int


def main() -> None:
    """Prints a row a change, then the lowest image AUROC."""
    parser = category_parser("Does drifting light read as a defect?")
    parser.add_argument("--change", type=float, default=0.2, help="relative, in (0, 1)")
    options = parser.parse_args()
    store = Location.parse(options.models)
    version = model_store.published_version(store, options.category)
    model = artifact.load(store, options.category, version)
    scorer = Scorer(model, CPU, model.precision("auto", CPU))
    manifest = index_dataset(Location.parse(options.data), [options.category])
    test = manifest.filter(pc.equal(manifest["split"], "test"))
    good, defective = (
        [read_image(uri) for uri in test.filter(pc.equal(test["label"], label))["uri"].to_pylist()]
        for label in (0, 1)
    )
    lights = even(options.change) | gradients(options.change) | colours(options.change)
    found = in_each_light(good, defective, lights, model.framing, lambda all_: scorer(all_).scores)

    threshold = model.calibration.image_threshold
    print(
        f"| {options.category}, {len(good)} good images, {len(defective)} defective | image AUROC "
        "| good images flagged | no part found |\n|---|---|---|---|"
    )
    for name, row in found.items():
        flagged = (row.scores > threshold).mean()
        print(f"| {name} | {row.image_auroc:.4f} | {100 * flagged:.1f} % | {row.lost} |")
    lowest = min(row.image_auroc for row in found.values())
    fall = found[AS_IT_IS].image_auroc - lowest
    print(f"\nlowest {lowest:.4f}, {fall:.4f} below the photographs as they are")


def in_each_light(
    good: Sequence[UInt8Image],
    defective: Sequence[UInt8Image],
    lights: Mapping[str, Light],
    framing: Framing,
    score: Score,
) -> dict[str, Found]:
    """Scores the good photographs as they are and in each light, by the light's name.

    Args:
        good: photographs, (H, W, 3) uint8 each.
        defective: likewise; their light stays.
        lights: the changes.
        framing: what networks see of a photograph.
        score: a model.
    """
    unchanged = score(_framed(defective, framing))

    def found(light: Light) -> Found:
        scores = score(_framed([light(photograph) for photograph in good], framing))
        labels = np.repeat([0, 1], [len(scores), len(unchanged)])
        auroc = image_auroc(labels, np.concatenate([scores, unchanged]))
        return Found(auroc, scores, len(good) - len(scores))

    as_it_is: dict[str, Light] = {AS_IT_IS: lambda photograph: photograph}
    return {name: found(light) for name, light in (as_it_is | dict(lights)).items()}


def under_light(
    networks: Sequence[nn.Module],
    maker: MapMaker,
    test_set: TestSet,
    precision: torch.dtype,
    lights: Mapping[str, Light] = ABLATED,
) -> dict[str, float]:
    """Image AUROC in each light, which is changed on what the networks see, after the framing."""
    good, defective = ([*test_set.images[test_set.labels == label].numpy()] for label in (0, 1))

    def score(images: npt.NDArray[np.uint8]) -> Scores:
        seen, difference = torch.from_numpy(images), maker.settings.difference
        maps = maker(difference_stack(networks, seen, difference, precision))
        scores: Scores = maker.scores(maps).numpy()
        return scores

    again = Framing(test_set.framing.shape, light=test_set.framing.light)
    found = in_each_light(good, defective, lights, again, score)
    return {name: row.image_auroc for name, row in found.items()}


def _framed(photographs: Sequence[UInt8Image], framing: Framing) -> npt.NDArray[np.uint8]:
    """What networks see of those photographs in which the part is found, (N, H, W, 3) uint8."""
    images = []
    for photograph in photographs:
        try:
            images.append(framing(photograph)[0])
        except ImageError:
            continue
    return np.stack(images)


if __name__ == "__main__":
    main()
