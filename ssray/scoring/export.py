"""A model as one file for other runtimes: an image in, its anomaly map and image score out.

What runs there is what ssray runs, the network, the difference, smoothing, scale, average map and
reduction, in float32. Decoding and resizing are left to whoever runs it; ``model.json`` says how.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import ssray
from ssray.config import Decoding, ExportFormat, Light
from ssray.data.decode import UInt8Image
from ssray.data.light import levels
from ssray.errors import ArtifactError, ConfigError
from ssray.method.anomaly_map import Comparers, MapMaker, each_difference
from ssray.method.inference import TILING, Reconstructor, to_network
from ssray.models.artifact import ModelArtifact
from ssray.scoring.judge import Judge, Prepared
from ssray.storage.location import Location

TOLERANCE = 1e-3
"""By which the exported model's maps and scores may differ, as shares of their thresholds, or of
themselves where they are larger."""
_CPU = torch.device("cpu")
_Run = Callable[[npt.NDArray[np.float32]], Sequence[npt.NDArray[np.float32]]]


class AnomalyModel(nn.Module):
    """From an image to its map and score, as one module without any choice left."""

    def __init__(self, experts: Reconstructor, maker: MapMaker, light: Light | None = None) -> None:
        super().__init__()
        self.light = light
        self.networks = nn.ModuleList(experts.networks)
        self.neighbours = experts.neighbours
        self.by_features = experts.comparers.get("features")
        self.maker = maker

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) float32 in [0, 1] to the map, (1, 1, H, W), and the score, (1,)."""
        if self.light:
            images = levels(images, self.light) / 255
        reconstructions = [network(images) for network in self.networks]
        comparers: Comparers = {"features": self.by_features} if self.by_features else {}
        channels = each_difference(
            images, reconstructions, self.maker.settings.difference, comparers
        )
        if self.neighbours:
            channels.append(self.neighbours(images))
        maps = self.maker(torch.cat(channels, dim=1))
        return maps, self.maker.scores(maps)


def export(model: ModelArtifact, kind: ExportFormat, out: Location) -> float:
    """Writes a model for another runtime, and compares what it gives there.

    Args:
        model: what to export.
        kind: of the file: ``model.pt2`` (``torch.export``), ``model.onnx``, or ``model.xml`` with
            ``model.bin`` (OpenVINO).
        out: a folder, which also gets ``model.json``.

    Returns:
        The largest difference to ssray's own map and score on a test pattern, as a share of their
        thresholds; NaN where the runtime is not installed.

    Raises:
        ArtifactError: if it is larger than ``TOLERANCE``.
        ConfigError: if a package for the format is missing, or the model sees images in tiles,
            which its thresholds belong to and a single module can't do.
    """
    if model.recipe.alignment:
        raise ConfigError(
            f"{model.category}: this model locates each part and turns it upright, which can't be "
            "exported. Train one with --set alignment=null."
        )
    if max(model.input_shape) > TILING.side:
        raise ConfigError(
            f"{model.category}: this model sees its images of {max(model.input_shape)} pixels in "
            f"tiles of {TILING.side}, which can't be exported. Train one with "
            f"--set image_size={TILING.side} or less."
        )
    height, width = model.input_shape
    experts = model.reconstructor(_CPU, torch.float32)
    module = AnomalyModel(experts, model.map_maker(_CPU), model.recipe.light).eval()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randint(256, (1, height, width, 3), dtype=torch.uint8, generator=generator)
    image = to_network(pattern, _CPU)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn of sizes being fixed, as is meant
        run = _EXPORTERS[kind](module, image, Path(folder))
        off = _difference(model, run, pattern[0].numpy()) if run else math.nan
        if off > TOLERANCE:
            raise ArtifactError(
                f"{model.category}: as {kind} the model gives maps or scores that differ by "
                f"{off:.2g} of their threshold, more than {TOLERANCE:g}; nothing was written."
            )
        for path in sorted(Path(folder).iterdir()):
            (out / path.name).write(path.read_bytes())
    (out / "model.json").write(json.dumps(_facts(model, kind), indent=2).encode())
    return off


def _difference(model: ModelArtifact, run: _Run, pattern: UInt8Image) -> float:
    """The largest difference between another runtime's map and score and ssray's own.

    Args:
        model: what was exported.
        run: gives the map and the score of (1, 3, h, w) float32.
        pattern: (h, w, 3) uint8 at the network's size.

    Returns:
        The difference as a share of the thresholds, or of the values where these are larger;
        infinity where ssray's own are no numbers.
    """
    judge = Judge(model, _CPU, "float32", "torch")
    [judged] = judge([Prepared(model.framing.lit(pattern), model.input_shape)])
    if judged.verdict is None:
        return math.inf
    image = to_network(torch.from_numpy(pattern)[None], _CPU)
    anomaly_map, score = (np.asarray(found) for found in run(image.contiguous().numpy()))
    own = judged.verdict
    map_limits = np.maximum(own.anomaly_map, own.pixel_threshold)
    score_limit = max(own.score, model.calibration.image_threshold)
    return max(
        float((np.abs(anomaly_map[0, 0] - own.anomaly_map) / map_limits).max()),
        float(np.abs(score[0] - own.score)) / score_limit,
    )


def _to_torch(module: nn.Module, image: Tensor, folder: Path) -> _Run:
    program = torch.export.export(module, (image,))
    torch.export.save(program, folder / "model.pt2")
    loaded = torch.export.load(folder / "model.pt2").module()
    return lambda images: [found.numpy() for found in loaded(torch.from_numpy(images))]


def _to_openvino(module: nn.Module, image: Tensor, folder: Path) -> _Run:
    import openvino

    converted = openvino.convert_model(module, example_input=image)
    converted.reshape(list(image.shape))
    for output, name in zip(converted.outputs, ("anomaly_map", "score"), strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file will be gone before the model
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings)
    return lambda images: [compiled(images)[number] for number in range(2)]


def _to_onnx(module: nn.Module, image: Tensor, folder: Path) -> _Run | None:
    try:
        torch.onnx.export(
            module,
            (image,),
            folder / "model.onnx",
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except (ModuleNotFoundError, torch.onnx.OnnxExporterError) as error:
        raise ConfigError(
            f"--format onnx: {error}. Install what it needs: pip install 'ssray[onnx]'."
        ) from None
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda images: session.run(None, {"image": images})


_EXPORTERS: dict[ExportFormat, Callable[[nn.Module, Tensor, Path], _Run | None]] = {
    "torch": _to_torch,
    "onnx": _to_onnx,
    "openvino": _to_openvino,
}


def _decoding(decoding: Decoding | None) -> str:
    """How files become the pixels that are resized, in words."""
    if decoding is None:
        return "as they lie in the file; of 16 bits the upper 8"
    bits = f"{decoding.bits}" if decoding.bits else "16"
    return f"upright as EXIF says; of more than 8 bits the upper 8 of the lowest {bits}"


def _facts(model: ModelArtifact, kind: ExportFormat) -> dict[str, Any]:
    height, width = model.input_shape
    calibration = model.calibration
    return {
        "category": model.category,
        "version": model.version,
        "format": kind,
        "ssray_version": ssray.__version__,
        "input": {
            "shape": [1, 3, height, width],
            "values": "float32, colours in the order red, green, blue, from 0 to 1",
            "decode": _decoding(model.recipe.decoding),
            "resize": f"to {width} x {height} pixels with Pillow's HAMMING filter",
        },
        "outputs": {
            "anomaly_map": f"[1, 1, {height}, {width}] float32",
            "score": "[1] float32",
        },
        "pixel_threshold": calibration.pixel_threshold,
        "image_threshold": calibration.image_threshold,
        "false_alarm_rate": calibration.supported_rate,
    }
