"""Small networks for CPUs and edge devices: 0.89 M parameters, the demo's 0.22 M.

Costs are those of a whole run, forward and backward, counted on the network. To score an image
takes 4.8 GFLOP at 256 px, 1.2 at 128 px, and 0.3 with the demo's network.
"""

from __future__ import annotations

from ssray.config import (
    Alignment,
    AnomalyMap,
    Corruption,
    Linear,
    Mix,
    Network,
    Patches,
    Recipe,
    Schedule,
)


def texture() -> Recipe:
    """Surfaces, where places do not matter: width 16 at 256 px, crops that grow.

    Half of the images get deformed patches, the others a foreign pattern.

    ``ssray train --data ROOT --category grid --models STORE --max-minutes 15``

    Cost: 1.4e15 FLOP for the 100,000 images that end a run without ``--max-minutes``.
    Two cores train on 20 images a second. Measured on MVTec AD grid after 15 minutes, three seeds:
    image AUROC 1.000 and pixel AUROC 0.992 to 0.994.
    """
    return Recipe(
        name="compact-texture",
        network=Network(blend="pixel"),
        corruption=Corruption(mix=Mix(elastic=1, pattern=1)),
        anomaly_map=AnomalyMap(relative=True),
    )


def object_() -> Recipe:
    """Parts that lie where the camera expects them: width 16 at 128 px, whole images throughout.

    A part may be missing, broken, stained or misplaced as well as deformed, so patches also get
    foreign content, opaque or not, some images are turned, and patches may reach over the whole
    image. A linear autoencoder beside the network sees the part as a whole.

    ``ssray train --data ROOT --category transistor --models STORE --max-minutes 15``

    Cost: 1.4e15 FLOP for 400,000 images; with fewer than 1,000 training images, 400 passes over
    them end a run earlier.
    Two cores train on 61 images a second. Measured on MVTec AD transistor after 66 passes, in 30
    minutes of a core with much other work beside it, one seed: image AUROC 0.958, pixel AUROC
    0.981; without the linear autoencoder, after 78, 0.898 and 0.981. The network alone reached
    0.984 and 0.987 after 400 passes, 27 minutes of two cores.
    """
    return Recipe(
        name="compact-object",
        image_size=128,
        network=Network(blend="pixel"),
        corruption=Corruption(
            patches=Patches(radius=(0.024, 0.5)),
            mix=Mix(elastic=1, occlusion=1, pattern=1),
            displacement=(0.008, 0.05),
            smoothness=(0.024, 0.08),
            rotated=0.3,
            rotation=(5.0, 180.0),
        ),
        schedule=Schedule(crops=(1.0,), images=400_000),
        linear=Linear(),
        anomaly_map=AnomalyMap(join="mean"),
    )


def aligned(alignment: Alignment) -> Recipe:
    """Parts at any angle on a plain background: located, turned upright, and seen whole in about
    180 x 180 pixels.

    Where a part lies is no longer a defect, so nothing is turned. Its light changes with its angle,
    so brightness and contrast vary by 20 %.

    ``ssray train --data ROOT --category screw --models STORE --max-minutes 15``

    Measured on MVTec AD screw after 28 minutes of less than one core, 21 passes, one seed: image
    AUROC 0.995, pixel AUROC 0.995.
    """
    return Recipe(
        name="compact-aligned",
        image_size=180,
        alignment=alignment,
        network=Network(blend="pixel"),
        corruption=Corruption(
            patches=Patches(radius=(0.024, 0.3)),
            mix=Mix(elastic=1, occlusion=1, pattern=1),
            displacement=(0.008, 0.05),
            smoothness=(0.024, 0.08),
        ),
        schedule=Schedule(crops=(1.0,), images=400_000, photometric=0.2),
        linear=Linear(),
        anomaly_map=AnomalyMap(relative=True, join="mean"),
    )


def demo() -> Recipe:
    """Width 8 at 128 px: the generated demo data in a minute or two of one core.

    A quarter of its 80 images are held out, so that a false-alarm rate of 5 % can be asked for.

    ``make demo``, or ``ssray train --data ROOT --models STORE --recipe demo --max-minutes 2``

    Cost: 9.1e13 FLOP for 100,000 images; ``make demo`` ends a run long before.
    """
    return Recipe(
        name="demo",
        image_size=128,
        network=Network(width=8),
        corruption=Corruption(
            patches=Patches(radius=(0.024, 0.22)),
            displacement=(0.012, 0.08),
            smoothness=(0.03, 0.125),
        ),
        schedule=Schedule(learning_rate=2e-3, holdout=0.25),
        anomaly_map=AnomalyMap(relative=True),
    )


def demo_object() -> Recipe:
    """The demo's recipe for parts in their place: a linear autoencoder beside the network."""
    return demo().model_copy(
        update={
            "name": "demo-object",
            "linear": Linear(),
            "anomaly_map": AnomalyMap(join="mean"),
        }
    )


def demo_aligned(alignment: Alignment) -> Recipe:
    """The same for parts at any angle, which are located and turned upright."""
    return demo_object().model_copy(
        update={
            "name": "demo-aligned",
            "alignment": alignment,
            "anomaly_map": AnomalyMap(relative=True, join="mean"),
        }
    )
