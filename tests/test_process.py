"""Settings of the whole process."""

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from omegaconf import DictConfig

from stn import process
from stn.process import compare_threads, prepare_process, warn_of_threads

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_threads_are_set(two_threads: None, composed: Callable[..., DictConfig]) -> None:
    prepare_process(composed("data=shapes"))
    assert torch.get_num_threads() == 2
    prepare_process(composed("data=shapes", "threads=1"))
    assert torch.get_num_threads() == 1


def test_a_comparison_leaves_the_threads(two_threads: None) -> None:
    assert min(compare_threads()) > 0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("found", "warned"), [((3.0, 60.0), True), ((3.0, 1.6), False)])
def test_threads_that_are_slower_than_one_are_told(
    found: tuple[float, float],
    warned: bool,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process, "compare_threads", lambda: found)
    with caplog.at_level(logging.WARNING):
        warn_of_threads(CPU)
        warn_of_threads(torch.device("cuda"))
    said = "2 threads are slower here than one: a matrix product takes 60.0 ms instead of 3.0 ms"
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True] * warned
