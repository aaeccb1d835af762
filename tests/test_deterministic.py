"""Training that repeats itself: with trainer.deterministic=true nothing may run that CUDA does in a random order."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stn.layers import sampling

# Of torch.use_deterministic_algorithms' list of what has no deterministic gradient on CUDA.
RANDOM = ("grid_sampler", "adaptive", "upsample", "reflection_pad", "max_pool3d", "avg_pool3d", "nll_loss2d")


class Operations(TorchDispatchMode):
    """Names of the operations that run while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(op))
        return op(*args, **(kwargs or {}))


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def operations(config: DictConfig, device: str, *, backward: bool) -> set[str]:
    """What the network of a config runs in training on a device, which need not be there."""
    with FakeTensorMode() if device == "cuda" else nullcontext(), torch.device(device):
        network, images = instantiate(config.model), torch.rand(4, 3, 32, 32)
        with Operations() as ran:
            loss = torch.nn.functional.cross_entropy(network(images), torch.rand(4, 10).softmax(1))
            if backward:
                loss.backward()
    return ran.names


def random(names: set[str]) -> list[str]:
    return [name for name in names if any(part in name for part in RANDOM)]


@pytest.mark.parametrize("model", ["wide", "lenet", "convnet"])
@pytest.mark.parametrize(
    "choice", [".placement=deep", ".placement=parallel", ".placement=shared", "/warp=tps", "/warp=diffeomorphic"]
)
@pytest.mark.usefixtures("deterministic")
def test_every_network_has_a_gradient_that_repeats_itself(
    model: str, choice: str, composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, as on a GPU: without one, autograd runs no backward pass on that device."""
    monkeypatch.setattr(sampling, "must_gather", lambda image: torch.is_grad_enabled())
    names = operations(composed(f"model={model}", f"model{choice}"), "cpu", backward=True)
    assert any("gather" in name for name in names) and any("convolution_backward" in name for name in names)
    assert not random(names)


@pytest.mark.usefixtures("deterministic")
def test_on_a_gpu_transformers_gather(composed: Callable[..., DictConfig]) -> None:
    names = operations(composed(), "cuda", backward=False)
    assert any("gather" in name for name in names) and not random(names)


def test_without_it_the_faster_sampler_is_used(composed: Callable[..., DictConfig]) -> None:
    assert any("grid_sampler" in name for name in operations(composed(), "cuda", backward=False))
    assert any("grid_sampler_2d_backward" in name for name in operations(composed(), "cpu", backward=True))
