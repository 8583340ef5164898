"""Ray Data as a stream of decoded images, for training sets that exceed a worker's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from ssray.data.decode import UInt8Image
from ssray.data.loading import load_image
from ssray.data.pose import Framing
from ssray.errors import ImageError

DECODE_CPUS = 0.25
"""CPUs that Ray reserves for each decoding task."""
RESERVED_CPUS = 0.5
"""CPUs that a training leaves to its decoding tasks; if it held all, they would never run."""
_BATCH = 32


def decode_on_cluster(uris: Sequence[str], framing: Framing) -> Iterator[UInt8Image | None]:
    """Decodes images in tasks anywhere on the connected Ray, ahead of their use.

    Args:
        uris: readable from every node.
        framing: makes images of one shape of them.

    Yields:
        For each URI in order (H, W, 3) uint8, or None where the image can't be used.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    blocks = [pa.table({"uri": uris[i : i + _BATCH]}) for i in range(0, len(uris), _BATCH)]
    images = ray.data.from_arrow(blocks).map_batches(
        _decoded, batch_size=None, num_cpus=DECODE_CPUS, fn_kwargs={"framing": framing}
    )
    for batch in images.iter_batches(batch_size=None, prefetch_batches=2):
        for image, usable in zip(batch["image"], batch["usable"], strict=True):
            yield image if usable else None


def _decoded(
    batch: dict[str, npt.NDArray[np.str_]], framing: Framing
) -> dict[str, npt.NDArray[np.generic]]:
    uris = batch["uri"]
    images = np.zeros((len(uris), *framing.shape, 3), np.uint8)
    usable = np.ones(len(uris), bool)
    for number, uri in enumerate(uris):
        try:
            images[number] = load_image(str(uri), framing)
        except ImageError:
            usable[number] = False
    return {"image": images, "usable": usable}
