"""Records θ of every transformer in a network, pass by pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stn.layers.transformer import SpatialTransformer


def transformers(network: nn.Module) -> dict[str, SpatialTransformer]:
    """Every spatial transformer in a network by its name, in order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SpatialTransformer)}


class ThetaRecord(NamedTuple):
    """θ (N, num_looks · P) of one forward pass of a transformer, and the size of its input in pixels."""

    theta: Tensor
    height: int
    width: int


@contextmanager
def recording(network: nn.Module) -> Iterator[dict[str, list[ThetaRecord]]]:
    """While open, records every forward pass of each transformer in a network, by the transformer's name.

    Inside it compiled networks run uncompiled, because hooks cannot watch compiled code.
    """
    records: dict[str, list[ThetaRecord]] = {}
    hooks = []
    for name, module in transformers(network).items():
        records[name] = []
        looks: list[Tensor] = []

        def before_pass(module: nn.Module, inputs: tuple[Tensor], looks: list[Tensor] = looks) -> None:
            looks.clear()  # drops the looks of a direct call of `theta`

        def after_look(head: nn.Module, features: object, theta: Tensor, looks: list[Tensor] = looks) -> None:
            looks.append(theta.detach())

        def after_pass(
            module: nn.Module, inputs: tuple[Tensor], output: object, name: str = name, looks: list[Tensor] = looks
        ) -> None:
            height, width = inputs[0].shape[2:]
            records[name].append(ThetaRecord(torch.cat(looks, dim=1), height, width))

        hooks.append(module.register_forward_pre_hook(before_pass))
        hooks.append(module.head.register_forward_hook(after_look))
        hooks.append(module.register_forward_hook(after_pass))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield records
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def thetas(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """θ of every transformer in a network, by the transformer's name, for a batch of images (N, C, H, W)."""
    with recording(network) as records:
        network(images)
    return {name: passes[-1].theta for name, passes in records.items()}
