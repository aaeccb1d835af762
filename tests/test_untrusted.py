"""Files from anybody: none acts, none takes the memory it asks for, and each gets its sentence."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Command
from test_bad_input import refused

import stn
from stn.config import compose
from stn.errors import InputError
from stn.resuming import resumed
from stn.training import train

Content = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    quiet = [
        "callbacks=best_epoch",
        "callbacks.warps=null",
        "callbacks.progress=null",
        "trainer.max_epochs=1",
        "optimizer=plain_sgd",
    ]
    train(compose([*TINY, *quiet], folder))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the current folder that hostile files try to make."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


# Objects that would make the file "canary" if something built them from a config.
ACTS: dict[str, Any] = {
    "os.system": {"_target_": "os.system", "command": "touch canary"},
    "subprocess.run": {"_target_": "subprocess.run", "args": ["touch", "canary"]},
    "Popen": {"_target_": "subprocess.Popen", "args": ["touch", "canary"]},
    "eval": {"_target_": "builtins.eval", "_args_": ["open('canary', 'w')"]},
    "exec": {"_target_": "builtins.exec", "_args_": ["open('canary', 'w')"]},
    "open": {"_target_": "builtins.open", "file": "canary", "mode": "w"},
    "io.open": {"_target_": "io.open", "file": "canary", "mode": "w"},
    "sympify": {"_target_": "sympy.sympify", "a": "open('canary', 'w')"},
    "write_text": {"_target_": "pathlib.Path.write_text", "self": {"_target_": "pathlib.Path"}, "data": ""},
    "touch": {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["canary"]}]},
    "copyfile": {"_target_": "shutil.copyfile", "src": "run/config.yaml", "dst": "canary"},
    "torch.hub.load": {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.save": {"_target_": "torch.save", "obj": 1, "f": "canary"},
    "torch.load": {"_target_": "torch.load", "f": "evil.pkl", "weights_only": False},
    "numpy.save": {"_target_": "numpy.save", "file": "canary", "arr": [1]},
    "re-export": {"_target_": "stn.networks.torch.save", "obj": 1, "f": "canary"},
    "re-export of nn": {"_target_": "torch.nn.functional.torch.save", "obj": 1, "f": "canary"},
    "re-export of layers": {"_target_": "stn.layers.transformer.torch.save", "obj": 1, "f": "canary"},
    "own function": {"_target_": "stn.training.make_folder", "folder": "canary", "overwrite": True},
    "own main": {"_target_": "stn.config.save", "config": {}, "path": "canary"},
    "method": {"_target_": "torch.nn.Module.compile", "self": None},
    "method of a class": {"_target_": "stn.layers.Affine.register_forward_hook", "hook": None},
    "global hook": {"_target_": "torch.nn.modules.module.register_module_forward_hook", "hook": None},
    "partial": {"_target_": "os.system", "_partial_": True, "command": "touch canary"},
    "hydra": {"_target_": "hydra.utils.call", "config": {"_target_": "os.mknod", "path": "canary"}},
    "get_method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "run": {"_target_": "stn.run.Run.open", "where": "evil"},
    "module": {"_target_": "antigravity.fly"},
    "nested": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.mknod", "path": "canary"}]},
    "interpolation": "${oc.create:{_target_: os.mknod, path: canary}}",
    "environment": "${oc.env:HOME}",
    "not a name": {"_target_": 7},
    "dotted nonsense": {"_target_": "stn.layers...os.system"},
    "prefix": {"_target_": "stnx.layers.Affine"},
}


@pytest.mark.parametrize("part", ["model.warp", "model", "optimizer"])
@pytest.mark.parametrize("node", ACTS.values(), ids=ACTS)
def test_no_checkpoint_acts(node: Any, part: str, trained: Path, canary: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    *outer, name = part.split(".")
    parent = content["hyper_parameters"]
    for key in outer:
        parent = parent[key]
    parent[name] = node
    torch.save(content, "evil.ckpt")
    with pytest.raises(InputError, match=r"evil.ckpt( describes a network that cannot be built here|: _target_=)"):
        stn.Run.open("evil.ckpt")
    assert not canary.exists()


@pytest.mark.parametrize("part", ["callbacks.theta", "trainer", "data", "logger.csv"])
@pytest.mark.parametrize("node", ACTS.values(), ids=ACTS)
def test_no_config_of_a_run_acts(node: Any, part: str, folder: Path, canary: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *outer, name = part.split(".")
    parent = config
    for key in outer:
        parent = parent[key]
    parent[name] = node
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if node == "${oc.env:HOME}":  # it is a text then, and builds nothing
        return
    for opened in (lambda: stn.Run.open("run"), lambda: resumed("run", ["trainer.max_epochs=9"])):
        with pytest.raises(InputError, match=r"config.yaml"):
            opened()
    assert not canary.exists()


class Touch:
    """Makes the file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def pickled(content: Content, path: Path) -> None:
    torch.save(content | {"extra": Touch()}, path)


def plain_pickle(content: Content, path: Path) -> None:
    path.write_bytes(pickle.dumps(Touch()))


def legacy(content: Content, path: Path) -> None:
    torch.save({"extra": Touch()}, path, _use_new_zipfile_serialization=False)


def script(content: Content, path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def instantiator(content: Content, path: Path) -> None:
    content["hyper_parameters"]["_instantiator"] = "os.system"
    torch.save(content, path)


def bomb(content: Content, path: Path) -> None:
    torch.save(content, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/999", bytes(2**26))


def stretched(content: Content, path: Path) -> None:
    content["state_dict"]["net.classifier.0.weight"] = torch.zeros(1).expand(2**40)
    torch.save(content, path)


def wide(content: Content, path: Path) -> None:
    content["hyper_parameters"]["model"]["classifier"]["hidden"] = 2**40
    torch.save(content, path)


def large_images(content: Content, path: Path) -> None:
    content["hyper_parameters"]["image_size"] = 2**30
    torch.save(content, path)


def many_channels(content: Content, path: Path) -> None:
    content["hyper_parameters"]["channels"] = 2**40
    torch.save(content, path)


def negative(content: Content, path: Path) -> None:
    content["hyper_parameters"]["image_size"] = -4
    torch.save(content, path)


def many_looks(content: Content, path: Path) -> None:
    content["hyper_parameters"]["model"]["transformer"]["num_looks"] = 10**9
    torch.save(content, path)


def deep(content: Content, path: Path) -> None:
    node: Any = []
    for _ in range(100):
        node = [node]
    content["hyper_parameters"]["model"]["warp"] = node
    torch.save(content, path)


def laughs(content: Content, path: Path) -> None:
    node: Any = ["ha"]
    for _ in range(19):
        node = [node] * 10
    content["hyper_parameters"]["model"]["warp"] = node
    torch.save(content, path)


def on_a_device(content: Content, path: Path) -> None:
    large = {"_target_": "torch.nn.Linear", "in_features": 2**14, "out_features": 2**14, "device": "cpu"}
    content["hyper_parameters"]["model"]["warp"] = large
    torch.save(content, path)


def deep_network(content: Content, path: Path) -> None:
    rnn = {"_target_": "torch.nn.RNN", "input_size": 1, "hidden_size": 1, "num_layers": 10**9}
    content["hyper_parameters"]["model"]["warp"] = rnn
    torch.save(content, path)


def long_list(content: Content, path: Path) -> None:
    content["hyper_parameters"]["model"]["localization"]["channels"] = [1] * 10**5
    torch.save(content, path)


class Zeros:
    """A bytearray of a gibibyte, which weights_only admits."""

    def __reduce__(self) -> Any:
        return bytearray, (2**30,)


def bytes_of_memory(content: Content, path: Path) -> None:
    torch.save(content | {"extra": Zeros()}, path)


def sparse(content: Content, path: Path) -> None:
    content["state_dict"]["net.classifier.0.weight"] = torch.eye(3).to_sparse()
    torch.save(content, path)


def words_for_weights(content: Content, path: Path) -> None:
    content["state_dict"] = dict.fromkeys(content["state_dict"], "weight")
    torch.save(content, path)


def not_a_dict(content: Content, path: Path) -> None:
    torch.save([1, 2, 3], path)


def words_for_parts(content: Content, path: Path) -> None:
    torch.save(content | {"hyper_parameters": "model optimizer"}, path)


def odd_format(content: Content, path: Path) -> None:
    content["stn"]["format"] = "two"
    torch.save(content, path)


def no_epoch(content: Content, path: Path) -> None:
    del content["stn"]["epoch"]
    torch.save(content, path)


def random_words(content: Content, path: Path) -> None:
    content["stn"]["random_state"] = "random"
    torch.save(content, path)


def nameless(content: Content, path: Path) -> None:
    content["hyper_parameters"]["classes"] = [1, 2]
    torch.save(content, path)


def no_classes(content: Content, path: Path) -> None:
    content["hyper_parameters"]["classes"] = []
    torch.save(content, path)


def empty(content: Content, path: Path) -> None:
    path.touch()


def noise(content: Content, path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def other_zip(content: Content, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../canary", "")


def directory(content: Content, path: Path) -> None:
    (path / "checkpoints").mkdir(parents=True)


def weights_alone(content: Content, path: Path) -> None:
    torch.save(OrderedDict(content["state_dict"]), path)


CHECKPOINTS = [pickled, plain_pickle, legacy, script, instantiator, bomb, stretched, wide, large_images, many_channels]
CHECKPOINTS += [negative, many_looks, deep, laughs, sparse, words_for_weights, not_a_dict, words_for_parts, odd_format]
CHECKPOINTS += [on_a_device, deep_network, long_list, bytes_of_memory]
CHECKPOINTS += [no_epoch, random_words, nameless, no_classes, empty, noise, other_zip, directory, weights_alone]


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda make: make.__name__)
def test_a_hostile_checkpoint_is_told(make: Callable[[Content, Path], None], trained: Path, canary: Path) -> None:
    make(torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True), Path("evil.ckpt"))
    with pytest.raises(InputError, match=r"evil.ckpt.+"):
        stn.Run.open("evil.ckpt")
    assert not canary.exists()


TEXTS = {
    "tag": "!!python/object/apply:os.system ['touch canary']",
    "tag of a module": "!!python/module:antigravity",
    "new": "!!python/object/new:os.system [touch canary]",
    "laughs": "\n".join(["a: &b0 [ha]", *(f"b{n + 1}: &b{n + 1} [{', '.join([f'*b{n}'] * 9)}]" for n in range(9))]),
    "deep": "[" * 5000,
    "braces": "{" * 5000,
    "a list": "[1, 2]",
    "a word": "config",
    "a number": "7",
    "empty": "",
    "binary": "\x00\x01\x02",
    "large": "a: " + "b" * 2**21,
    "recursive": "a: ${b}\nb: ${a}",
    "growing": "\n".join(["x0: " + "a" * 80, *(f"x{n + 1}: {f'${{x{n}}}' * 80}" for n in range(5))]),
    "environment": "a: ${oc.env:HOME}",
    "no such resolver": "a: ${os.system:touch canary}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_hostile_text_is_told(text: str, name: str, folder: Path, canary: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=name):
        run = stn.Run.open("run")
        run.settings(["compile=null"])
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "checkpoints/best.ckpt"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(name: str, folder: Path, command: Command) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    if name.endswith("ckpt"):  # then the last checkpoint is taken
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"tested_checkpoint": name}))
        assert stn.Run.open(folder).checkpoint.name == "last.ckpt"
        (folder / "metrics.json").write_text(json.dumps(metrics | {"tested_checkpoint": 5}))
        assert stn.Run.open(folder).checkpoint.name == "last.ckpt"
    else:
        refused(command("run", verb="evaluate"), name, program="stn.evaluate")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (on_a_device, "it has the key 'device'"),
        (bytes_of_memory, "it would build a bytearray"),
        (long_list, "it holds a list of 100,000 values"),
        (bomb, "it would take more memory than its own size"),
        (stretched, "it has a tensor that is larger than its data"),
        (laughs, "nested more than 20 deep"),
    ],
)
def test_memory_is_refused_before_it_is_taken(
    make: Callable[[Content, Path], None], said: str, trained: Path, canary: Path
) -> None:
    make(torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True), Path("evil.ckpt"))
    with pytest.raises(InputError, match=re.escape(said)):
        stn.Run.open("evil.ckpt")


def test_a_checkpoint_names_no_files_but_its_own(folder: Path, canary: Path) -> None:
    """Lightning would load the best one from wherever the last one says, from a server too, and remove the others."""
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = state["last_model_path"] = "http://localhost:9/evil.ckpt"
            state["best_k_models"] = {"/etc/evil.ckpt": torch.tensor(0.0)}
            state["kth_best_model_path"] = "/etc/evil.ckpt"
    torch.save(content, last)
    config, checkpoint = resumed("run", ["trainer.max_epochs=2"])
    metrics = train(config, checkpoint=checkpoint)
    assert metrics["tested_checkpoint"] == "checkpoints/best.ckpt"


@pytest.mark.parametrize("name", ["Documents", "..", "thesis.ckpt", "notes.txt"])
def test_a_resumed_run_removes_nothing_of_the_users(name: str, folder: Path, canary: Path) -> None:
    kept = folder / "checkpoints" / name.replace("..", "Documents")  # a folder perhaps named as a checkpoint is
    if name != "notes.txt":
        kept.mkdir()
        kept /= "thesis.txt"
    kept.write_text("mine")
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = f"/x/{name}"
    torch.save(content, last)
    (folder / "metrics.json").unlink()
    config, checkpoint = resumed("run")
    config.trainer.max_epochs = 2
    train(config, checkpoint=checkpoint)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("key", ["callbacks.last.dirpath", "callbacks.history.folder", "logger.csv.save_dir"])
def test_a_resumed_run_writes_in_its_folder_alone(key: str, folder: Path, canary: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    group, name, leaf = key.split(".")
    config[group][name][leaf] = str(canary.parent / "victim")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=rf"config.yaml: {key}=.*victim lies outside run, and resuming would write"):
        resumed("run", ["trainer.max_epochs=2"])
    assert not (canary.parent / "victim").exists()


PLUGIN = """
import os
from stn.layers import Affine
open("imported", "w").close()
class Mine(Affine):
    pass
"""


def test_a_package_is_allowed_by_the_users_own_word(trained: Path, canary: Path, command: Command) -> None:
    Path("myown.py").write_text(PLUGIN)
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["model"]["warp"]["_target_"] = "myown.Mine"
    torch.save(content, "own.ckpt")
    shutil.copytree(trained, "run")
    shutil.copy("own.ckpt", "run/checkpoints/best.ckpt")
    variables = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', Path(stn.__file__).parent.parent)}:{canary.parent}"}
    said = "_target_=myown.Mine is not a part of this version of stn that a file may name", "set allow=myown."
    refused(command("run", verb="evaluate", variables=variables), *said, program="stn.evaluate")
    assert not Path("imported").exists()
    found = command("run", "allow=myown.", verb="evaluate", variables=variables)
    assert found.returncode == 0, found.stderr
    # What the package imports from others is not allowed by this.
    content["hyper_parameters"]["model"]["warp"] = {"_target_": "myown.os.system", "command": "touch canary"}
    torch.save(content, "run/checkpoints/best.ckpt")
    refused(command("run", "allow=myown.", verb="evaluate", variables=variables), "allow=", program="stn.evaluate")
    refused(command("run", "allow=7", verb="evaluate"), "allow=7 must be a text", program="stn.evaluate")
    assert not canary.exists()


def test_what_the_configs_name_is_allowed() -> None:
    """Every choice of every group can be opened again."""
    from stn.config import config_folder
    from stn.untrusted import RUN, is_allowed, nodes

    names = set()
    for path in Path(config_folder()).rglob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        content.pop("hydra", None)  # is left out of what is opened
        for node in nodes(content):
            if isinstance(node, dict) and "_target_" in node:
                names.add(node["_target_"])
    assert len(names) > 30
    assert [name for name in names if not is_allowed(name, RUN, ())] == []
