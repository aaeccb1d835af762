"""Times the candidates of a comparison in turns, so that a slow machine slows all of them."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch

SHORTEST = 0.02  # seconds; shorter calls are repeated until they take so long


def interleaved(arms: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per call of each arm, once in each of `rounds` rounds, after a warm-up."""
    calls = {name: warmed_up(arm, device) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms)
        # Each arm comes after every other one in turn.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(timed(arms[name], calls[name], device))
    return seconds


def warmed_up(arm: Callable[[], object], device: torch.device) -> int:
    """Warms up `arm`, and returns how many calls to time together."""
    timed(arm, 1, device)
    return max(1, math.ceil(SHORTEST / timed(arm, 1, device)))


def timed(arm: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds per call of `arm`, the mean of `calls` calls."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        arm()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratio of two arms, taken round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return median(ratios), low, high
