"""A run opens again, from its folder, from a checkpoint, as latest; what cannot be opened is said in one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command
from test_bad_input import refused

import stn
from stn.build import build_trainer
from stn.config import compose
from stn.data import ShapesDataModule
from stn.errors import InputError
from stn.options import check_output
from stn.resuming import resumed
from stn.run import find_run, latest
from stn.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    train(compose([*TINY, "callbacks=best_epoch", "callbacks.warps=null", "callbacks.progress=null"], folder))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run to change, in outputs/ of the test's own folder."""
    return shutil.copytree(trained, tmp_path / "outputs" / "day" / "time")


def changed(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a checkpoint with something in it changed."""
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, checkpoint)


def test_an_opened_network_takes_pixels_and_scores_as_it_was_tested(trained: Path) -> None:
    run = stn.Run.open(trained)
    data = ShapesDataModule(train_images=60, test_images=20)
    data.setup("test")
    assert (run.classes, run.channels, run.image_size) == (list(data.classes), 3, 32)
    assert run.checkpoint == trained / run.metrics["tested_checkpoint"] and run.epoch == run.metrics["tested_epoch"]
    with torch.no_grad():
        scores = run.classifier(data.images["test"])
        torch.testing.assert_close(run.classifier(data.images["test"] / 255), scores)
    accuracy = (scores.argmax(1) == data.labels["test"]).float().mean().item()
    assert accuracy == pytest.approx(run.metrics["test_accuracy"])
    loss = torch.nn.functional.cross_entropy(scores, data.labels["test"]).item()
    assert loss == pytest.approx(run.metrics["test_loss"], rel=1e-4)


def test_latest_is_the_run_that_wrote_a_checkpoint_last(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = shutil.copytree(trained, tmp_path / "outputs" / "day" / "later-sweep" / "0")
    for path in job.rglob("*.ckpt"):
        os.utime(path, (1, 1))
    assert latest() == folder.relative_to(tmp_path)
    os.utime(job / "checkpoints" / "last.ckpt", (2**31, 2**31))
    assert stn.Run.open("latest").folder == job.relative_to(tmp_path)


def test_a_checkpoint_opens_within_its_run_and_alone(trained: Path, tmp_path: Path) -> None:
    within = stn.Run.open(trained / "checkpoints" / "last.ckpt")
    assert within.folder == trained and within.epoch == 2 and within.config is not None
    alone = stn.Run.open(shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "network.ckpt"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(alone.classifier(images), within.classifier(images))
    assert alone.config is None and alone.metrics == {}
    with pytest.raises(InputError, match=r"network.ckpt is not in the folder of a run.* give that folder"):
        alone.settings()


def test_a_checkpoint_opens_from_within_its_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in (("checkpoints", "last.ckpt"), ("figures", "../checkpoints/last.ckpt"), (".", "checkpoints")):
        monkeypatch.chdir(trained / place)
        where = Path(name) / "last.ckpt" if name == "checkpoints" else Path(name)
        assert stn.Run.open(where).folder.resolve() == trained and stn.Run.open(where).config is not None
    monkeypatch.chdir(trained / "checkpoints")
    with pytest.raises(InputError, match="is finished after 2 epochs"):
        resumed("last.ckpt")


def test_a_folder_that_nobody_may_look_into_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    for look in (lambda: find_run("/secret/run"), lambda: check_output(Path("/secret/new"), False, "mark")):
        with pytest.raises(InputError, match=r"^(output: )?/secret/(run|new): Permission denied$"):
            look()


def test_a_run_of_a_machine_with_more_cores_opens(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("threads: null", "threads: 1000"))
    assert stn.Run.open(folder).settings().threads == os.cpu_count()


def test_a_text_of_the_config_may_name_the_folder_anywhere(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("arm: null", "arm: 'file:${folder}/store'"))
    assert stn.Run.open(folder).settings().arm == f"file:{folder}/store"


def test_a_checkpoint_tells_versions_and_epoch(trained: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["stn"]["epoch"] == 2
    assert content["stn"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"classes", "channels", "image_size"} <= content["hyper_parameters"].keys()


def test_the_last_checkpoint_is_written_after_the_best_and_so_knows_it(tmp_path: Path) -> None:
    trainer = build_trainer(compose([*TINY, "callbacks=best_epoch"], tmp_path))
    assert [getattr(callback, "monitor", "none") for callback in trainer.checkpoint_callbacks] == ["val/accuracy", None]


def test_a_run_repeated_from_its_own_config_is_another_run(trained: Path, command: Command, tmp_path: Path) -> None:
    folder = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = command("--config-path", str(folder))
    assert found.returncode == 0, found.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (new,) = (tmp_path / "outputs").glob("*/*-*-*-*")  # named to the microsecond, as always
    assert not (new / ".hydra").exists()
    first, again = (json.loads((path / "metrics.json").read_text()) for path in (folder, new))
    for metrics in (first, again):
        for name in ("seconds", "seconds_per_epoch", "images_per_second"):
            del metrics[name]
    assert again == first


def test_the_commands_are_verbs_of_one(folder: Path, command: Command) -> None:
    found = command("evaluate", "latest", verb="__main__")
    assert found.returncode == 0 and "pose error" in found.stdout, found.stderr
    shown = command("--help", verb="__main__")
    assert shown.returncode == 0
    for verb in ("train", "evaluate", "benchmark"):
        assert f"stn {verb} " in shown.stdout and f"stn.{verb}" in command(verb, "--help", verb="__main__").stdout
    wrong = command("evalute", verb="__main__")
    assert (wrong.returncode, wrong.stderr) == (2, "stn: there is no verb 'evalute'; did you mean 'evaluate'?\n")


def diverged(content: dict[str, Any]) -> None:
    next(iter(content["state_dict"].values())).fill_(torch.nan)


def old(content: dict[str, Any]) -> None:
    del content["stn"]


def newer(content: dict[str, Any]) -> None:
    content["stn"]["format"] += 1


def narrow(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["model"]["classifier"]["hidden"] = 7


def unknown(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["model"]["warp"]["_target_"] = "stn.layers.Wrap"


def swapped(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["classes"].reverse()


def renamed(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["classes"][3] = "hat"


def fewer(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["classes"].pop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (old, "was written by an earlier version of stn (format 1; this version needs 3): open it with that version"),
        (newer, "was written by a later version of stn (format 4; this version needs 3)"),
        (narrow, "best.ckpt has weights that do not fit the network it describes"),
        (fewer, "best.ckpt has weights that do not fit the network it describes"),
        (unknown, "best.ckpt: _target_=stn.layers.Wrap is not a part of this version of stn"),
        (renamed, "they lack 'hat' and they have 'ell' besides: give data of the same classes"),
        (swapped, "they are in another order: give data of the same classes"),
        (diverged, "best.ckpt has weights that are not finite, it has diverged: give another checkpoint"),
        (dict.clear, "best.ckpt is not a checkpoint of stn.train: give another checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], said: str, folder: Path, command: Command
) -> None:
    changed(folder / "checkpoints" / "best.ckpt", change)
    refused(command(str(folder), verb="evaluate"), said, program="stn.evaluate")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint(share: float, folder: Path, command: Command) -> None:
    path = folder / "checkpoints" / "best.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    said = "best.ckpt cannot be read, it may be incomplete", "give another checkpoint"
    refused(command(str(folder), verb="evaluate"), *said, program="stn.evaluate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latest"], "latest: there is no run with a checkpoint in"),
        (["nowhere"], "nowhere does not exist: give a run's folder, a checkpoint, or latest"),
        (["empty"], "empty has no checkpoint in checkpoints/: give the folder of another run"),
        (["sweep"], "sweep holds the runs of a sweep: give one of them, such as sweep/0"),
        (["run", "data.batchsize=3"], "data has no key 'batchsize'; did you mean 'batch_size'?"),
        (["run", "data.image_size=40"], "data.image_size=40 is not what run/checkpoints/best.ckpt was trained on"),
        (["run", "data.test_images=0"], "data: train_images 60 and test_images 0 must be 2 and 1 or more"),
        (["run", "trainer=cpu"], "'trainer=cpu' chooses from a group, which a finished run has done already"),
        (["run", "data.root=a,b"], "'data.root=a,b' is not allowed for a finished run"),
        (["no_config"], "best.ckpt is not in the folder of a run, whose config.yaml says which data it needs"),
        (["broken_config"], "broken_config/config.yaml cannot be read as the config of a run"),
        (["broken_metrics"], "broken_metrics/metrics.json is not the JSON that a run writes"),
    ],
)
def test_what_cannot_be_opened(
    arguments: list[str], said: str, trained: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("run", "sweep/0", "no_config", "broken_config", "broken_metrics"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "no_config" / "config.yaml").unlink()
    (tmp_path / "broken_config" / "config.yaml").write_text("a: [")
    (tmp_path / "broken_metrics" / "metrics.json").write_text("{")
    refused(command(*arguments, verb="evaluate"), said, program="stn.evaluate")
