"""Exports the network of a run to a file, and compares what the file computes with what the network does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stn.build import read_data
from stn.check import allowed_packages
from stn.check import check as check_config
from stn.errors import InexactExportError, InputError, require, user_errors
from stn.formats import OPSETS, PACKAGES, SUFFIXES, ExportedNetwork, open_exported, write_exported
from stn.layers import transformers
from stn.options import check_file, shown
from stn.process import prepare_process
from stn.run import Run
from stn.scoring import finite_scores

LARGEST_DIFFERENCE = 1e-4
RANDOM_IMAGES = 256
BATCH = 64


class Exported(NamedTuple):
    """A file that was written.

    images: those on which its outputs were compared with the network's. difference: the largest one.
    """

    path: Path
    metadata: dict[str, Any]
    images: str
    difference: float

    @property
    def signature(self) -> str:
        """What the file takes and returns."""
        about = self.metadata
        shape = f"(N, {about['channels']}, {about['image_size']}, {about['image_size']})"
        outputs = [f"probabilities (N, {len(about['classes'])})"]
        if "theta" in about:
            outputs.append(f"theta (N, {sum(part['numbers'] for part in about['theta'])})")
        return f"pixels {shape}, {about['dtype']} -> {', '.join(outputs)}"


def export(
    run: Run,
    overrides: Sequence[str] = (),
    *,
    format: str,
    dtype: str | None = None,
    theta: bool = False,
    tta: str | None = None,
    opset: int | None = None,
    check: int | str = 256,
    output: str | None = None,
    overwrite: bool = False,
    allow: str | list[str] | None = None,
) -> Exported:
    """Writes a run's network to a file, which is kept only if it computes what the network does.

    overrides: keys of the run's config, which says where the test images are.
    The other arguments are the options of `python -m stn.export`.
    Raises InputError for what cannot be exported or written, and InexactExportError for a file that is not kept.
    """
    require("export", *PACKAGES.get(format, ()))
    given = {"dtype": dtype, "theta": theta or None, "tta": tta, "opset": opset}
    for name, value in given.items():
        if value is not None and (format == "safetensors" or (name == "opset" and format != "onnx")):
            raise InputError(f"{name}={shown(value)} does nothing with format={format}: leave it out")
    if opset is not None and opset not in OPSETS:
        raise InputError(f"opset={opset} must lie between {OPSETS[0]} and {OPSETS[-1]}")
    if isinstance(check, int) and check < 1:
        raise InputError(f"check={check} must be 1 or more, or all")
    if theta and not transformers(run.classifier.net):
        raise InputError("theta=true needs a transformer, and this network has none: leave it out")
    path = Path(output) if output else run.folder / "export" / f"model{SUFFIXES[format]}"
    check_file(path, SUFFIXES[format], overwrite)
    run = replace(run, classifier=deepcopy(run.classifier))
    if format != "safetensors":  # which holds the network as it was trained
        with user_errors("tta"):
            run.classifier.tta = tta or "none"  # type: ignore[assignment]  # checked by the command
    network = ExportedNetwork(run.classifier, getattr(torch, dtype or "uint8"), theta)
    images, said = comparison_images(run, overrides, None if check == "all" else int(check))
    with torch.no_grad():
        finite_scores(run.classifier, images[:1])
    metadata = describe(run, network)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as beside:
            part = Path(beside, path.name)
            write_exported(part, run, network, metadata, opset or OPSETS[0])
            pixels = images if network.dtype == torch.uint8 else images / 255
            difference = largest_difference(network, open_exported(part, allowed_packages(allow)), pixels)
            if not difference <= LARGEST_DIFFERENCE:  # or NaN
                raise InexactExportError(
                    f"{path} was not written: its outputs differ by up to {difference:.2g} from the network's on "
                    f"{said}, more than {LARGEST_DIFFERENCE:g}"
                )
            part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return Exported(path, metadata, said, difference)


def comparison_images(run: Run, overrides: Sequence[str], count: int | None) -> tuple[Tensor, str]:
    """`count` images of the test set, evenly chosen, or all of them, and words for them.

    Random images where there is no test set: the network may have left the machine of its data.
    Raises InputError for overrides that cannot be used.
    """
    try:
        if run.config is None and not overrides:
            raise InputError(f"{run.checkpoint} is not in the folder of a run")
        config = run.settings(overrides)
        config.callbacks, config.logger, config.compile = {}, {}, None
        config.trainer = {"max_epochs": 1, "accelerator": "cpu"}  # whatever trained it, it is exported on the CPU
        check_config(config)
        prepare_process(config)
        images = read_data(run.data(config), "test").images["test"]
    except InputError as error:
        if overrides:
            raise
        shape = (count or RANDOM_IMAGES, run.channels, run.image_size, run.image_size)
        random = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return random, f"{len(random):,} random images (no test set: {error})"
    chosen = torch.linspace(0, len(images) - 1, min(count or len(images), len(images))).long()
    return images[chosen], f"{len(chosen):,} of the {len(images):,} test images"


def largest_difference(
    network: ExportedNetwork, exported: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
) -> float:
    """The largest difference between the outputs of a network and of its file, in batches of 64 and of 1.

    images: pixels (N, C, H, W) of the network's dtype.
    """
    largest = torch.tensor(0.0)
    for batch in images.split(BATCH):
        with torch.no_grad():
            outputs = network(batch)
        expected = outputs if isinstance(outputs, tuple) else (outputs,)
        single = [torch.cat(parts) for parts in zip(*map(exported, batch.split(1)), strict=True)]
        for found in (exported(batch), single):
            for ours, theirs in zip(expected, found, strict=True):
                largest = torch.maximum(largest, (ours - theirs).abs().max())  # NaN if there is one
    return largest.item()


def describe(run: Run, network: ExportedNetwork) -> dict[str, Any]:
    """What a program needs to use the file: it stands in its metadata."""
    normalization = run.classifier.normalization
    found = {
        "classes": run.classes,
        "channels": run.channels,
        "image_size": run.image_size,
        "mean": normalization.mean.flatten().tolist(),  # of each channel, for values in [0, 1]
        "std": normalization.std.flatten().tolist(),
        "dtype": str(network.dtype).removeprefix("torch."),
        "tta": run.classifier.tta,
        "epoch": run.epoch,
    }
    if network.returns_theta:  # the parts of θ, in order
        found["theta"] = [
            {
                "transformer": name,
                "warp": type(module.warp).__name__,
                "numbers": module.num_looks * module.warp.num_params,
            }
            for name, module in transformers(network.net).items()
        ]
    return found
