"""The file formats of an exported network: how each is written, and opened again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stn.classifier import CHECKPOINT_FORMAT, Classifier, versions
from stn.layers import recording
from stn.run import Run
from stn.untrusted import DESCRIPTION

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}  # which a format needs
# At 20 GridSample is new, and TensorRT computes it wrongly; the exporter knows nothing lower than 18.
OPSETS = range(18, 24)
BATCH = ({0: torch.export.Dim("batch")},)  # the first axis of the pixels is of any length
METADATA = "metadata.json"  # within a file of torchscript or pt2

Metadata = dict[str, Any]


@torch.jit.script_if_tracing
def of_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """`pixels`. A trace of torch.jit keeps the check.

    Raises ValueError for another dtype, since the network would take the pixels for darker or brighter ones.
    """
    if pixels.dtype != dtype:
        raise ValueError("the pixels have another dtype than the network was exported for: uint8, or float32 in [0, 1]")
    return pixels


class ExportedNetwork(nn.Module):
    """Pixels (N, C, H, W) to probabilities (N, classes) and, if `theta`, θ (N, P) of all transformers, in float32.

    dtype: of the pixels, torch.uint8, or torch.float32 in [0, 1].
    Where several views of an image are scored, θ is that of the image itself.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype = torch.uint8, theta: bool = False) -> None:
        super().__init__()
        # Its parts, because torch.jit cannot go through a LightningModule that has no trainer.
        self.net, self.normalization = classifier.net, classifier.normalization
        self.scores = classifier.forward
        self.dtype, self.returns_theta = dtype, theta
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Probabilities, and θ if asked for."""
        torch.ops.aten._assert_tensor_metadata(pixels, dtype=self.dtype)  # a graph of torch.export keeps this one
        pixels = of_dtype(pixels, self.dtype)
        if not self.returns_theta:
            return self.scores(pixels).softmax(dim=1)
        with recording(self.net) as passes:
            probabilities = self.scores(pixels).softmax(dim=1)
        return probabilities, torch.cat([views[0].theta.float() for views in passes.values()], dim=1)


def graph(network: ExportedNetwork, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph of operations, for any number of images."""
    return torch.export.export(network, (example,), dynamic_shapes=BATCH)


def write_exported(path: Path, run: Run, network: ExportedNetwork, metadata: Metadata, opset: int) -> None:
    """Writes a file of the format that the ending of `path` tells; `opset` is for ONNX."""
    # Two images, because torch.export takes a batch of one for a constant.
    example = torch.zeros(2, run.channels, run.image_size, run.image_size, dtype=network.dtype)
    if path.suffix == ".onnx":
        write_onnx(network, example, path, metadata, opset)
    elif path.suffix == ".pt":
        write_torchscript(network, example, path, metadata)
    elif path.suffix == ".pt2":
        write_pt2(network, example, path, metadata)
    else:
        write_safetensors(run, path, metadata)


def write_onnx(
    network: ExportedNetwork, example: Tensor, path: Path, metadata: Metadata, opset: int = OPSETS[0]
) -> None:
    """Writes an ONNX file with the input "pixels" and the outputs "probabilities" and, on request, "theta"."""
    import onnx

    program = graph(network, example).run_decompositions({torch.ops.aten.linalg_matrix_exp.default: exponential})
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=opset,
        input_names=["pixels"],
        output_names=["probabilities", "theta"][: 1 + network.returns_theta],
        dynamic_shapes=BATCH,  # its name
        verbose=False,
    )
    assert exported is not None
    for node in exported.model.graph:
        node.metadata_props.clear()  # the paths of this machine's source files
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    exported.save(path)
    onnx.checker.check_model(path, full_check=True)


def exponential(matrix: Tensor) -> Tensor:
    """The exponential of matrices (N, K, K), by scaling and squaring. ONNX has none.

    As exact as torch's for numbers up to 20, which `AffineExponential` admits.
    """
    squarings = 8
    power = small = matrix / 2**squarings
    less_one = small  # exp(small) - 1: beside the 1 its last digits would be lost
    for degree in range(2, 9):
        power = power @ small / degree
        less_one = less_one + power
    for _ in range(squarings):
        less_one = less_one @ less_one + 2 * less_one
    return less_one + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def write_torchscript(network: ExportedNetwork, example: Tensor, path: Path, metadata: Metadata) -> None:
    """Writes a frozen TorchScript module, for the CPU."""
    with torch_jit(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(network, (example,), check_trace=False))
        torch.jit.save(traced, path, {METADATA: json.dumps(metadata)})


@contextmanager
def torch_jit() -> Iterator[None]:
    """Hides that torch.jit is deprecated, and that a trace keeps one side of each `if`: the file is checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def write_pt2(network: ExportedNetwork, example: Tensor, path: Path, metadata: Metadata) -> None:
    """Writes a program of torch.export, for the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")  # views of one tensor
        torch.export.save(graph(network, example), path, extra_files={METADATA: json.dumps(metadata)})


def write_safetensors(run: Run, path: Path, metadata: Metadata) -> None:
    """Writes the weights of a run, and the description of its network from which `Run.open` builds it again."""
    from safetensors.torch import save

    # Copies, because it refuses weights that two layers share.
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in run.classifier.state_dict().items()
    }
    written = {"format": CHECKPOINT_FORMAT, "epoch": run.epoch, "versions": versions()}
    description = {"hyper_parameters": dict(run.classifier.hparams), "stn": written}
    texts = {key: json.dumps(value) for key, value in (metadata | {DESCRIPTION: description}).items()}
    path.write_bytes(save(weights, texts))


def open_exported(path: Path, allow: Sequence[str] = ()) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What an exported file computes: from pixels to probabilities and, if it has it, θ.

    allow: see `Run.open`.
    """
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: tuple(map(torch.from_numpy, session.run(None, {"pixels": pixels.numpy()})))
    if path.suffix == ".safetensors":
        classifier = Run.open(path, allow).classifier
        return lambda pixels: (classifier(pixels).softmax(dim=1),)
    if path.suffix == ".pt2":
        with warnings.catch_warnings():  # of early versions, about a buffer that they copy
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            module = torch.export.load(path).module()
    else:
        with torch_jit():
            module = torch.jit.load(path)

    def outputs(pixels: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = module(pixels)
        return found if isinstance(found, tuple) else (found,)

    return outputs
