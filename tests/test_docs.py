"""What the documentation shows is run as it is written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, TINY, Command, environment, write_mnist
from PIL import Image
from test_architecture import FLOORS

from stn.config import compose
from stn.data import ShapesDataModule
from stn.reference import description, reference
from stn.run import find_run
from stn.training import train

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if re.search("^```(sh|python)", page.read_text(), re.M)]
# A block that cannot be run here is marked on the page: <!-- not run: why --> on the line before it. These programs are
# never run:
NOT_RUN = {
    "make": "it sets up an environment",
    "pip": "it installs packages",
    "tensorboard": "it serves until it is stopped",
}
SIZES = [setting for setting in TINY if re.match("data.(train_images|test_images|batch_size)=", setting)]


EVERY_PAGE = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"`((?:tests|stn|conf|docs|notebooks|results)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


class Block(NamedTuple):
    """A block of code on a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that are not marked as not run."""
    text = page.read_text()
    for found in re.finditer(r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not found[1]:
            yield Block(found[2], found[3], text[: found.start(3)].count("\n"))


def small(words: list[str]) -> list[str]:
    """A training command with what makes it take seconds.

    It trains for one epoch, a sweep over networks and seeds for the first seed alone, and an
    answer takes two networks. Without data of its own it trains on a few generated
    images; without a trainer, on the CPU; without a model or an experiment, which has one, it trains the smallest
    network.
    """
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    if keys & {"--help", "--cfg", "--config-path", "resume"}:
        return words
    if sum(bool(re.match(r"[\w/.]+=\w+,", word)) for word in words) > 1:
        words = [re.sub(r"^(seed=\d+),.*", r"\1", word) for word in words]
    more = ["trainer.max_epochs=1"]
    if "data" not in keys:
        more += ["data=shapes", *SIZES]
    if "experiment=does_it_help" in words and "-m" in words:
        more += ["arm=plain,transformer", "seed=0"]
    if "trainer" not in keys:
        more.append("trainer=cpu")
    if not keys & {"model", "experiment"}:
        more.append("model=convnet_small")
    return [*words, *more]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages name: photos of ten classes, new ones, one as JPEG, and RUN, a run on photos, also the latest."""
    folder = tmp_path_factory.mktemp("workshop")
    data = ShapesDataModule(train_images=400, test_images=20)
    for split in ("photos", "new"):
        images, labels = data.read(train=split == "photos")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / (f"class {label}" if split == "photos" else "") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    settings = ["data=image_folder", f"data.root={folder}/photos", "data.test_fraction=0.1", "model=convnet_small"]
    settings += ["trainer=cpu"]
    train(compose([*settings, "trainer.max_epochs=1"], folder / "RUN"))
    shutil.copytree(folder / "RUN", folder / "outputs" / "day" / "time")
    Image.open(folder / "new" / "0.png").save(folder / "photo.jpg")
    write_mnist(folder / "data", {"train": 300, "t10k": 20})
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(
    page: Path, workshop: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks whose first line is a comment with a file's name are written to that file."""
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    if "load_dataset" in page.read_text():
        monkeypatch.setattr("datasets.load_dataset", in_memory)
    before, names = set(sys.modules), {"__name__": "__main__"}
    for language, text, line in blocks(page):
        if file := re.match(r"# ([\w/]+\.(py|yaml))\n", text):
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page.name}:{line}", "exec"), names)
        elif language == "sh":
            for typed in text.replace("\\\n", "").splitlines():
                run(typed, command, tmp_path)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def run(typed: str, command: Command, folder: Path) -> None:
    """Runs a line of a block, which is a command of this project or one that is never run."""
    words = shlex.split(os.path.expandvars(typed), comments=True)
    if not words or words[0] in NOT_RUN:
        return
    words = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if words[:2] == ["python", "-m"] and words[2].startswith("stn."):
        verb, words = words[2].removeprefix("stn."), words[3:]
    else:
        assert words[0] == "stn", f"{typed!r} is no command of this project: mark its block as not run"
        verb, words = words[1], words[2:]
    if verb == "train":
        words = small(words)
    for word in words:
        if word.startswith("resume="):  # then it must be a run that was interrupted, such as in its test
            (find_run(word.removeprefix("resume=")) / "metrics.json").unlink()
    variables = {"PYTHONPATH": f"{ROOT}:{folder}"}
    if any(word.startswith("hydra/launcher=") for word in words):  # joblib's processes outlive a forked one
        program = [sys.executable, "-m", f"stn.{verb}", *words]
        found = subprocess.run(program, cwd=folder, env=environment() | variables, capture_output=True, text=True)
    else:
        found = command(*words, verb=verb, variables=variables)
    assert found.returncode == 0, f"{typed}\n{found.stdout}\n{found.stderr}"


def test_the_additions_of_the_page_of_the_code_train(tmp_path: Path) -> None:
    for name in ("stn", "conf"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    patches = [text for language, text, _ in blocks(ROOT / "docs" / "code.md") if language == "diff"]
    for patch in patches:
        applied = subprocess.run(["git", "apply"], cwd=tmp_path / "copy", input=patch, capture_output=True, text=True)
        assert applied.returncode == 0, f"{patch}\n{applied.stderr}"
    random = np.random.default_rng(0)
    sets = {"train": 300, "test": 20}
    images = {f"{name}_images": random.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8) for name, n in sets.items()}
    labels = {f"{name}_labels": random.integers(0, 9, (n, 1), dtype=np.uint8) for name, n in sets.items()}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "pathmnist.npz", **images, **labels)
    chosen = ["data=pathmnist", "model=all_conv", "model/warp=radial_distortion"]
    found = subprocess.run(
        [sys.executable, "-m", "stn.train", *chosen, "trainer=cpu", "trainer.max_epochs=1", "hydra.run.dir=run"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path / "copy")},
        capture_output=True,
        text=True,
    )
    assert len(patches) == 3 and found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 1


def test_the_page_of_the_code_names_every_module_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "code.md").read_text(), re.MULTILINE)
    assert {int(number): set(re.findall(r"`(stn\.\w+)`", text)) for number, text in rows} == {
        number: set(modules) for number, modules in enumerate(FLOORS, 1)
    }


def test_the_page_of_the_configuration_is_what_the_code_gives_and_leaves_nothing_out() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference(), "run python -m stn.record"
    assert not re.findall(r"^\| .*\|  \|$", page, re.MULTILINE), "without a meaning"
    cut = [file for file in (ROOT / "conf").rglob("*/*.yaml") if not description(str(file)).endswith(".")]
    assert not cut, "the first comment must be one whole sentence or more, on one line"


def test_bash_completes_what_the_page_of_the_configuration_says() -> None:
    (script,) = (text for language, text, _ in blocks(ROOT / "docs" / "configuration.md") if language == "bash")
    command = f'stn() {{ {shlex.quote(sys.executable)} -m stn "$@"; }}'
    asked = 'COMP_LINE="stn train model/warp=tp"; _stn; echo "${COMPREPLY[@]}"'
    found = subprocess.run(
        ["bash", "-c", f"{command}\n{script}\n{asked}"], env=environment(), capture_output=True, text=True
    )
    assert found.stdout == "model/warp=tps\n", found.stderr


def in_memory(path: str) -> object:
    """What `datasets.load_dataset` would download: a hundred random images of two classes."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [Image.effect_noise((40, 40), 64) for _ in range(100)], "label": [0, 1] * 50}
    split = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({"train": split, "test": split})
