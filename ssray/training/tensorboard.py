"""Writes the epoch log as TensorBoard events."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboardX import SummaryWriter

from ssray.training.progress import ProgressRow


@contextlib.contextmanager
def event_log(folder: Path | None) -> Iterator[Callable[[ProgressRow], None]]:
    """Opens an event file and yields the function to call with each row of the epoch log.

    The step of every number is the count of images seen. Without a folder nothing is written.
    """
    if folder is None:
        yield lambda epoch: None
        return
    with SummaryWriter(str(folder)) as writer:

        def log(epoch: ProgressRow) -> None:
            for name, value in dataclasses.asdict(epoch).items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, global_step=round(epoch.images_seen))
            writer.flush()

        yield log
