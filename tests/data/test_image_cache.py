"""The cache of decoded images: what it keeps, what it refuses, and what it leaves alone."""

import logging
import os
import pickle
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from stn.data import ImageFolderDataModule, image_cache, image_folder
from stn.data.image_cache import keep, recall


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (value, 0, 255 - value)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label, name in enumerate(["ant", "bee"]):
            for index in range(4):
                write(tmp_path / "images" / split / name / f"{index}.png", 100 * label + index)
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files were decoded, each time that any were."""
    counts: list[int] = []
    decoding = image_folder.decode_files
    monkeypatch.setattr(
        image_folder, "decode_files", lambda paths, *how: counts.append(len(paths)) or decoding(paths, *how)
    )
    return counts


def read(root: Path, **options: object) -> Tensor:
    settings = {"batch_size": 4, "cache": str(root.parent / "cache")} | options
    return ImageFolderDataModule(root=str(root), **settings).read(train=True)[0]


def test_of_several_readers_one_decodes(root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = image_folder.keep
    # Long enough that the others look for what is not there yet.
    monkeypatch.setattr(image_folder, "keep", lambda *what: time.sleep(0.3) or keeping(*what))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: read(root), range(4)))
    assert decoded == [8] and all(torch.equal(images[0], other) for other in images)


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").iterdir())


def content(folder: Path) -> dict[str, tuple[float, bytes | None]]:
    """Every path in a folder, with its time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def test_what_was_decoded_is_kept_until_a_file_changes(root: Path, decoded: list[int]) -> None:
    before = read(root)
    assert decoded == [8] and torch.equal(read(root), before) and decoded == [8]
    write(root / "train" / "ant" / "3.png", 250)
    assert (read(root)[3, 0] == 250).all() and decoded == [8, 8]
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "9.png")
    assert (read(root)[3, 0] == 0).all() and decoded == [8, 8, 8]


def test_a_file_with_its_old_size_and_time_of_writing_is_seen_to_have_changed(root: Path, decoded: list[int]) -> None:
    path = root / "train" / "ant" / "0.bmp"
    write(path, 1)
    before = path.stat()
    read(root)
    write(path, 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert (read(root)[0, 0] == 2).any() and decoded == [9, 9]


def test_two_folders_of_the_same_names_and_times_are_two(root: Path, tmp_path: Path, decoded: list[int]) -> None:
    read(root)
    other = root.rename(tmp_path / "others")
    read(other)
    assert decoded == [8, 8]


def test_the_same_folder_by_another_path_is_the_same(
    root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(root)
    monkeypatch.chdir(root.parent)
    (root.parent / "link").symlink_to(root)
    for path in ("images", "link"):
        read(Path(path), cache="cache")
    assert decoded == [8]


def test_sizes_and_channels_live_side_by_side(root: Path, decoded: list[int]) -> None:
    wanted = [{"image_size": 32}, {"image_size": 16}, {"channels": 1}]
    first = [read(root, **options) for options in wanted]
    assert len(decoded) == len(kept(root)) == 3
    assert all(torch.equal(read(root, **options), images) for options, images in zip(wanted, first, strict=True))
    assert len(decoded) == 3


def test_another_decoder_decodes_again(root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    assert PIL.__version__ in image_cache.DECODER
    monkeypatch.setattr(image_cache, "DECODER", "another")
    read(root)
    assert decoded == [8, 8]


def test_the_images_folder_is_left_as_it_is(root: Path) -> None:
    (root / ".train-0123456789abcdef.pt").write_bytes(b"the user's own")
    before = content(root)
    for size in (32, 16):
        read(root, image_size=size)
        read(root, image_size=size, cache=None)
    assert content(root) == before


def test_without_a_cache_nothing_is_written(root: Path, decoded: list[int]) -> None:
    for _ in range(2):
        read(root, cache=None)
    assert decoded == [8, 8] and list(root.parent.iterdir()) == [root]


def test_the_home_folder_is_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    read(Path("~/images"), cache="~/cache/mine")
    assert len(list((root.parent / "cache" / "mine").iterdir())) == 1


class Bad:
    """An object whose pickle runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def change(path: Path, **entries: object) -> None:
    torch.save(torch.load(path, weights_only=True) | entries, path)


def write_again(path: Path, images: Tensor) -> None:
    """Other images with their right digest."""
    name = path.stem.removeprefix(image_cache.PREFIX)
    change(path, images=images, digest=image_cache.digest_of(images, name))


def images_in(path: Path) -> Tensor:
    images: Tensor = torch.load(path, weights_only=True)["images"]
    return images


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "empty file": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "text": lambda path: path.write_text("a letter"),
    "a tensor alone": lambda path: torch.save(images_in(path), path),
    "wrong dtype": lambda path: write_again(path, images_in(path).float()),
    "too few images": lambda path: write_again(path, images_in(path)[:7].clone()),
    "wrong shape": lambda path: write_again(path, images_in(path).flatten(2)),
    "inverted images": lambda path: change(path, images=255 - images_in(path)),
    "another order": lambda path: change(path, images=images_in(path).flip(0)),
    "no digest": lambda path: torch.save({"images": images_in(path)}, path),
    "a number": lambda path: change(path, images=3),
    "sparse": lambda path: change(path, images=images_in(path).to_sparse()),
    "huge tensor": lambda path: change(path, images=torch.zeros(1, dtype=torch.uint8).expand(2**40, 3, 32, 32)),
    "expanded tensor": lambda path: change(path, images=torch.zeros(1, dtype=torch.uint8).expand(8, 3, 32, 32)),
    "compressed": compressed,
    "bad pickle": lambda path: path.write_bytes(pickle.dumps(Bad(path.parent / "ran"))),
    "bad checkpoint": lambda path: torch.save({"images": Bad(path.parent / "ran")}, path),
    "pipe": pipe,
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(damage: str, root: Path, decoded: list[int]) -> None:
    before = read(root)
    (path,) = kept(root)
    DAMAGE[damage](path)
    assert torch.equal(read(root), before)
    assert decoded == [8, 8]
    assert torch.equal(read(root), before)
    assert decoded == [8, 8] and kept(root) == [path]


def test_a_file_under_another_name_is_not_taken(root: Path, decoded: list[int]) -> None:
    read(root)
    (old,) = kept(root)
    write(root / "train" / "ant" / "0.png", 99)
    read(root)
    (new,) = set(kept(root)) - {old}
    new.write_bytes(old.read_bytes())
    assert (read(root)[0, 0] == 99).all() and decoded == [8, 8, 8]


@pytest.mark.parametrize("error", [OSError("no space left on device"), RuntimeError("file cannot be opened")])
def test_where_nothing_can_be_kept_it_is_decoded_each_time(
    error: Exception,
    root: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", full)
    for _ in range(2):
        assert read(root).shape == (8, 3, 32, 32)
    assert decoded == [8, 8] and not kept(root)
    assert f"cannot be kept in {root.parent / 'cache'} ({error})" in caplog.text


def test_a_cache_that_is_a_file_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root.parent / "cache").write_text("a letter")
    with caplog.at_level(logging.WARNING):
        assert read(root).shape == (8, 3, 32, 32)
    assert "set another data.cache, or null" in caplog.text


def test_the_files_not_used_for_longest_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    first, second, third = (32 * letter for letter in "abc")
    for age, name in enumerate([first, second]):
        keep(images, tmp_path, name)
        os.utime(tmp_path / f"decoded-{name}.pt", (1000 + age, 1000 + age))
    assert recall(tmp_path, first, images.shape) is not None
    (tmp_path / "decoded-abcdefgh.part").write_text("of a run that was killed")
    os.utime(tmp_path / "decoded-abcdefgh.part", (999, 999))
    for mine in ("mine.txt", "decoded-speech.pt"):
        (tmp_path / mine).write_text("not the cache's")
        os.utime(tmp_path / mine, (998, 998))
    monkeypatch.setattr(image_cache, "LARGEST_CACHE", 2.5 * (tmp_path / f"decoded-{first}.pt").stat().st_size)
    keep(images, tmp_path, third)
    names = {f"decoded-{first}.pt", f"decoded-{third}.pt", "mine.txt", "decoded-speech.pt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_too_large_a_set_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "LARGEST_KEPT", 8 * 3 * 32 * 32)
    read(root)
    assert not list((root.parent / "cache").glob("*"))
