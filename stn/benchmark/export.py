"""Images a second of a network that classifies, in eager torch and from the files that `stn.export` writes."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from stn.benchmark.report import bars
from stn.benchmark.timing import interleaved, ratio
from stn.benchmark.train import composed
from stn.build import build_classifier, build_data
from stn.errors import InputError
from stn.formats import PACKAGES, ExportedNetwork, open_exported, write_onnx, write_pt2, write_torchscript

NETWORKS = {"LeNet-5 STN": ["experiment=eva7_nemani"], "default": []}
BATCHES = (1, 64)

Arm = Callable[[Tensor], object]


def measure(rounds: int, device: torch.device, _: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network, batch and runtime: images a second, and how many times as many as eager torch.

    Raises InputError for a GPU: the files are for the CPU.
    """
    if device.type != "cpu":
        raise InputError(f"--device {device}: the files of stn.export run on the CPU, so leave it out")
    if missing := [package for package in PACKAGES["onnx"] if not find_spec(package)]:
        print(f"{missing[0]} is not installed: ONNX is not measured")
    for name, settings in NETWORKS.items():
        with composed([*settings, "data=shapes"]) as config:
            data = build_data(config)
            classifier = build_classifier(config, data)
        classifier.freeze()
        shape = (data.channels, data.image_size, data.image_size)
        arms = runtimes(ExportedNetwork(classifier), torch.zeros(2, *shape, dtype=torch.uint8))
        for batch in BATCHES:
            pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
            seconds = interleaved({runtime: partial(arm, pixels) for runtime, arm in arms.items()}, rounds, device)
            for runtime, found in seconds.items():
                times, low, high = ratio(seconds["torch"], found)
                yield {
                    "network": name,
                    "batch": batch,
                    "runtime": runtime,
                    "images/s": batch / median(found),
                    "runtime / torch": times,
                    "quartiles": [low, high],
                }


def runtimes(network: ExportedNetwork, example: Tensor) -> dict[str, Arm]:
    """What computes a network, by its name: eager torch, and each file, opened again."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"torchscript": Path(folder, "model.pt"), "pt2": Path(folder, "model.pt2")}
        write_torchscript(network, example, files["torchscript"], {})
        write_pt2(network, example, files["pt2"], {})
        if all(map(find_spec, PACKAGES["onnx"])):
            files["onnxruntime"] = Path(folder, "model.onnx")
            write_onnx(network, example, files["onnxruntime"], {})
        return {"torch": network} | {name: open_exported(path) for name, path in files.items()}


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of each runtime, as bars."""
    found = {f"{row['network']}, batch {row['batch']}: {row['runtime']}": row["images/s"] for row in rows}
    bars(axes, found, peers=[name for name in found if not name.endswith(": torch")])
    axes.set(xscale="log", xlabel="images a second, forward, on the CPU")
