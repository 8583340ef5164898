"""What runs a network fastest on this processor, and whether it changes what a model finds.

    python benchmarks/backends.py --threads 1
    python benchmarks/backends.py --threads 1 --data ROOT --category C --models STORE

times one image after the other through the compact and the paper's network, all in turn, and beside
it how far the reconstructions are from torch's in float32. With a model also the AUROCs of its
test images by each backend that scores.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from labelled import TestSet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssray.config import Backend, Network
from ssray.data.dataset import index_dataset
from ssray.method.autoencoder import Autoencoder, Upsample
from ssray.method.inference import reconstruct
from ssray.models import artifact
from ssray.models import store as model_store
from ssray.scoring.backends import OpenVinoNetwork
from ssray.scoring.scorer import Scorer
from ssray.storage.location import Location

CPU = torch.device("cpu")
NETWORKS = {
    "compact, 256 px": (Network(blend="pixel"), 256, 20),
    "paper, 512 px": (Network(width=64), 512, 4),
}
"""The network, the image's side, and rounds."""
SCORED: tuple[tuple[Backend, torch.dtype], ...] = (
    ("torch", torch.float32),
    ("torch", torch.bfloat16),
    ("openvino", torch.float32),
    ("openvino", torch.bfloat16),
)


def main() -> None:
    """Prints a table a network, and one of AUROCs."""
    parser = argparse.ArgumentParser(description="What runs a network fastest on this processor.")
    parser.add_argument("--threads", type=int, required=True)
    for name in ("data", "category", "models"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (network, side, rounds) in NETWORKS.items():
        print(f"{name}, {options.threads} threads: seconds an image, mean squared difference")
        compare(trained_a_little(network), side, rounds, options.threads)
    if options.models:
        find(options.data, options.category, options.models)


def trained_a_little(network: Network) -> Autoencoder:
    """Random weights, with statistics of what went through."""
    torch.manual_seed(0)
    made = Autoencoder(network)
    with torch.no_grad():
        made(torch.rand(4, 3, 64, 64))
    return made.eval()


def compare(network: Autoencoder, side: int, rounds: int, threads: int) -> None:
    """Prints a row a runtime."""
    image = torch.rand(1, 3, side, side).to(memory_format=torch.channels_last)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    smaller, quick = folded(network), folded(network)
    quick.compile()
    runs: dict[str, Callable[[], Tensor]] = {
        "torch, float32": run_of(network, image, torch.float32),
        "torch, bfloat16": run_of(network, image, torch.bfloat16),
        "torch, bfloat16, folded": run_of(smaller, image, torch.bfloat16),
        "torch, bfloat16, folded, compiled": run_of(quick, image, torch.bfloat16),
        "onnxruntime, float32": onnx(network, image, threads),
    }
    for precision in (torch.float32, torch.bfloat16):
        compiled = OpenVinoNetwork(network, precision, threads)
        name = f"openvino, {str(precision).removeprefix('torch.')}"
        runs[name] = run_of(compiled, image, precision)
    reference = runs["torch, float32"]()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    for name, run in runs.items():
        off = (run() - reference).square().mean()
        print(f"  {name:34} {statistics.median(seconds[name]):.4f}  {off:.1e}")


def run_of(network: nn.Module, image: Tensor, precision: torch.dtype) -> Callable[[], Tensor]:
    """A run of one network."""
    return lambda: reconstruct(network, image, precision)


def folded(network: Autoencoder) -> Autoencoder:
    """The same function, with each batch norm that follows a convolution made part of it.

    Those behind the joined branches of the bottleneck stay.
    """
    found = copy.deepcopy(network)
    for module in list(found.modules()):
        if isinstance(module, Upsample):
            norm = module.norm[0]
            assert isinstance(norm, nn.BatchNorm2d)
            module.conv = fuse_conv_bn_eval(module.conv, norm, transpose=True)
            module.norm[0] = nn.Identity()
        elif isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            norm = module[1]
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(module[0], norm)
            module[1] = nn.Identity()
    return found


def onnx(network: Autoencoder, image: Tensor, threads: int) -> Callable[[], Tensor]:
    """A run of the network in ONNX Runtime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder, "network.onnx")
        torch.onnx.export(network, (image.contiguous(),), file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file, settings)
    [taken] = session.get_inputs()
    given = {taken.name: image.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def find(root: str, category: str, models: str) -> None:
    """Prints a row a backend."""
    store = Location.parse(models)
    model = artifact.load(store, category, model_store.published_version(store, category))
    manifest = index_dataset(Location.parse(root), [category])
    test_set = TestSet.read(manifest, model.framing)
    print(f"{category}: image and pixel AUROC, largest change of an image score")
    first: np.ndarray | None = None
    for backend, precision in SCORED:
        scorer = Scorer(model, CPU, precision, backend)
        scored = scorer(test_set.images.numpy())
        image, pixel = test_set.figures(scored.maps, scored.scores)
        first = scored.scores if first is None else first
        change = np.abs(scored.scores / first - 1).max()
        print(
            f"  {backend:9} {str(precision).removeprefix('torch.'):9} "
            f"{image:.4f} {pixel:.4f}  {100 * change:.2f} %"
        )


if __name__ == "__main__":
    main()
