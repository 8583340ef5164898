"""DDP without Ray: two processes over gloo must end with one set of weights."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssray.config import Recipe
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


@pytest.fixture
def ranks(stripes: torch.Tensor, tiny: Recipe, tmp_path: Path) -> list[tuple[dict, list]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train_one_rank, args=(port, tiny, stripes, tmp_path), nprocs=2)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_draw_different_crops_and_end_with_the_same_weights(
    ranks: list[tuple[dict, list]], stripes: torch.Tensor, tiny: Recipe
) -> None:
    (first, seen), (second, seen_too) = ranks
    assert seen == seen_too
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    alone = fit(stripes[:8], stripes[8:], tiny, device=torch.device("cpu"), precision=torch.float32)
    # Alone, rank 0 draws the same crops but lacks the other's gradients.
    assert any(not torch.allclose(p, first[n]) for n, p in alone.model.named_parameters())
