"""DDP without Ray: two processes over gloo must end with one set of weights."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssray.config import Recipe, override
from ssray.training import fit


def train_one_rank(rank: int, port: int, recipe: Recipe, images: torch.Tensor, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    fitted = fit(
        images[:8], images[8:], recipe, device=torch.device("cpu"), precision=torch.float32
    )
    parameters = {name: p.detach() for name, p in fitted.model.named_parameters()}
    torch.save((parameters, [e.images_seen for e in fitted.history]), out / f"{rank}.pt")
    dist.destroy_process_group()


def train_two_ranks(images: torch.Tensor, recipe: Recipe, out: Path) -> list[tuple[dict, list]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train_one_rank, args=(port, recipe, images, out), nprocs=2)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_draw_different_crops_and_end_with_the_same_weights(
    stripes: torch.Tensor, tiny: Recipe, tmp_path: Path
) -> None:
    (first, seen), (second, seen_too) = train_two_ranks(stripes, tiny, tmp_path)
    assert seen == seen_too
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    alone = fit(stripes[:8], stripes[8:], tiny, device=torch.device("cpu"), precision=torch.float32)
    # Alone, rank 0 draws the same crops but lacks the other's gradients.
    assert any(not torch.allclose(p, first[n]) for n, p in alone.model.named_parameters())


def test_ranks_stop_early_together(stripes: torch.Tensor, tiny: Recipe, tmp_path: Path) -> None:
    """Each rank measures its own batch statistics; rank 0's decision must count for both."""
    recipe = override(
        tiny, ["objective.kind=amplify", "objective.patience=0.04", "schedule.images=200"]
    )
    (first, seen), (second, seen_too) = train_two_ranks(stripes, recipe, tmp_path)
    assert seen == seen_too
    assert seen[-1] < 200
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
