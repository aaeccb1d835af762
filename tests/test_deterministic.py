"""Training that repeats itself: with trainer.deterministic=true nothing may run that CUDA does in a random order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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


def on_a_gpu(config: DictConfig) -> set[str]:
    """What the network of a config would run in training on a GPU; there need not be one."""
    with FakeTensorMode(), torch.device("cuda"), Operations() as ran:
        scores = instantiate(config.model)(torch.rand(4, 3, 32, 32))
        torch.nn.functional.cross_entropy(scores, torch.rand(4, 10).softmax(1))
    return ran.names


@pytest.mark.parametrize("model", ["wide", "lenet", "convnet"])
@pytest.mark.parametrize(
    "choice", ["placement=deep", "placement=parallel", "placement=shared", "warp=tps", "warp=diffeomorphic"]
)
@pytest.mark.usefixtures("deterministic")
def test_every_network_has_a_gradient_that_repeats_itself_on_a_gpu(
    model: str, choice: str, composed: Callable[..., DictConfig]
) -> None:
    names = on_a_gpu(composed(f"model={model}", f"model/{choice}"))
    assert any("gather" in name for name in names)
    assert not [name for name in names if any(random in name for random in RANDOM)]


def test_without_it_the_faster_sampler_is_used(composed: Callable[..., DictConfig]) -> None:
    assert any("grid_sampler" in name for name in on_a_gpu(composed()))
