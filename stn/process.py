"""Settings of the whole process, for commands that compute."""

import ctypes
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from omegaconf import DictConfig

log = logging.getLogger(__name__)


def prepare_process(config: DictConfig) -> None:
    """Makes the settings that a checked config needs: quiet, with fast memory, in the precision it asks for."""
    silence_lightning()
    tune_malloc()
    torch.set_float32_matmul_precision(config.matmul_precision)
    if config.threads:
        torch.set_num_threads(config.threads)
    threading.excepthook = report_unless_tensorboard
    _ChildProcessObserver._terminate_all = wait_and_terminate  # type: ignore[assignment,method-assign]


def compare_threads() -> tuple[float, float]:
    """Milliseconds of a matrix product with one thread, and with as many as this process has. It takes 0.1 s.

    Beside another program that computes, threads wait for each other, and several can be far slower than one.
    """
    factor, threads = torch.ones(512, 512), torch.get_num_threads()
    found: dict[int, list[float]] = {1: [], threads: []}
    try:
        for _ in range(7):
            for number, seconds in found.items():
                torch.set_num_threads(number)
                start = time.perf_counter()
                factor @ factor
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * median(found[1]), 1000 * median(found[threads])


def warn_of_threads(device: torch.device) -> None:
    """Warns if several threads of a CPU are slower than one."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return
    one, several = compare_threads()
    if several > one:
        log.warning(
            "%d threads are slower here than one: a matrix product takes %.1f ms instead of %.1f ms. Something else "
            "computes on this machine: try threads=1.",
            threads,
            several,
            one,
        )


class LockedError(Exception):
    """Another process holds a folder."""


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Makes a folder and holds it, until the end of the block or of the process. Raises LockedError unless `wait`.

    Where there are no locks, or the folder cannot be made, nothing is held.
    """
    handle = -1
    try:
        with suppress(ImportError, OSError):
            import fcntl  # not on Windows

            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise LockedError(str(folder)) from error
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def report_unless_tensorboard(error: threading.ExceptHookArgs) -> None:
    """Reports what ended a thread, unless it is TensorBoard's, which raises it in the main thread too."""
    if not type(error.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(error)


def wait_and_terminate(observer: _ChildProcessObserver, terminate: Any = _ChildProcessObserver._terminate_all) -> None:
    """Lets this process end in order when one that it started has ended. Lightning would kill it at once."""
    time.sleep(20)
    terminate(observer)


def tune_malloc() -> None:
    """Tells the C library to keep freed memory. Fetching new pages costs a fifth of a training step on a CPU."""
    mmap_max, trim_threshold = -4, -1
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def silence_lightning() -> None:
    """Hides Lightning's tips, and its warnings about what this project does on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.loggers.mlflow").setLevel(logging.ERROR)  # it warns of a new experiment
    for message in (
        "Experiment logs directory .* exists",
        "Checkpoint directory .* exists",
        "The number of training batches",
        "Precision .* is not supported by the model summary",
        "The ``compute`` method of metric .* was called before",  # in a process without images
        ".*isinstance.treespec, LeafSpec.",
    ):
        warnings.filterwarnings("ignore", message=message)
