"""Nothing makes or moves a float64 tensor to the device: Apple's MPS has none, and raises an error."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_warps import FAMILIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stn.figures import readings, sheet
from stn.layers import ConvLocalization, SpatialTransformer, Warp, figure_points, thetas
from stn.metrics import PoseError, ThetaStatistics
from stn.networks import Normalization

APPLE = torch.device("meta")  # a name that every build of torch knows; its tensors here do hold values


class OnApple(Tensor):
    """A tensor that says it is on `APPLE`, and is computed on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnApple":
        if values.dtype is torch.float64:
            raise TypeError("the device has no float64")
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=APPLE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("the mode below takes every operation")


class Apple(TorchDispatchMode):
    """Computes on a device that has no float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        moves = kwargs.get("device")
        here = (
            any(isinstance(leaf, OnApple) for leaf in tree_leaves((args, kwargs))) if moves is None else moves == APPLE
        )
        plain = tree_map(lambda leaf: leaf.values if isinstance(leaf, OnApple) else leaf, (args, kwargs))
        if moves is not None:
            plain[1]["device"] = torch.device("cpu")
        made = func(*plain[0], **plain[1])
        return tree_map(lambda leaf: OnApple(leaf) if here and isinstance(leaf, Tensor) else leaf, made)


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know "meta"
    with Apple():
        yield APPLE


def test_the_device_has_no_float64(apple: torch.device) -> None:
    numbers = torch.ones(3, dtype=torch.float64)
    for make in (
        lambda: numbers.to(apple),
        lambda: torch.ones(3, dtype=torch.float64, device=apple),
        lambda: torch.ones(3, device=apple).double(),
    ):
        with pytest.raises(TypeError, match="the device has no float64"):
            make()
    there = numbers.to(apple, torch.float32)
    assert there.device == apple and (there + 1).sum().item() == 6 and there.cpu().double().device.type == "cpu"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformer_is_used_without_float64(family: Callable[[], Warp], apple: torch.device) -> None:
    localization = ConvLocalization(channels=[2, 2], hidden=4)
    transformer = SpatialTransformer(localization, family(), num_looks=2).to(apple)
    images = torch.rand(4, 3, 32, 32).to(apple)
    transformer(images).square().sum().backward()
    assert transformer.head.bias.grad is not None and transformer.head.bias.grad.device == apple
    theta = thetas(transformer, images)[""]
    transformer.decompose(theta)
    assert transformer.to_output(theta, torch.rand(5, 2).to(apple)).device == apple

    statistics = ThetaStatistics(transformer.to_input).to(apple)
    statistics.update(theta, 32, 32)
    assert all(value.isfinite() and value.device == apple for value in statistics.compute().values())
    error = PoseError(transformer.to_input, 32, 32).to(apple)
    error.update(theta, figure_points().expand(4, -1, -1), torch.arange(4) % 2)  # which are float64
    assert all(value.isfinite() for value in error.compute().values())
    pixels, normalization = torch.zeros(4, 3, 32, 32, dtype=torch.uint8).to(apple), Normalization().to(apple)
    sheet(readings(transformer, normalization, theta, pixels, list("abcd")), "title")
