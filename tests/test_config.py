"""Every choice of every group composes, fits the code it configures, and says what is wrong when it does not."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from stn.build import build_classifier, build_data, build_trainer
from stn.check import arguments_of, check
from stn.classifier import Classifier
from stn.config import (
    compose,
    config_folder,
    expand_home,
    explain,
    fastest_precision,
    hydra_word,
    override,
    shell_word,
)
from stn.errors import InputError
from stn.layers import transformers
from stn.placement import Placement
from stn.training import train

Compose = Callable[..., DictConfig]

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in Path(config_folder()).iterdir()
    if group.is_dir()
}
LOCALIZATIONS, WARPS, DISTORTIONS, TEST_DISTORTIONS = (
    sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml"))
    for group in ("model/localization", "model/warp", "data/distortion", "data/test_distortion")
)
PLACEMENTS = get_args(Placement)


def classifier_of(config: DictConfig) -> Classifier:
    return build_classifier(config, build_data(config))


TRAINED: set[str] = set()  # what was trained by an earlier choice: those of the default network compose the same
HERE = {"default", "cpu", "mixed"}  # trainers that need nothing this machine may lack


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in GROUPS.items() for name in names])
def test_every_choice_composes_and_fits_the_code(choice: str, composed: Compose) -> None:
    config = composed(choice, *["data/distortion=rts"] * (choice == "arm=ceiling"))
    if choice == "trainer=gpu" and not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch finds no GPU here"):
            check(config)
    else:
        check(config)
    if choice.startswith(("experiment", "arm", "model", "optimizer")):
        classifier_of(config)


def test_the_ceiling_undoes_the_distortion_of_the_test_too(composed: Compose) -> None:
    for arm, undo in (("ceiling", True), ("plain", False)):
        for distortion in ("rts", "none", "elastic"):
            config = composed("experiment=does_it_help", f"arm={arm}", f"data/test_distortion={distortion}")
            assert config.data.test_distortion.undo is undo
    assert composed("data=shapes", "data/test_distortion=rts").data.test_distortion.undo is False


@pytest.mark.parametrize(
    "choice",
    [f"model={name}" for name in GROUPS["model"]]
    + [f"optimizer={name}" for name in GROUPS["optimizer"]]
    + [f"trainer={name}" for name in GROUPS["trainer"] if name in HERE]
    + [f"callbacks={name}" for name in GROUPS["callbacks"]]
    + [f"logger={name}" for name in GROUPS["logger"]]
    + [f"experiment={name}" for name in GROUPS["experiment"]]
    + [f"arm={name}" for name in GROUPS["arm"]]
    + [f"model.placement={name}" for name in PLACEMENTS]
    + [f"model/localization={name}" for name in LOCALIZATIONS]
    + [f"model/warp={name}" for name in WARPS]
    + [f"data/distortion={name}" for name in DISTORTIONS]
    + [f"data/test_distortion={name}" for name in TEST_DISTORTIONS if name != "clutter"],
)
def test_every_choice_trains(choice: str, composed: Compose, tmp_path: Path) -> None:
    if needed := {"logger=wandb": "wandb", "logger=mlflow": "sqlalchemy"}.get(choice):  # the extras of this project
        pytest.importorskip(needed)
    small = [value for value in TINY if value.partition("=")[0] != choice.partition("=")[0]]
    if choice.startswith("arm"):
        small.append("data/distortion=" + ("clutter" if choice == "arm=window" else "rts"))
    if choice.startswith(("experiment", "arm")):  # which need a network for any size
        small = [value for value in small if not value.startswith("model=")]
    config = composed(*small, choice, "trainer.max_epochs=1")
    text = OmegaConf.to_yaml(config, resolve=True).replace(str(tmp_path), "")
    if text not in TRAINED:
        train(config)
        assert (tmp_path / "run" / "metrics.json").is_file()
        TRAINED.add(text)


@pytest.mark.parametrize(("data", "tta"), [("cifar10", "poses"), ("mnist", "unmirrored_poses")])
def test_poses_are_read_in_a_mirror_where_training_mirrors(data: str, tta: str, composed: Compose) -> None:
    assert composed("experiment=does_it_help", "arm=transformer", f"data={data}").tta == tta


@pytest.mark.parametrize(("placement", "warp"), [(placement, warp) for placement in PLACEMENTS for warp in WARPS])
def test_every_warp_fits_every_placement(placement: str, warp: str, composed: Compose) -> None:
    config = composed("model=convnet_small", f"model.placement={placement}", f"model/warp={warp}")
    check(config)
    network = classifier_of(config).net.train()
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    heads = [transformer.head for transformer in transformers(network).values()]
    assert len(heads) == {"none": 0, "deep": 3, "parallel": 2}.get(placement, 1)
    assert all(head.weight.grad is not None and head.weight.grad.isfinite().all() for head in heads)


@pytest.mark.parametrize("model", GROUPS["model"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_network_takes_every_placement(model: str, placement: str, composed: Compose) -> None:
    config = composed(f"model={model}", f"model.placement={placement}", "data.image_size=40")
    if model == "jaderberg_fcn" and placement in ("features", "deep", "shared"):
        with pytest.raises(InputError, match=f"placement {placement} needs a classifier with feature maps"):
            classifier_of(config)
        return
    network = classifier_of(config).net
    assert network(torch.rand(2, 3, 40, 40)).shape == (2, 10)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("eva7_pujahari", 1_585_008),
        ("eva_part_a", 39_884),
        ("eva6_gilf641", 1_585_008),
        ("eva7_nemani", 802_492),
        ("lenet_half", 76_508),
        ("eva6_adil", 1_585_008),
    ],
)
def test_presets_are_the_published_systems(preset: str, parameters: int, composed: Compose) -> None:
    config = composed(f"experiment={preset}")
    classifier = classifier_of(config)
    assert sum(parameter.numel() for parameter in classifier.net.parameters()) == parameters
    optimizer, schedule = classifier.optimization.build(classifier.net, steps=100)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.0, 0.0)
    schedule.step()
    assert schedule.get_last_lr()[0] == 0.01
    data = config.data
    assert (data.batch_size, data.validate_on) == (64, "test")
    assert not any((data.flip, data.shift, data.cutout, data.cutmix))
    assert config.label_smoothing == 0 and classifier.tta == "none"
    assert config.trainer.max_epochs == (20 if preset == "eva6_adil" else 50)
    transformer = classifier.net.get_submodule("transformer")
    assert transformer.align_corners is (preset == "eva6_adil")
    assert transformer.padding == "zeros"
    assert data.mean[0] == (0.1307 if preset == "eva6_gilf641" else 0.4914)


def test_everything_trains_50_epochs_unless_a_preset_says_otherwise(composed: Compose) -> None:
    for name in GROUPS["trainer"]:
        assert composed(f"trainer={name}").trainer.max_epochs == 50


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+data.batchsize=3", r"data.batchsize=3: data has no key 'batchsize'; did you mean 'batch_size'\?"),
        ("data.batch_size=big", "data.batch_size=big must be a whole number"),
        ("data.batch_size=2.5", "data.batch_size=2.5 must be a whole number"),
        ("data.batch_size=true", "data.batch_size=True must be a whole number"),
        ("data.mean=[a,b,c]", "data.mean=.* must be a list of numbers"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer.algorithm=adam", "optimizer.algorithm=adam must be sgd, adamw or"),
        ("model.transformer.padding=same", "model.transformer.padding=same must be zeros, .*"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 must be 1 or more"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 must be 1 or more"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null must be 1 or more"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 must be 1 or more"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be 1 or more"),
        ("seed=-1", "seed=-1 must be a whole number from 0 to 4294967295"),
        ("seed=4294967296", "seed=4294967296 must be a whole number from 0 to"),
        ("seed=one", "seed=one must be a whole number from 0 to"),
        ("+max_epochs=3", r"no key and no group 'max_epochs'; did you mean 'trainer\.max_epochs'\?"),
        ("+sede=3", r"sede=3: the config has no key and no group 'sede'; did you mean 'seed'\?"),
        ("~trainer", "trainer=None: the config needs trainer"),
        ("+model.warp.size=3", "model.warp.size=3: model.warp has no key 'size'; it takes none"),
        ("+callbacks.theta.images=3", "callbacks.theta has no key 'images'; it takes none"),
        ("model.placement=depp", "model.placement=depp must be none, input, features, deep"),
        ("+model.classifier.num_classes=3", "model.classifier.num_classes=3 cannot be set: it comes from the data"),
        ("+model.localization.image_size=64", "image_size=64 cannot be set: it comes from data.image_size"),
        ("+model.in_channels=1", "model.in_channels=1 cannot be set: it comes from data.channels"),
        ("+trainer.logger=false", "trainer.logger=False cannot be set: it is the group logger"),
        ("+trainer.callbacks=[]", "trainer.callbacks=.* cannot be set: they are the group callbacks"),
        ("+trainer.default_root_dir=x", "trainer.default_root_dir=x cannot be set: it is the key folder"),
        (
            "callbacks.warps=3",
            "callbacks.warps=3 must be an object with a _target_; callbacks.warps=null leaves it out",
        ),
        ("model.classifier=null", "model.classifier=None must be an object with a _target_"),
        ("+model.clasifier.hidden=3", r"model.clasifier=.*: model has no key 'clasifier'; did you mean 'classifier'\?"),
        ("data.batch_size={a:1}", "data.batch_size={'a': 1} must be a whole number"),
        ("threads=0", "threads=0 must be null, or a whole number from 1 to the"),
        ("threads=1000", "threads=1000 must be null, or a whole number from 1 to the"),
        ("tta=2", "tta=2 must be null, none, mirror, six, turns, poses or unmirrored_poses"),
        ("label_smoothing=1.5", r"label_smoothing=1.5 must be a number in \[0, 1\)"),
        ("data._target_=0", "data._target_=0 must be the name of a class"),
        ("data._target_=stn.data.MNIST", "data._target_=stn.data.MNIST cannot be imported"),
    ],
)
def test_values_that_do_not_fit_are_named(override: str, said: str, composed: Compose) -> None:
    with pytest.raises(InputError, match=said):
        check(composed(override))


@pytest.mark.parametrize(
    ("override", "part", "said"),
    [
        ("data.batch_size=0", "data", "data: batch_size must be 1 or more, not 0"),
        ("callbacks.warps.images=0", "callbacks", "callbacks.warps: images must be 1 or more, not 0"),
        ("model.localization.kernels=[40,3]", "model", "model: .*image_size 32 is"),
        ("model.localization.shrink=0", "model", "shrink 0 must be 1 or more"),
        ("model.localization.hidden=-1", "model", "hidden -1, .* must be 1 or more"),
        ("model.classifier.widths=[64,0,256]", "model", "widths must be 1 or more"),
        ("optimizer.lr=-1", "optimizer", "optimizer: lr must be above 0 and finite, not -1"),
        ("optimizer.lr=nan", "optimizer", "optimizer: lr must be above 0 and finite, not nan"),
        ("trainer.precision=7", "trainer", "trainer: Precision '?7'? is invalid"),
    ],
)
def test_values_out_of_range_are_named_where_they_stand(override: str, part: str, said: str, composed: Compose) -> None:
    config = composed(override)
    with pytest.raises(InputError, match=said):
        if part in ("model", "optimizer", "data"):
            classifier_of(config)
        else:
            build_trainer(config)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.batchsize=3"], "data.batchsize: data has no key 'batchsize'; did you mean 'batch_size'?"),
        (["max_epochs=3"], "no key and no group 'max_epochs'; did you mean 'trainer.max_epochs'?"),
        (["optimizr=sgd"], "optimizr: the config has no key and no group 'optimizr'; did you mean 'optimizer'?"),
        (["model=lenett"], "model=lenett: there is no such model; did you mean 'lenet'?"),
        (
            ["experiment=eva7_nemany"],
            "experiment=eva7_nemany: there is no such experiment; did you mean 'eva7_nemani'?",
        ),
        (["seed=[1"], "'seed=[1' is not understood; write key=value, or quote the value"),
        (["model/placement=deep"], "there is no group 'model/placement'; write model.placement=… for a key, or did"),
        (
            ["model/wrap=tps"],
            "there is no group 'model/wrap'; write model.wrap=… for a key, or did you mean 'model/warp'?",
        ),
        (
            ["trainer.overfit_batches=1"],
            "trainer.overfit_batches is not in the config, which uses its default: set it with +",
        ),
    ],
)
def test_command_lines_that_do_not_compose_are_explained(overrides: list[str], said: str, composed: Compose) -> None:
    with pytest.raises(InputError) as caught:
        composed(*overrides)
    assert said in str(caught.value)


def test_other_errors_are_not_explained_away() -> None:
    assert explain(RuntimeError("a bug")) is None


def test_precision_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for fast, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert fastest_precision("auto") == fastest_precision("cpu") == expected


def test_the_saved_config_is_the_composed_one(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY, "trainer.max_epochs=1", "seed=7")
    train(config)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert str(tmp_path) not in text and "folder: ${hydra:runtime.output_dir}\n" in text
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    saved.folder = config.folder
    del saved["hydra"]
    assert OmegaConf.to_container(saved, resolve=True) == OmegaConf.to_container(config, resolve=True)


def test_a_gpu_without_bfloat16_is_named(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    check(composed(*TINY, "trainer=default"))
    with pytest.raises(InputError, match="this GPU, an old GPU, has no bfloat16; use 16-mixed or 32-true"):
        check(composed(*TINY, "trainer=mixed"))


def test_a_finished_config_is_changed_key_by_key(composed: Compose) -> None:
    config = composed("data.batch_size=32", "data.shift=1")
    changed = override(
        config, ["data.batch_size=64", "data.mean=[0,0,0]", "trainer.precision='32-true'", "+trainer.benchmark=true"]
    )
    assert changed.trainer.benchmark is True and "benchmark" not in config.trainer
    assert (changed.data.batch_size, config.data.batch_size, changed.data.shift) == (64, 32, 1)
    assert changed.data.mean == [0, 0, 0] and changed.trainer.precision == "32-true"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data.batchsize=3", "data has no key 'batchsize'; did you mean 'batch_size'?"),
        ("~data.mean", "'~data.mean' is not allowed for a finished run: write key=value"),
        ("data=cifar10", "'data=cifar10' chooses from a group"),
        ("model/warp=tps", "'model/warp=tps' chooses from a group"),
        ("seed=1,2", "'seed=1,2' is not allowed for a finished run"),
        ("seed=[1", "'seed=[1' is not understood"),
        ("photos", "'photos' is not understood"),
    ],
)
def test_changes_that_cannot_be_meant_are_named(text: str, said: str, composed: Compose) -> None:
    with pytest.raises(InputError) as caught:
        override(composed(), [text])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "at_home"),
    [
        ("data.root=~", "data.root=/home/me"),
        ("data.root=~/images,~/more", "data.root=/home/me/images,/home/me/more"),
        ("+data.roots=[~/a,b]", "+data.roots=[/home/me/a,b]"),
        ("data.root=a~/b", "data.root=a~/b"),
        ("~data.root=~x", "~data.root=~x"),
    ],
)
def test_the_home_folder_is_understood_in_a_value(text: str, at_home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(text) == at_home


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_is_typed_into_a_shell(value: str) -> None:
    (word,) = shlex.split(shell_word("resume", value))
    (parsed,) = OverridesParser.create().parse_overrides([hydra_word(word)])
    assert parsed.value() == value or "${" in value


def test_the_home_folder_is_understood_in_every_override(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = composed("data=image_folder", "data.root=~/images")
    assert config.data.root == "/home/me/images"
    assert override(config, ["data.root=~/others"]).data.root == "/home/me/others"


def test_a_config_without_a_folder_has_a_new_one() -> None:
    first, second = compose(), compose()
    assert first.folder.startswith("outputs/") and first.folder != second.folder
    assert first.callbacks.warps.folder == f"{first.folder}/figures"


def test_null_leaves_a_callback_out(composed: Compose) -> None:
    config = composed("callbacks.learning_rate=null", "callbacks.progress=null", "callbacks.summary=null")
    check(config)
    kinds = {type(callback).__name__ for callback in build_trainer(config).callbacks}
    assert not kinds & {"LearningRateMonitor", "TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary"}
    assert {"History", "WarpGallery", "ThetaMonitor", "ModelCheckpoint"} <= kinds


def test_a_callback_takes_no_other_keys(composed: Compose) -> None:
    with pytest.raises(InputError, match=r"callbacks.average has no key 'decai'; did you mean 'decay'\?"):
        check(composed("+callbacks.average.decai=0.9"))
    with pytest.raises(InputError, match=r"callbacks.average: decay must lie in \[0, 1\), not 1.5"):
        build_trainer(composed("callbacks.average.decay=1.5"))


def test_hints_that_cannot_be_resolved_accept_anything() -> None:
    def target(logger: "NotImported", images: int = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
        """As loggers have it that import their library only for type checking."""

    assert arguments_of(target)[0] == {"logger": Any, "images": Any}


def test_a_compiler_may_have_arguments(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "python -v")
    check(composed("compile=default"))
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(InputError, match="compile=default needs a C"):
        check(composed("compile=default"))


@pytest.mark.parametrize("folder", ["null", "[]", "3"])
def test_a_folder_is_a_path(folder: str) -> None:
    with pytest.raises(InputError, match=r"folder=.* must be a path"):
        check(compose([f"folder={folder}"]))
