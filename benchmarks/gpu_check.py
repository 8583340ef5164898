"""Does the GPU give what the CPU gives, and is it kept busy?

    make gpu-check

generates a small data set, trains and evaluates it on the CPU and on the GPU (float32 and bfloat16,
compiled and not; with nccl where there are two GPUs) through the same functions as the commands,
and compares. Without a CUDA device it says so and does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ssray import artifact
from ssray.cluster.environment import quiet_local_ray

quiet_local_ray()

from ssray.cluster.runtime import ray_session  # noqa: E402  Ray reads its settings when imported
from ssray.cluster.workflow import evaluate_categories, train_categories  # noqa: E402
from ssray.config import Compute, Network  # noqa: E402
from ssray.data.decode import read_image  # noqa: E402
from ssray.data.demo import write_demo_data  # noqa: E402
from ssray.data.index import index_dataset  # noqa: E402
from ssray.data.storage import Location  # noqa: E402
from ssray.method.autoencoder import Autoencoder  # noqa: E402
from ssray.method.inference import autocast  # noqa: E402
from ssray.model_store import published_version  # noqa: E402
from ssray.recipes import RecipeRequest  # noqa: E402
from ssray.scoring import Scorer  # noqa: E402

NEVER_RUN = """\
Nothing of ssray has ever been run on a GPU by its authors, this check included. What it does not
reach even where it runs: several GPUs on several nodes, fractional GPUs, images beyond a GPU's
memory; and nccl where there is only one GPU."""
CATEGORY = "weave"
SETTINGS = ("schedule.images=4000", "image_size=128", "network.width=16")
RUNS = {
    "CPU float32": Compute(device="cpu", precision="float32"),
    "GPU float32": Compute(device="cuda", precision="float32"),
    "GPU bfloat16": Compute(device="cuda", precision="bfloat16"),
    "GPU float32, compiled": Compute(device="cuda", precision="float32", compile=True),
    "GPU bfloat16, compiled": Compute(device="cuda", precision="bfloat16", compile=True),
}
BARE = "GPU bfloat16"
"""Whose images/s are compared with those of the bare step."""
TWO_GPUS = {"2 GPUs bfloat16": Compute(device="cuda", precision="bfloat16", workers=2)}
LOSS_TOLERANCE = 0.15
"""Of the validation loss, relatively: the noise and the rounding differ, the draws do not."""
AUROC_TOLERANCE = 0.03
MAP_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the same network's anomaly maps, relative to the largest value."""


@dataclass
class Watch:
    """Samples the GPU while a block runs."""

    use: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used"]  # percent, MiB
        while not self._done.wait(0.5):
            answer = subprocess.run(
                [*query, "--format=csv,noheader,nounits", "--id=0"],
                capture_output=True,
                text=True,
                check=True,
            )
            use, memory = answer.stdout.split(",")
            self.use.append(float(use))
            self.memory.append(float(memory))


def main() -> int:
    """Returns how many comparisons failed."""
    if not torch.cuda.is_available():
        print(f"No CUDA device here: nothing was checked.\n{NEVER_RUN}")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n{NEVER_RUN}\n")
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Location.parse(folder) / "data"
        write_demo_data(Path(data.path), categories=1, images=60)
        runs = RUNS | (TWO_GPUS if torch.cuda.device_count() > 1 else {})
        stores = {name: Location.parse(folder) / str(i) for i, name in enumerate(runs)}
        with ray_session():
            figures = {
                name: trained(name, runs[name], data, store) for name, store in stores.items()
            }
        reference = figures["CPU float32"]
        for name, (loss, image, pixel, _) in figures.items():
            if abs(loss - reference[0]) > LOSS_TOLERANCE * reference[0]:
                failures.append(f"{name}: validation loss {loss:.5f}, CPU {reference[0]:.5f}")
            for what, found, expected in zip(
                ("image", "pixel"), (image, pixel), reference[1:3], strict=True
            ):
                if abs(found - expected) > AUROC_TOLERANCE:
                    failures.append(f"{name}: {what} AUROC {found:.3f}, CPU {expected:.3f}")
        failures += maps_differ(data, stores["CPU float32"])
    bare = bare_images_per_second()
    print(
        f"bare step: {bare:.0f} images/s in bfloat16, memory "
        f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB; {BARE} trains at "
        f"{figures[BARE][3] / bare:.2f} of that"
    )
    print("\n".join(failures) or "GPU and CPU agree within the tolerances.")
    return len(failures)


def trained(
    name: str, compute: Compute, data: Location, store: Location
) -> tuple[float, float, float, float]:
    """Validation loss, image and pixel AUROC after training and evaluating, and images/s."""
    request = RecipeRequest("compact-texture", SETTINGS)
    with Watch() as watch:
        failed = train_categories(data, [CATEGORY], request, compute, store)
    for error in failed.values():
        raise error
    model = artifact.load(store, CATEGORY, published_version(store, CATEGORY))
    fastest = max(row["images_per_second"] for row in model.history)
    metrics, _ = evaluate_categories(data, [CATEGORY], store, compute, store / "out")
    row = metrics.to_pylist()[0]
    print(
        f"{name:24} loss {model.facts.validation_loss:.5f}  image {row['image_auroc']:.3f}  "
        f"pixel {row['pixel_auroc']:.3f}  {fastest:.0f} images/s  GPU use up to "
        f"{max(watch.use, default=0):.0f} %, memory {max(watch.memory, default=0):.0f} MiB"
    )
    return model.facts.validation_loss, row["image_auroc"], row["pixel_auroc"], fastest


def maps_differ(data: Location, store: Location) -> list[str]:
    """How the anomaly maps of one network differ between the devices, where it is too much."""
    model = artifact.load(store, CATEGORY, published_version(store, CATEGORY))
    reference = Scorer(model, torch.device("cpu"), torch.float32)
    rows = index_dataset(data, [CATEGORY]).to_pylist()[:8]
    images = np.stack([reference.prepare(read_image(row["uri"])) for row in rows])
    expected = reference(images).maps
    failures = []
    for precision, tolerance in MAP_TOLERANCE.items():
        scorer = Scorer(model, torch.device("cuda"), getattr(torch, precision))
        worst = float(np.abs(scorer(images).maps - expected).max() / expected.max())
        print(f"maps in {precision}: largest difference {worst:.1e} of the largest value")
        if worst > tolerance:
            failures.append(f"maps in {precision} differ by {worst:.1e}, allowed {tolerance:.0e}")
    return failures


def bare_images_per_second(steps: int = 200, batch: int = 4) -> float:
    """Forward, backward and optimizer on one batch that is already there, at 128 px."""
    device = torch.device("cuda")
    model = Autoencoder(Network(width=16, blend="pixel"))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 3, 128, 128, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    started = 0.0
    for step in range(steps + 20):
        if step == 20:
            torch.cuda.synchronize()
            started = time.perf_counter()
        with autocast(device, torch.bfloat16):
            loss = F.mse_loss(model(images), images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
