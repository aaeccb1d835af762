"""Ways to run the program: as a user types it, or inside the test's process."""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from omegaconf import DictConfig

from stn.config import compose

# The same examples every time, however slow the machine.
settings.register_profile("stn", deadline=None, derandomize=True, max_examples=30, database=None)
settings.load_profile("stn")
torch.set_num_threads(1)  # the tests share the machine's cores

# A run of two seconds that still has every part of a long one.
TINY = [
    "data=shapes",
    "data.train_images=60",
    "data.test_images=20",
    "data.batch_size=20",
    "data.val_fraction=0.2",
    "model=convnet_small",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


def write_mnist(root: Path, counts: Mapping[str, int]) -> None:
    """Writes files as MNIST has them: "train" and "t10k", each with some images, the k-th of which is grey k."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in counts.items():
        grey = np.arange(count) % 256
        parts = {"images-idx3": grey[:, None, None].repeat(28, 1).repeat(28, 2), "labels-idx1": np.arange(count) % 10}
        for part, content in parts.items():
            header = bytes([0, 0, 8, content.ndim]) + b"".join(size.to_bytes(4, "big") for size in content.shape)
            (folder / f"{name}-{part}-ubyte").write_bytes(header + content.astype(np.uint8).tobytes())


ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_file_in_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["STN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def environment() -> dict[str, str]:
    """The user's environment with this checkout importable from anywhere."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


# A server that has imported everything forks a process for each command: importing takes four seconds. The process
# imports this file too, and so pytest and hypothesis.
server = multiprocessing.get_context("forkserver")
ours = ["stn.training", "stn.evaluation_files", "stn.benchmark.train"]
server.set_forkserver_preload([*ours, "torch.utils.tensorboard", "pytest", "hypothesis"])


def started(
    folder: Path, verb: str, arguments: tuple[str, ...], variables: dict[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """A process that runs `python -m stn.<verb>` in a folder; its output goes to .stdout and .stderr there."""
    process = server.Process(target=_run, args=(verb, arguments, str(folder), environment() | (variables or {})))
    process.start()
    return process


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """python -m stn.train, or another verb, with the arguments given, in an empty folder."""

    def run(
        *arguments: str, verb: str = "train", variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        process = started(tmp_path, verb, arguments, variables)
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"stn.{verb} {arguments} runs for more than 300 seconds")
        said = [(tmp_path / name).read_text() for name in (".stdout", ".stderr")]
        for name in (".stdout", ".stderr"):
            (tmp_path / name).unlink()
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)

    return run


def _fork_server(path: str, arguments: list[str], handles: list[int]) -> int:
    """Forks the server of a sweep's jobs off this process, where a new Python would import everything once more."""
    process = os.fork()
    if process == 0:
        for handle in set(range(3, 256)) - set(handles):
            with suppress(OSError):
                os.close(handle)
        forkserver._forkserver._lock = threading.Lock()  # type: ignore[attr-defined]  # this one is held
        try:
            exec(arguments[-1])
        finally:
            os._exit(0)
    return process


def _run(verb: str, arguments: tuple[str, ...], folder: str, variables: dict[str, str]) -> None:
    """In the new process: what `python -m stn.<verb>` does, its output in files of the folder."""
    gc.freeze()  # each collection would go through all that the server has imported, and copy its memory
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    torch.set_num_threads(1)
    if "-m" in arguments:  # now, while this process is as clean as a new one
        multiprocessing.util.spawnv_passfds = _fork_server  # type: ignore[attr-defined]
        forkserver.ensure_running()
    sys.path[:0] = variables["PYTHONPATH"].split(":")
    sys.argv = ["", *arguments]
    try:
        runpy.run_module(f"stn.{verb}", run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config from overrides, for a run in `tmp_path`/run."""
    return lambda *overrides: compose(overrides, tmp_path / "run")
