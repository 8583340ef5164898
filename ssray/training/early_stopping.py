"""Early stopping without labels.

It is on for objective (4), which overfits, and where a recipe asks for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssray.config import Objective
from ssray.method.anomaly_map import smooth
from ssray.method.inference import Reconstructor, evaluating, image_batches
from ssray.method.synthetic_defects import draw_defects
from ssray.metrics.pixels import pixel_auroc
from ssray.training.checkpoint import Checkpoint, prefixed
from ssray.training.distributed import ProcessGroup

CHECKS = 50
"""How many times early stopping judges the network over the whole budget."""
DEFECTS = 8
"""The number of images in which synthetic defects are made."""


@torch.inference_mode()
def separation(model: nn.Module, held_out: Tensor, precision: torch.dtype) -> float:
    """How well a network separates synthetic defects from the rest of held-out images.

    The defects are the same on every call.

    Args:
        model: a network, in any mode.
        held_out: (M, H, W, 3) uint8; defects are made in the first 8 of them.
        precision: the data type of the network's inner layers in the forward pass.

    Returns:
        The pixel AUROC in [0, 1]; NaN where no defect is perceptible, as on an all-white image, or
        where the model's output is no number.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(DEFECTS) % len(held_out)
    [images] = image_batches(held_out[chosen], DEFECTS, device)
    made = draw_defects(images, generator).visible()
    if not len(made.images):
        return math.nan
    with evaluating(model):
        maps = Reconstructor([model], precision).differences(made.images, "squared")
    maps = smooth(maps, min(images.shape[2:]) // 48 * 2 + 1, 2)
    if not maps.isfinite().all():
        return math.nan
    return pixel_auroc(maps.cpu().numpy(), made.truth.cpu().numpy())


class EarlyStopping:
    """Keeps the best weights of a training, and says when it should stop.

    It watches trainings with objective (4) unless the recipe says otherwise. ``separation`` decides
    which weights are best. The network is judged at fixed shares of the budget and not at fixed
    times, so that a training with a budget in images ends alike on every machine.

    Attributes:
        weights: the best weights so far; empty before there are any.
    """

    def __init__(
        self, settings: Objective, held_out: Tensor, precision: torch.dtype, processes: ProcessGroup
    ) -> None:
        """Has not judged anything yet.

        Args:
            settings: says whether to watch, and for which share of the budget to wait for a better
                network.
            held_out: (M, H, W, 3) uint8 images to judge with.
            precision: the data type of the network's inner layers.
            processes: the processes that train together.
        """
        self._processes = processes
        wanted = settings.early_stopping
        self._watching = settings.kind == "amplify" if wanted is None else wanted
        self._patience = settings.patience
        self._held_out = held_out
        self._precision = precision
        self._checks = 0
        self._best = -math.inf
        self._best_at = 0.0
        self.weights: dict[str, Tensor] = {}

    def after(self, spent: float, model: nn.Module) -> bool:
        """Judges a network if it is time to.

        Args:
            spent: the share of the budget that is gone.
            model: the averaged network.

        Returns:
            Whether the training should stop.
        """
        if not self._watching or int(spent * CHECKS) <= self._checks:
            return False
        self._checks = int(spent * CHECKS)
        [found] = self._processes.first(separation(model, self._held_out, self._precision))
        if math.isnan(found):
            return False
        if found > self._best:
            self._best, self._best_at = found, spent
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return spent - self._best_at >= self._patience

    def put_back(self, model: nn.Module) -> None:
        """Gives a network the best weights, if there are any."""
        if self.weights:
            model.load_state_dict(self.weights)

    def state(self) -> Checkpoint:
        """What ``restore`` needs."""
        best = None if math.isinf(self._best) else self._best
        facts = {"stopping": (self._checks, best, self._best_at)}
        return Checkpoint(prefixed("best", self.weights), facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a state."""
        self._checks, best, self._best_at = checkpoint.facts["stopping"]
        self._best = -math.inf if best is None else best
        self.weights = checkpoint.below("best")
