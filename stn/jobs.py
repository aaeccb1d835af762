"""Runs a job of Hydra: in this process, or, in a sweep, in a process of its own."""

import atexit
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stn import cli, config, sweep
from stn.check import allowed_packages, check_effects
from stn.errors import InputError


def run(composed: DictConfig) -> Any:
    """Trains here. Prints an error at once, saves it in the run's folder, and exits.

    Returns the best validation accuracy, which Hydra's optimizing sweepers take as the objective.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    begun = last_begun(folder)
    try:
        # Here, since --help and --cfg job must not wait for torch.
        with cli.undisturbed():
            from stn.resuming import resumed
            from stn.training import train

        checkpoint, overrides = None, HydraConfig.get().overrides.task
        if composed.resume is not None:
            composed, checkpoint = resumed(str(composed.resume), overrides, allowed_packages(composed.allow))
        elif sweep.is_resumed():
            found = sweep.continued(composed, folder)
            if found is None:
                print(f"{os.path.relpath(folder)} is finished")
                return None
            composed, checkpoint = found
        elif HydraConfig.get().mode is RunMode.RUN:  # a sweep may combine a key with others under which it does nothing
            check_effects(composed, overrides)
        return train(composed, checkpoint=checkpoint).get("best_val_accuracy")
    except Exception as error:
        if cli.received:
            raise
        is_job = HydraConfig.get().mode is RunMode.MULTIRUN
        # A run that is refused before it begins prints its error only; a job of a sweep also keeps it in its folder.
        is_told = is_job or has_logged(folder) or not config.explain(error)
        is_kept = last_begun(folder) != begun or (begun is None and is_told)
        code = cli.report_error("stn.train", error, folder if is_kept else None)
        if not is_kept and not has_logged(folder):
            is_new = not any(word.startswith("hydra.run.dir=") for word in HydraConfig.get().overrides.hydra)
            with suppress(OSError):
                (folder / "train.log").unlink()  # Hydra has made it
                if begun is None and is_new:
                    for place in (folder, *folder.parents[:2]):  # outputs/<date>/<time>, as far as they are empty
                        if not Path.cwd().is_relative_to(place):
                            place.rmdir()
        sys.exit(code)


def in_temporary_folder(words: list[str]) -> list[str]:
    """The words of a command line with a temporary folder as that of the run.

    Of several processes that a launcher started, the first one alone writes the folder of the run.
    """
    folder = tempfile.mkdtemp(prefix="stn-process-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [
        *(word for word in words if not word.startswith("hydra.run.dir=")),
        f"hydra.run.dir={config.quoted(folder)}",
    ]


def has_logged(folder: Path) -> bool:
    """Whether something is in the log of a run."""
    log = folder / "train.log"
    return log.is_file() and log.stat().st_size > 0


def last_begun(folder: Path) -> int | None:
    """When the run in a folder was last begun or resumed, in ns; None if there is none."""
    path = folder / "config.yaml"  # is written then
    return path.stat().st_mtime_ns if path.exists() else None


def run_apart(composed: DictConfig) -> Any:
    """As `run`, in a process of its own: whatever ends it, and whatever it leaves behind, does not touch the others.

    In a sweep that goes on, a job that is finished is left as it is, and an interrupted one is resumed.
    Raises JobFailedError, after which a sweep continues, and InputError for a job that would resume another run.
    """
    if composed.resume is not None:
        raise InputError("resume goes on with a single run: leave out -m")
    # A server that has imported everything forks the processes, since importing takes seconds.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["stn.training"])
    folder = Path(HydraConfig.get().runtime.output_dir)
    # joblib's processes have a way to start others that these do not know, and cannot pickle their launcher's classes.
    multiprocessing.set_start_method(None, force=True)
    plain = OmegaConf.create(OmegaConf.to_container(HydraConfig.instance().cfg))
    process = context.Process(target=_run_here, args=(composed, plain))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt as interruption:
        if isinstance(interruption, cli.Terminated):
            process.terminate()  # Ctrl-C reaches it by itself
        process.join()
        raise
    code = process.exitcode or 0
    if code:
        died = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        print(f"stn.train: the job in {os.path.relpath(folder)} {died}", file=sys.stderr)
        raise cli.JobFailedError(code if code > 0 else cli.FAILED)
    with suppress(OSError, ValueError):
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("best_val_accuracy")


def _run_here(composed: DictConfig, hydra_config: Any) -> None:
    """In the new process: what Hydra has prepared in the other one, then the job."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setup_globals()
    config.register()
    HydraConfig.instance().cfg = hydra_config
    configure_log(hydra_config.hydra.job_logging, hydra_config.hydra.verbose)
    with cli.exit_codes("stn.train"):
        run(composed)


def _end_with_parent() -> None:
    """Ends this process in order when the other one ends: a sweep that is killed leaves no job behind."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
