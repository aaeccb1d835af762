"""A sweep ends with the table of its runs, and goes on with what is missing."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from conftest import TINY, Command
from omegaconf import DictConfig

from stn.config import compose
from stn.errors import InputError
from stn.process import locked
from stn.sweep import arguments, continued, read_overrides
from stn.training import train

SETTINGS = [*TINY, "callbacks.progress=null", "callbacks.summary=null", "optimizer=plain_sgd"]


class Interrupt(pl.Callback):
    """Ctrl-C in the second epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def interrupted(config: DictConfig) -> None:
    """A run that was interrupted in its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(config, [Interrupt()])


def times(folder: Path) -> dict[Path, int]:
    """When the files of a run were written, without its log, which tells that it was looked at."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "train.log"}


def test_a_sweep_ends_with_its_table_and_goes_on_with_what_is_missing(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "a sweep"
    with locked(sweep / "3"):  # so that this job fails
        found = command("-m", *SETTINGS, "optimizer.lr=0.01,0.02", "seed=1,2", "hydra.sweep.dir='a sweep'")
    assert found.returncode == 2, found.stderr
    assert "stn.train: the job in a sweep/3 failed with exit code 2\n" in found.stderr
    assert "not counted: a sweep/3: failed: another process is training in" in found.stdout
    content = json.loads((sweep / "comparison" / "comparison.json").read_text())
    assert {row["settings"]["optimizer.lr"]: row["seeds"] for row in content["rows"]} == {"0.01": "1 2", "0.02": "1"}
    assert found.stdout.splitlines()[-1] == content["conclusion"]

    # One job is finished, one was interrupted after an epoch, one is missing, and one has failed.
    finished = times(sweep / "0")
    before = {job: json.loads((sweep / job / "metrics.json").read_text()) for job in ("1", "2")}
    shutil.rmtree(sweep / "2")
    interrupted(compose([*SETTINGS, "optimizer.lr=0.01", "seed=2", "overwrite=true"], sweep / "1"))
    first = (sweep / "1" / "figures" / "warps" / "transformer_epoch_001.png").stat().st_mtime_ns
    found = command("-m", "resume=a sweep")
    assert found.returncode == 0, found.stderr
    assert times(sweep / "0") == finished and "a sweep/0 is finished\n" in found.stdout
    # Each job tells the command that runs it alone.
    for job, chosen in (("0", ["optimizer.lr=0.01", "seed=1"]), ("2", ["optimizer.lr=0.02", "seed=1"])):
        environment = json.loads((sweep / job / "environment.json").read_text())
        assert environment["command"] == shlex.join(["python", "-m", "stn.train", *SETTINGS, *chosen])
    assert (sweep / "1" / "figures" / "warps" / "transformer_epoch_001.png").stat().st_mtime_ns == first, "anew"
    for job, metrics in before.items():
        again = json.loads((sweep / job / "metrics.json").read_text())
        assert {name: again[name] for name in ("test_loss", "epochs")} == {
            name: metrics[name] for name in ("test_loss", "epochs")
        }
    assert not (sweep / "3" / "error.txt").exists()
    content = json.loads((sweep / "comparison" / "comparison.json").read_text())
    assert [row["seeds"] for row in content["rows"]] == ["1 2", "1 2"] and not content["not_counted"]
    assert found.stdout.splitlines()[-1] == content["conclusion"]


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the multirun.yaml of a sweep."""
    monkeypatch.chdir(tmp_path)

    def write(*task: str, hydra: tuple[str, ...] = ("hydra.mode=MULTIRUN",)) -> Path:
        path = tmp_path / "sweep" / "multirun.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.dump({"seed": 0, "hydra": {"overrides": {"task": [*task], "hydra": [*hydra]}}}))
        return path

    return write


def test_a_sweep_is_resumed_by_the_settings_it_was_started_with(multirun: Callable[..., Path], tmp_path: Path) -> None:
    multirun("model=lenet,wide", "seed=1,2", hydra=("hydra.launcher._target_=os.system", "hydra.sweep.dir=elsewhere"))
    given = ["resume=sweep", "-m", "hydra/launcher=joblib"]
    resumes = ["hydra.sweep.dir='sweep'", "hydra.callbacks.sweep.resumes=true", "hydra/launcher=joblib"]
    assert arguments(given) == ["-m", "model=lenet,wide", "seed=1,2", *resumes]
    assert arguments(["resume=sweep", "seed=1"]) == ["resume=sweep", "seed=1"]  # a single run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume=nowhere"], "nowhere does not exist: give a sweep's folder, or latest"),
        (["resume=latest"], "latest: there is no sweep in"),
        (["resume=."], ". has no multirun.yaml: give the folder of a sweep"),
        (["resume=sweep", "seed=1,2"], "seed=1,2 cannot be set on resuming a sweep, which keeps its settings"),
        (["resume=sweep"], "sweep was started with hydra.sweep.subdir=x, which says what its jobs are: give it again"),
        (
            ["resume=sweep", "hydra.sweep.subdir=x"],
            "sweep was started with hydra.sweeper.params.arm=plain,wider, which",
        ),
    ],
)
def test_what_is_no_sweep_to_resume(words: list[str], said: str, multirun: Callable[..., Path]) -> None:
    multirun("seed=1,2", hydra=("hydra.sweep.subdir=x", "hydra.sweeper.params.arm=plain,wider"))
    with pytest.raises(InputError) as error:
        arguments(["-m", *words])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        "+hydra.callbacks.harm._target_=os.system",
        "hydra/launcher=joblib",
        "experiment=../../harm",
        "+experiment@hydra.callbacks.harm=demo",
        "data.root=${oc.env:HOME}",
        "folder=/home",
        "allow=subprocess.",
        "resume=elsewhere",
        "[",
    ],
)
def test_a_sweep_from_anybody_sets_nothing_but_the_config_of_runs(setting: str, multirun: Callable[..., Path]) -> None:
    path = multirun("seed=1,2", setting)
    with pytest.raises(InputError, match=r"multirun.yaml cannot be resumed from"):
        read_overrides(path)


def test_a_job_of_a_sweep_from_anybody_builds_no_other_classes(tmp_path: Path) -> None:
    config = compose([*SETTINGS, "+callbacks.harm._target_=os.system", "+callbacks.harm.command=true"], tmp_path)
    with pytest.raises(InputError, match=r"_target_=os.system is not a part of this version of stn"):
        continued(config, tmp_path)


def test_a_job_of_a_sweep_from_anybody_writes_nowhere_else(tmp_path: Path) -> None:
    config = compose([*SETTINGS, "callbacks=default", "callbacks.last.dirpath=/elsewhere"], tmp_path)
    with pytest.raises(InputError, match=r"callbacks.last.dirpath=/elsewhere lies outside"):
        continued(config, tmp_path)


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    interrupted(compose(SETTINGS, tmp_path / "0"))
    before = times(tmp_path / "0")
    for setting, said in {"seed=3": "seed=0, not 3", "optimizer.lr=9": "optimizer.lr=0.01, not 9"}.items():
        with pytest.raises(InputError, match=f"0 holds a run with {said}: move it away"):
            continued(compose([*SETTINGS, "threads=1", setting], tmp_path / "0"), tmp_path / "0")
    assert times(tmp_path / "0") == before


def test_a_sweep_in_the_folder_of_another_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("kept")
    found = command("-m", *SETTINGS, "seed=5", "hydra.sweep.dir=sweep")
    assert found.returncode == 2
    assert "sweep holds a sweep already: go on with it by -m resume=sweep, or give another folder" in found.stderr
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["multirun.yaml"]
    assert (tmp_path / "sweep" / "multirun.yaml").read_text() == "kept"


def test_an_attempt_that_is_refused_leaves_no_error_in_the_folder_of_a_run(command: Command, tmp_path: Path) -> None:
    interrupted(compose(SETTINGS, tmp_path / "run"))
    for words in (["resume=run", "optimizer.lr=1"], [*SETTINGS, "hydra.run.dir=run"]):
        assert command(*words).returncode == 2
        assert not (tmp_path / "run" / "error.txt").exists()
