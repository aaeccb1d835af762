"""What is wrong with the input is said in one sentence, with exit code 2, by the command as a user types it."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command
from PIL import Image


def refused(found: subprocess.CompletedProcess[str], *said: str, program: str = "stn.train") -> None:
    """One sentence with these words on the standard error, exit code 2."""
    assert found.returncode == 2, found.stderr + found.stdout
    assert "Traceback" not in found.stderr
    sentences = [line for line in found.stderr.splitlines() if line.startswith(f"{program}: ")]
    assert len(sentences) == 1, found.stderr
    for words in said:
        assert words in sentences[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.batchsize=64", "data has no key 'batchsize'; did you mean 'batch_size'?"),
        ("optimizr.lr=1", "no group 'optimizr'; did you mean 'optimizer'?"),
        ("optimizer.lrr=1", "optimizer has no key 'lrr'; did you mean 'lr'?"),
        ("model=lenett", "model=lenett: there is no such model; did you mean 'lenet'?"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer.lr=-1", "lr must be above 0 and finite, not -1"),
        ("data.batch_size=0", "data: batch_size must be 1 or more, not 0"),
        ("callbacks.resizing.start=20", "start must lie in (0, 1], not 20"),
        ("callbacks.resizing.until=0", "until must lie in (0, 1], not 0"),
        ("callbacks=best_epoch callbacks.checkpoint.monitor=val/acc", "could not find the monitored key"),
        (
            "data.batch_size=49",
            "batch_size 49 is larger than the training set of 48 images: set data.batch_size=32 or less",
        ),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 must be 1 or more"),
        ("hydra.run.dir=/dev/null/run", "the output folder cannot be written"),
        ("folder=/dev/null/run", "folder: /dev/null/run: Not a directory"),
        ("hydra.run.dir=", "a run would fill the current folder: give it one of its own"),
        ("+logger.tensorboard.more=1", "logger: SummaryWriter.__init__() got an unexpected keyword argument 'more'"),
        ("data=[1,2]", "a group needs the name of one of its choices"),
        ("model.localization._partial_=false", "model.localization={"),
        ("data.image_size=1000000000000", "data: image_size must be 4096 or less"),
        ("trainer.devices=1000000000000", "trainer.devices=1000000000000 is more than this machine has: set "),
        ("trainer.devices='1024'", "trainer.devices=1024 is more than this machine has: set "),
        ("+trainer.val_check_interval='00:00:15:00'", "must be a share, up to 1.0, or a whole number of batches"),
        ("trainer.limit_train_batches=1e30", "must be a share, up to 1.0, or a whole number of batches"),
        ("callbacks.last.dirpath=''", "callbacks.last.dirpath is empty: leave it out, or give a name"),
        ("on_divergence=wait", "on_divergence=wait must be stop or restart"),
        ("allow=[1]", "allow=[1] must be a package whose code you trust"),
        ("model.placement=none model.localization.hidden=8", "does nothing with model.placement=none: leave out one"),
        ("model.placement=shared model/localization=conv", "does nothing with model.placement=shared"),
        ("model.placement=none model/warp=tps", "model/warp=tps does nothing with model.placement=none"),
        ("optimizer.schedule=cosine optimizer.warmup=0.1", "nothing with optimizer.schedule=cosine"),
        ("model.placement=none optimizer.localization_lr_scale=1", "does nothing with model.placement=none"),
        ("model.placement=none callbacks.resizing.start=0.5", "does nothing with model.placement=none"),
        ("optimizer=adamw +optimizer.momentum=0.5", "does nothing with optimizer.algorithm=adamw"),
        ("optimizer=muon +optimizer.fused=true", "does nothing with optimizer.algorithm=muon"),
        ("data.validate_on=test", "data.val_fraction=0.2 does nothing with data.validate_on=test: leave out one"),
        ("logger=none trainer.log_every_n_steps=3", "is for a logger, and there is none"),
        ("model.transformer.num_looks=1000000000", "num_looks must lie between 1 and 16"),
        (
            "+model.transformer.output_size=4000",
            "a whole number or (height, width), each from 1 to 1024",
        ),
        ("data/distortion=rts data.distortion.rotation=200", "rotation must lie between 0 and 180 degrees, not 200"),
        ("data/distortion=rts data.distortion.canvas=20", "canvas must be 32 or more, the side of the images, not 20"),
        (
            "data/distortion=clutter data/test_distortion=rts",
            "distortion and test_distortion must have one canvas, not 64 and 32 pixels",
        ),
        ("pose_weight=-1", "pose_weight=-1 must be a number, 0 or more"),
        ("model.transformer=nan", "model.transformer"),
        ("model.transformer.classifier_gradient=0", "leaves the transformer nothing to learn from: set pose_weight=1"),
        (
            "pose_weight=1 model.transformer.align_corners=true",
            "pose_weight=1 needs model.transformer.align_corners=false",
        ),
        ("pose_weight=1 model.placement=none", "pose_weight=1 needs a transformer: set model.placement=input"),
        (
            "pose_weight=1 data/distortion=clutter data.distortion.pieces=3 model/warp=rotation",
            "of the distortion of these images: set model/warp=similarity",
        ),
        ("pose_weight=1 data.flip=true", "needs the poses of the data set, which are moved: set data.flip=false"),
        (
            "pose_weight=1 model.transformer.classifier_gradient=0 model.placement=parallel",
            "teaches the first transformer alone, so with model.transformer.classifier_gradient=0 the others",
        ),
        ("arm=ceiling data/distortion=none", "changes a distortion, and there is none: set data/distortion=rts"),
        (
            "arm=search tta=mirror model=wide",
            "arm=search looks in 12 directions by tta=turns, not tta=mirror: set tta=",
        ),
        ("model=wide +model.classifier.channels=3", "choose from convolutions, scale, widths"),
        ("arm=transformr", "arm=transformr: there is no such arm; did you mean 'transformer'?"),
        ("data.test_images=1000000000000", "GiB of memory, but there are"),
        ("resume=nowhere", "stn.train: nowhere does not exist: give a run's folder, a checkpoint, or latest"),
        ("logger=null", "a group needs the name of one of its choices"),
        ("compile=fast", "compile=fast must be null, default, reduce-overhead or max-autotune"),
        ("matmul_precision=low", "matmul_precision=low must be highest, high or medium"),
        ("channels_last=2", "channels_last=2 must be true or false"),
        ("seed=[1", "'seed=[1' is not understood"),
        ("model.warp._target_=torch.nn.Linear", "must be an object with a _target_, a Warp"),
        ("model.localization._target_=torch.nn.Linear", "model.localization has no key 'channels'"),
        ("model.transformer.padding=[]", "model: padding must be 3 numbers, one for each channel, not []"),
        ("model.classifier.dropout=nan", "dropout probability has to be between 0 and 1, but got nan"),
        ("~model.warp", "model.warp is missing: model needs it"),
        ("~optimizer.lr", "optimizer.lr is missing: optimizer needs it"),
        ("~trainer.max_epochs", "trainer.max_epochs=null must be 1 or more"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu must be auto, cpu, gpu, cuda or mps"),
        ("~data", "data: it is left out by ~data, but something else in the config needs it"),
        ("trainer.devices=-1", "trainer.devices=-1 must be 1 or more, or auto"),
        ("trainer.devices=abc", "trainer: "),
        (
            "trainer.precision=transformer-engine",
            "must be 32-true, 64-true, bf16-mixed",
        ),
        ("+trainer.val_check_interval=0", "trainer.val_check_interval=0 must be above 0"),
        ("+trainer.val_check_interval=1000", "`val_check_interval` (1000) must be less than or equal to the number"),
        ("+trainer.max_steps=0", "trainer.max_steps=0 must be 1 or more"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 must be above 0"),
        ("+trainer.limit_test_batches=0", "trainer.limit_test_batches=0 must be above 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must not be negative"),
        ("trainer.log_every_n_steps=-1", "trainer.log_every_n_steps=-1 must not be negative"),
        ("data.mean=[nan,0,0]", "data: mean must be null, or a number for each of the channels (3), not [nan, 0, 0]"),
        ("callbacks.last.filename=../../x", "must be the name of a file in the run's folder, without /"),
        ("data.train_images=1000000000000", "images of 3 x 32 x 32 need 5,722,045.9 GiB of memory, but there are"),
        ("model.localization.hidden=1000000000000", "model: there is not enough memory for so large a value"),
    ],
)
def test_settings(override: str, said: str, command: Command) -> None:
    refused(command(*TINY, *override.split()), said)


def test_a_callback_that_watches_nothing(command: Command) -> None:
    stop = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"
    found = command(*TINY, stop, "+callbacks.stop.monitor=nothing", "callbacks.progress=null")
    refused(found, "Early stopping conditioned on metric `nothing` which is not available")


def test_an_output_folder_whose_log_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    refused(command(*TINY, "hydra.run.dir=run"), "the output folder cannot be written", "train.log")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_where_there_is_none(command: Command) -> None:
    refused(
        command(*TINY, "trainer=gpu"), "trainer.accelerator=gpu", "torch finds no GPU here", "trainer.accelerator=auto"
    )


def test_compiling_without_a_compiler(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused(command(*TINY, "compile=default"), "compile=default needs a C++ compiler", "leave compile=null")


def test_no_network_and_no_data(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):  # a port where nobody answers: the same on every machine
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    found = command("trainer.max_epochs=1")
    refused(found, str(tmp_path / "data"), "cifar-10-batches-py", "data=shapes", "data=image_folder")


@pytest.mark.parametrize("data", ["cifar10", "image_folder"])
def test_a_data_root_that_is_a_file(data: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(command(f"data={data}", "data.root=file"), "file", "is not a folder" if data != "cifar10" else "is a file")


def test_a_data_root_that_is_not_there(command: Command) -> None:
    refused(command("data=image_folder", "data.root=nowhere"), "nowhere is not a folder: set data.root to")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split in ("train", "test"):
        for colour in ("green", "red"):
            (root / split / colour).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (32, 32), colour).save(root / split / colour / f"{index}.png")
    return root


FOLDER = ["data=image_folder", "data.root=images", "data.batch_size=4", "data.val_fraction=0.25", "model=convnet_small"]
QUICK = ["trainer=cpu", "trainer.max_epochs=1", "callbacks=minimal", "logger=none"]


def test_a_truncated_image_is_named(command: Command, tree: Path) -> None:
    path = tree / "test" / "red" / "3.png"
    path.write_bytes(path.read_bytes()[:50])
    refused(command(*FOLDER, *QUICK), "images/test/red/3.png is not a readable image")


def test_broken_images_of_both_sets_are_named(command: Command, tree: Path) -> None:
    broken = [tree / "test" / "red" / "3.png", tree / "train" / "red" / "2.png", tree / "train" / "green" / "5.png"]
    for path in broken:
        path.write_bytes(b"")
    found = command(*FOLDER, *QUICK)
    refused(found, "3 of 32 files are no readable images: ")
    assert all(str(path.relative_to(tree.parent)) in found.stderr for path in broken)


@pytest.mark.parametrize("name", ["Bilder von mír", "photo (1)", "it's #1"])
def test_a_path_is_understood_as_the_shell_gives_it(name: str, command: Command, tree: Path) -> None:
    tree.rename(tree.with_name(name))
    settings = ["data=image_folder", *FOLDER[2:], f"data.root={name}" if "'" not in name else f'data.root="{name}"']
    found = command(*settings, *QUICK, f"hydra.run.dir=run {name}" if "'" not in name else "hydra.run.dir=run")
    assert found.returncode == 0, found.stderr


def test_what_is_refused_leaves_nothing(command: Command, tmp_path: Path) -> None:
    refused(command("data=image_folder", "data.root=nowhere"), "nowhere is not a folder")
    refused(command("hydra.run.dir=."), "a run would fill the current folder")
    (tmp_path / "mine").mkdir()
    refused(command("hydra.run.dir=mine", "data=image_folder", "data.root=nowhere"), "nowhere is not a folder")
    assert (tmp_path / "mine").is_dir()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".std")]
    assert not (tmp_path / "outputs").exists()


def test_a_run_is_not_written_among_the_users_files(command: Command, tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    for more in ([], ["overwrite=true"]):
        found = command(*FOLDER, *QUICK, "hydra.run.dir=images", *more)
        refused(found, "images holds test/ already, which is not of a run: give another folder")
    assert sorted(tree.rglob("*")) == before


def test_a_turn_beyond_the_warps_reach_is_told(command: Command, tree: Path) -> None:
    turned = ["data/distortion=rotation", "data.distortion.rotation=180", "model/warp=rotation_classes"]
    found = command(*FOLDER, *QUICK, *turned, "pose_weight=1", "data.batch_size=8", "data.flip=false", "data.shift=0")
    assert found.returncode == 0, found.stderr
    assert "the warp by 90 at most: set model.warp.span=360 model.warp.classes=24" in found.stdout


def test_what_is_refused_after_it_has_logged_leaves_its_error(command: Command, tree: Path) -> None:
    (tree / "test" / "red" / "3.png").write_bytes(b"")
    refused(command(*FOLDER, *QUICK, "hydra.run.dir=run"), "3.png is not a readable image")
    assert "3.png is not a readable image" in (tree.parent / "run" / "error.txt").read_text()


def test_a_pipe_among_the_images_is_named(command: Command, tree: Path) -> None:
    os.mkfifo(tree / "train" / "red" / "x.png")
    refused(command(*FOLDER, *QUICK), "images/train/red/x.png is named as an image, but it is no regular file")


def test_the_home_folder_is_understood(command: Command, tree: Path) -> None:
    arguments = [text.replace("=images", "=~/images") for text in FOLDER]
    found = command(*arguments, *QUICK, "hydra.run.dir=run", variables={"HOME": str(tree.parent)})
    assert found.returncode == 0, found.stderr


def test_test_classes_that_are_not_the_training_classes(command: Command, tree: Path) -> None:
    (tree / "test" / "green").rename(tree / "test" / "blue")
    refused(command(*FOLDER, *QUICK), "the classes of images/test are others: it lacks 'green' and has 'blue'")


def test_an_empty_class(command: Command, tree: Path) -> None:
    for split in ("train", "test"):
        (tree / split / "white").mkdir()
    refused(command(*FOLDER, *QUICK), "the class folder images/train/white is empty")


def test_images_of_other_sizes_are_resized_with_a_note(command: Command, tree: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(tree / "train" / "red" / "0.png")
    found = command(*FOLDER, *QUICK)
    assert found.returncode == 0, found.stderr
    assert "images/train: 1 of 16 images resized to 32 x 32" in found.stdout + found.stderr


def test_the_users_own_images_of_two_classes(command: Command, tree: Path) -> None:
    found = command(*FOLDER, "trainer=cpu", "trainer.max_epochs=3", "optimizer.lr=0.05", "hydra.run.dir=run")
    assert found.returncode == 0, found.stderr
    assert (tree.parent / "run" / "metrics.json").is_file()
