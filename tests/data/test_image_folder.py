import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn.data import ImageFolderDataModule, image_folder


def write(path: Path, value: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(["ant", "bee"]):
            for index in range(count):
                write(tmp_path / split / name / f"{index:02}.png", 100 * label + index)
    return tmp_path


def data(root: Path, **options: object) -> ImageFolderDataModule:
    settings = {"batch_size": 4, "val_fraction": 0.25} | options
    return ImageFolderDataModule(root=str(root), **settings)


def test_reads_the_tree_in_order_with_its_classes(root: Path) -> None:
    module = data(root)
    images, labels = module.read(train=True)
    assert module.classes == ["ant", "bee"]
    assert labels.tolist() == [0] * 8 + [1] * 8
    assert images.dtype is torch.uint8 and images.shape == (16, 3, 32, 32)
    assert images[:, 0, 0, 0].tolist() == [*range(8), *range(100, 108)]
    assert (images[:, 2] == 255 - images[:, 0]).all()


def test_gray_images_subfolders_and_other_files(root: Path) -> None:
    write(root / "train" / "ant" / "more" / "gray.jpg", 77, mode="L")
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "._00.png").write_text("what a Mac adds to each file")
    module = data(root)
    images, labels = module.read(train=True)
    assert len(labels) == 17 and module.classes == ["ant", "bee"]
    assert (images[8] - torch.tensor(77)).abs().max() <= 1


def test_decoding_leaves_the_runs_random_numbers_alone(root: Path) -> None:
    before = torch.get_rng_state()
    data(root).read(train=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_sizes_are_resized_with_a_note(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root / "train" / "ant" / "00.png", 9, size=(50, 70))
    with caplog.at_level(logging.INFO):
        images, _ = data(root).read(train=True)
    assert images.shape == (16, 3, 32, 32) and (images[0, 0] == 9).all()
    assert f"{root / 'train'}: 1 of 16 images resized to 32 x 32" in caplog.text


def test_pixels_are_pils(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "test" / "bee" / "00.png")
    module = data(root)
    module.read(train=True)
    images, _ = module.read(train=False)
    assert np.array_equal(images[3].permute(1, 2, 0).numpy(), noise)


def test_an_image_too_large_to_be_meant_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"16 of 16 files are no readable images: .*decompression bomb"):
        data(root).read(train=True)


def test_a_broken_image_is_named(root: Path) -> None:
    path = root / "train" / "bee" / "03.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{path} is not a readable image"):
        data(root).read(train=True)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_have_the_channels_that_are_asked_for(mode: str, channels: int, root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, channels), dtype=np.uint8)
    Image.fromarray(noise.squeeze(), mode).save(root / "train" / "bee" / "00.png")
    module = data(root, channels=channels)
    images, _ = module.read(train=True)
    assert images.shape == (16, channels, 32, 32)
    assert np.array_equal(images[8].permute(1, 2, 0).numpy(), noise)
    module.setup("fit")
    assert len(module.mean) == len(module.std) == channels and min(module.std) > 0


def test_other_numbers_of_channels_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="channels must be one of 1, 2, 3, 4 for image files"):
        data(root, channels=5)


def test_a_test_needs_no_training_images(root: Path) -> None:
    shutil.rmtree(root / "train")
    module = data(root)
    module.setup("test")
    assert set(module.images) == {"test"} and list(module.classes) == ["ant", "bee"]
    with pytest.raises(OSError, match="train is not a folder"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test/bee": "test/bees"}, r"the classes of .*/test are others: it lacks 'bee' and has 'bees'"),
        ({"test/bee": "bee"}, r"the classes of .*/test are others: it lacks 'bee'$"),
        ({"train/ant": "ant"}, r"the classes of .*/train are others: it lacks 'ant'$"),
    ],
)
def test_classes_that_differ_are_named(changes: dict[str, str], said: str, root: Path) -> None:
    for before, after in changes.items():
        (root / before).rename(root / after)
    for train in (True, False):
        with pytest.raises(ValueError, match=said):
            data(root).read(train=train)


def test_an_empty_class_is_named(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*train/wasp is empty"):
        data(root).read(train=True)


def test_a_class_whose_name_is_no_text_is_named(root: Path) -> None:
    (root / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(ValueError, match=r"has a class folder whose name is no text, 'caf\\udce9': rename it"):
        data(root)


def test_a_root_that_is_not_such_a_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"absent is not a folder: set data.root to the folder of the images"):
        data(tmp_path / "absent")
    with pytest.raises(
        OSError, match=r"train is not a folder: data.root must hold train/<class>/<image> and test/[^;]*$"
    ):
        data(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        data(tmp_path)


@pytest.mark.parametrize("options", [{}, {"test_fraction": 0.5}])
def test_a_folder_of_one_class_is_a_level_too_high(options: dict[str, float], root: Path, tmp_path: Path) -> None:
    high = tmp_path / "a_level" / "too_high"
    for place in [high] if options else [high / "train", high / "test"]:
        shutil.copytree(root / "train", place / "photos")
    with pytest.raises(ValueError, match=r"has one class folder, photos, not two or more: is data\.root a level too h"):
        data(high, **options).read(train=True)


def test_a_share_of_each_class_is_the_test_set(root: Path) -> None:
    whole = root / "train"
    with pytest.raises(
        OSError, match=r"if it holds <class>/<image>, set data.test_fraction=0.2, and a fifth of .*train"
    ):
        data(whole)
    module, again, other = (data(whole, test_fraction=0.25, split_seed=seed) for seed in (0, 0, 1))
    (kept, labels), (tested, test_labels) = module.read(train=True), module.read(train=False)
    assert set(labels.tolist()) == set(test_labels.tolist()) == {0, 1} and len(test_labels) < len(labels)
    values = torch.cat((kept, tested))[:, 0, 0, 0].sort().values
    assert values.tolist() == [*range(8), *range(100, 108)]
    assert torch.equal(again.read(train=False)[0], tested)
    assert not torch.equal(other.read(train=False)[0], tested)
    assert len(data(whole, test_fraction=1).read(train=False)[1]) == 16  # for images that are for testing alone
    for index in range(100, 300):
        write(whole / "bee" / f"{index}.png", 50)
    more = again.read(train=False)[0]
    assert torch.equal(more[more[:, 0, 0, 0] != 50], tested)  # none that was trained on is tested
    assert 30 < len(more) - len(tested) < 70


def test_a_share_that_cannot_be_the_test_set_is_named(root: Path) -> None:
    for options, said in (
        ({"test_fraction": 0.25}, r"test_fraction=0.25 must be null: .*train is there$"),
        ({"root": str(root / "train"), "test_fraction": 0}, "must be above 0 and at most 1, or null, not 0$"),
        ({"root": str(root / "train"), "test_fraction": 0.5, "group": "_"}, "must be null: group=_ is given$"),
        ({"root": "photo", "test_fraction": 0.5}, "photo is not a folder: set data.root"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            ImageFolderDataModule(**{"root": str(root)} | options)
    with pytest.raises(ValueError, match="ant has 8 images, too few to train and to test on with test_fraction=1"):
        data(root / "train", test_fraction=1).read(train=True)
    write(root / "train" / "ape" / "0.png", 1)
    with pytest.raises(ValueError, match="ape has 1 image, too few to train and to test on"):
        data(root / "train", test_fraction=0.5).read(train=False)


def test_every_format_counts_and_other_files_are_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ending in ("gif", "jp2", "tga", "ico", "PCX"):
        write(root / "train" / "ant" / f"image.{ending}", 50)
    for name in ("labels.csv", "notes.txt", "ant.h5"):
        (root / "train" / "ant" / name).write_text("no image")
    (root / "train" / "bee" / "more").mkdir()
    (root / "train" / "bee" / "more" / "README").write_text("no image")
    with caplog.at_level(logging.INFO):
        images, _ = data(root).read(train=True)
    assert len(images) == 21
    assert caplog.text.count("no image") == 1
    assert f"{root / 'train'}: 4 files are no images: 'ant.h5', 'labels.csv', 'notes.txt', 'README'" in caplog.text


def test_hidden_folders_are_left_out(root: Path) -> None:
    write(root / "train" / "ant" / ".ipynb_checkpoints" / "00.png", 1)
    assert len(data(root).read(train=True)[1]) == 16


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_an_image_that_is_no_regular_file_is_named(make: Callable[[Path], None], root: Path) -> None:
    path = root / "train" / "bee" / "x.png"
    make(path)
    with pytest.raises(ValueError, match=f"{path} is named as an image, but it is no regular file: remove or rename"):
        data(root, follow_links=True).read(train=True)


@pytest.mark.parametrize("where", ["train/ant/x.png", "train/ant/more", "train/cat", "train"])
def test_links_out_of_the_root_are_followed_if_asked(where: str, root: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    write(outside / "cat" / "0.png", 200)
    link = root / where
    if where == "train":
        (root / "train").rename(outside / "train")
    if where == "train/cat":
        write(root / "test" / "cat" / "0.png", 1)
    target = {"train/ant/x.png": outside / "cat" / "0.png", "train": outside / "train"}.get(where, outside / "cat")
    link.symlink_to(target)
    with pytest.raises(ValueError, match=f"{link} is a link out of data.root, to {target}: set data.follow_links=true"):
        data(root).read(train=True)
    images, labels = data(root, follow_links=True).read(train=True)
    assert len(images) == len(labels) == (16 if where == "train" else 17)
    assert int((images[:, 0] == 200).all(dim=(1, 2)).sum()) == (where != "train")


def test_links_within_the_root_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "train" / "ant" / "x.png").symlink_to(root / "test" / "bee" / "00.png")
    (root / "train" / "ant" / "more").symlink_to("../../test/ant")
    (root / "train" / "ant" / "once").symlink_to("../../test/ant")
    for split in ("train", "test"):
        (root / split / "wasp").symlink_to("bee")
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(root)
    assert torch.equal(data(link).read(train=True)[1].bincount(), torch.tensor([12, 8, 8]))


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("train/ant/x.png", "x.png", "leads nowhere"),
        ("train/ant/x.png", "absent.png", "leads nowhere"),
        ("train/ant/round", ".", "to a folder that it lies in"),
        ("train/ant/round", "../../train", "to a folder that it lies in"),
        ("train/ant/round", "/", "to a folder that it lies in"),
    ],
)
def test_links_in_circles_and_to_nothing_are_named(link: str, target: str, said: str, root: Path) -> None:
    (root / link).symlink_to(target)
    with pytest.raises(ValueError, match=f"{root / link} is a link .*{said}: remove it"):
        data(root, follow_links=True).read(train=True)


def test_two_folders_that_link_to_each_other_are_read_once(root: Path) -> None:
    (root / "train" / "ant" / "other").symlink_to("../bee")
    (root / "train" / "bee" / "other").symlink_to("../ant")
    assert torch.equal(data(root).read(train=True)[1].bincount(), torch.tensor([16, 16]))


def test_the_home_folder_is_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(data(Path("~", root.name)).read(train=True)[1]) == 16


def test_a_file_that_vanishes_before_it_is_decoded_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_files = image_folder.decode_files

    def late(paths: list[str], *how: int) -> tuple[torch.Tensor, int]:
        (root / "train" / "ant" / "03.png").unlink()
        return decode_files(paths, *how)

    monkeypatch.setattr(image_folder, "decode_files", late)
    with pytest.raises(ValueError, match=r"ant/03.png is not a readable image: No such file or directory$"):
        data(root).read(train=True)


CIFAR10 = Path(__file__).resolve().parents[2] / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not unpacked as an image folder in data/cifar10")
def test_cifar10_as_an_image_folder() -> None:
    module = data(CIFAR10)
    images, labels = module.read(train=True)
    assert images.shape == (50_000, 3, 32, 32)
    assert torch.equal(labels.bincount(), torch.full((10,), 5_000))
    # The published mean of CIFAR-10.
    torch.testing.assert_close(
        images.float().mean(dim=(0, 2, 3)) / 255, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0
    )


def test_images_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    grey = 0
    for name, tracks in (("ant", 5), ("bee", 4)):
        for track in range(tracks):
            for frame in range(3):
                write(tmp_path / "train" / name / f"{track:02}_{frame:02}.png", grey)
                grey += 1
        write(tmp_path / "test" / name / "0.png", 0)
    module = data(tmp_path, group="_", val_fraction=0.3)
    module.setup()
    held_out, kept = (set(module.images[split][:, 0, 0, 0].tolist()) for split in ("val", "train"))
    assert held_out | kept == set(range(27)) and not held_out & kept
    assert 8 <= len(held_out) <= 10
    assert not {number // 3 for number in held_out} & {number // 3 for number in kept}
    with pytest.raises(ValueError, match=r"group=- is not in the name of .*00_00.png: each name must begin with"):
        data(tmp_path, group="-").setup()
