"""Early stopping without labels: for objective (4), which overfits, or where a recipe asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssray.config import Objective
from ssray.method.anomaly_map import smooth
from ssray.method.inference import differences, evaluating, image_batches
from ssray.method.synthetic_defects import add_defects
from ssray.metrics.pixels import pixel_auroc
from ssray.training.checkpoint import Checkpoint, prefixed
from ssray.training.distributed import ProcessGroup

CHECKS = 50
"""How often, over the whole budget, early stopping looks."""
DEFECTS = 8


@torch.inference_mode()
def separation(model: nn.Module, held_out: Tensor, precision: torch.dtype) -> float:
    """Pixel AUROC of synthetic defects in held-out images; the same defects on every call.

    Args:
        model: a network, in any mode.
        held_out: (M, H, W, 3) uint8; defects are made in the first 8 of them.
        precision: of the forward pass.

    Returns:
        In [0, 1]; NaN where no defect is perceptible, as on an all-white image, or where the
        model's output is no number.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(DEFECTS) % len(held_out)
    [images] = image_batches(held_out[chosen], DEFECTS, device)
    defective, truth = add_defects(images, generator)
    if not len(defective):
        return math.nan
    with evaluating(model):
        maps = differences([model], defective, "squared", precision)
    maps = smooth(maps, min(images.shape[2:]) // 48 * 2 + 1, 2)
    if not maps.isfinite().all():
        return math.nan
    return pixel_auroc(maps.cpu().numpy(), truth.cpu().numpy())


class EarlyStopping:
    """Keeps the best weights, of a network trained with objective (4) unless the recipe says else.

    What is best is decided by ``separation``; looking at fixed shares of the budget, not at
    fixed times, lets a budget in images end alike on every machine.

    Attributes:
        weights: the best so far; empty before there are any.
    """

    def __init__(
        self, settings: Objective, held_out: Tensor, precision: torch.dtype, team: ProcessGroup
    ) -> None:
        self._team = team
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
        """Looks, if it is time to; whether training should stop."""
        if not self._watching or int(spent * CHECKS) <= self._checks:
            return False
        self._checks = int(spent * CHECKS)
        [found] = self._team.first(separation(model, self._held_out, self._precision))
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
