"""Optimizer and schedule, with a rate of its own for the localization."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn, optim

from stn.layers import transformers
from stn.muon import Muon


@dataclass(frozen=True)
class Optimization:
    """How a network is trained.

    algorithm: "sgd"; "adamw"; or "muon", which is SGD with Nesterov momentum, and Muon for the filters of all
    convolutions but the transformers' own. lr: the highest learning rate. schedule: "constant"; "cosine", from lr to
    0; or "one_cycle", up during the first `warmup` of all steps and down to 0. momentum, nesterov: of SGD and Muon.
    weight_decay: on weights of two dimensions and more; never on biases, norms and the transformers' own last layers,
    for whose θ 0 is no natural place. localization_lr: factor on lr for all that lies in a spatial transformer.
    norm_lr: factor on lr for the batch norms of all else (K. Jordan 2024, section 3.4, has 64). filter_lr: factor on lr
    for what Muon trains, which does not decay. fused: SGD or AdamW as one operation on all weights.
    Raises ValueError for values out of range.
    """

    algorithm: Literal["sgd", "adamw", "muon"]
    lr: float
    schedule: Literal["constant", "cosine", "one_cycle"]
    weight_decay: float = 0.0
    localization_lr: float = 1.0
    norm_lr: float = 1.0
    filter_lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    warmup: float = 0.2
    fused: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        for name in ("weight_decay", "localization_lr", "norm_lr", "filter_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        if self.algorithm == "muon" and not self.nesterov:
            raise ValueError("algorithm=muon needs nesterov=True")
        if self.algorithm != "muon" and self.filter_lr != 1:
            raise ValueError(f"filter_lr={self.filter_lr} is for algorithm=muon, not {self.algorithm}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup must lie between 0 and 1, not {self.warmup}")

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """The network's parameters, those that are trained, in a group for each rate and decay.

        `factor` is the group's rate in terms of `lr`.
        """
        modules = transformers(net)
        heads = {parameter for module in modules.values() for parameter in module.head.parameters()}
        # What a localization shares with the rest of the network is not its own.
        prefixes = tuple(f"{name}." if name else "" for name in modules)
        every = net.named_parameters(remove_duplicate=False)
        shared = {parameter for name, parameter in every if not name.startswith(prefixes)} if modules else set()
        localization = {p for module in modules.values() for p in module.parameters()} - shared
        norms = {p for module in net.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
        filters = {module.weight for module in net.modules() if isinstance(module, nn.Conv2d)} - localization
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for parameter in net.parameters():
            if parameter.requires_grad:
                orthogonal = self.algorithm == "muon" and parameter in filters
                factor = self.filter_lr if orthogonal else self.norm_lr if parameter in norms else 1.0
                if parameter in localization:
                    factor = self.localization_lr
                decays = parameter.ndim > 1 and parameter not in heads and not orthogonal
                decay = self.weight_decay if decays else 0.0
                groups.setdefault((factor, decay, orthogonal), []).append(parameter)
        return [
            {"params": parameters, "factor": factor, "lr": self.lr * factor, "weight_decay": decay, "orthogonal": flag}
            for (factor, decay, flag), parameters in groups.items()
        ]

    def is_fused(self, clipped: bool) -> bool:
        """Whether the optimizer is one operation: not where `clipped`, which Lightning cannot do for a fused one."""
        return self.fused and self.algorithm != "muon" and not clipped

    def build(
        self, net: nn.Module, steps: int, *, clipped: bool = False
    ) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
        """The optimizer of `net` and its schedule over `steps` steps, to be advanced after each.

        clipped: its gradients are clipped.
        """
        groups, fused = self.groups(net), self.is_fused(clipped)
        optimizer: optim.Optimizer
        if self.algorithm == "sgd":
            optimizer = optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
        elif self.algorithm == "muon":
            optimizer = Muon(groups, lr=self.lr, momentum=self.momentum)
        else:
            optimizer = optim.AdamW(groups, lr=self.lr, fused=fused)
        if self.schedule == "one_cycle":
            highest = [group["lr"] for group in groups]
            steps = max(steps, math.ceil(2 / self.warmup))  # OneCycleLR divides by the warmup's steps, less one
            return optimizer, optim.lr_scheduler.OneCycleLR(
                optimizer, highest, total_steps=steps, pct_start=self.warmup, cycle_momentum=False
            )
        if self.schedule == "cosine":
            return optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return optimizer, optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
