"""Pixels of image files: colours, orientation and transparency, against PIL's own or by hand."""

import os
import signal
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn.data import decoding
from stn.data.decoding import BrokenFilesError, decode, decode_files, extensions


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends a test that waits for ever."""

    def stop(*signal_and_frame: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pixels(path: Path, channels: int = 3, side: int = 8) -> np.ndarray:
    """The decoded image, (side, side, channels)."""
    return decode(str(path), channels, side)[0].transpose(1, 2, 0)


def png(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has no pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_photos_are_upright(ending: str, orientation: int, tmp_path: Path) -> None:
    upright = noise(8, 8, 3)
    # What a camera that is held in this way records, after the table of the EXIF standard.
    recorded = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(np.ascontiguousarray(recorded)).save(path, exif=exif, lossless=True)
    assert np.array_equal(pixels(path), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as it is written
def test_damaged_exif_data_does_no_harm(tmp_path: Path) -> None:
    for index, exif in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    ):
        path = tmp_path / f"{index}.png"
        Image.fromarray(noise(8, 8, 3)).save(path, exif=exif)
        assert np.array_equal(pixels(path), noise(8, 8, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_mid_grey(mode: str, tmp_path: Path) -> None:
    image, options = Image.new("RGBA", (8, 8), (255, 0, 0, 0)), {}
    if mode in ("P", "RGB"):  # with one transparent colour
        image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
        options = {"transparency": image.getpixel((0, 0))}
    image.convert(mode).save(tmp_path / "clear.png", **options)
    for channels in (1, 3):
        assert (pixels(tmp_path / "clear.png", channels) == 128).all()
    assert (pixels(tmp_path / "clear.png", 4)[..., 3] == 0).all()
    red, _ = decode(str(tmp_path / "clear.png"), 3, 8, background=(7, 8, 9))
    assert red[:, 0, 0].tolist() == [7, 8, 9]


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (228, 28, 128, 128)).save(tmp_path / "half.png")
    assert np.abs(pixels(tmp_path / "half.png").astype(int) - [178, 78, 128]).max() <= 1


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    (tmp_path / "ramp.pgm").write_bytes(b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        assert np.array_equal(pixels(path, 1)[..., 0], ramp // 256), path


def test_floats_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    values = noise(8, 8)
    Image.fromarray(values.astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert np.array_equal(pixels(tmp_path / "float.tif", 1)[..., 0], values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((8, 8), 3.5, np.float32), "floats from 3.5 to 3.5"),
        (np.full((8, 8), -0.5, np.float32), "floats from -0.5 to -0.5"),
        (np.full((8, 8), np.nan, np.float32), "floats from nan to nan"),
        (np.arange(64, dtype=np.int32).reshape(8, 8) * 10_000, "32-bit integers from 0 to 630000"),
    ],
)
def test_other_ranges_of_values_are_named(values: np.ndarray, said: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=f"deep.tif is not a readable image: its values are {said}; save it"):
        pixels(tmp_path / "deep.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_modes_are_converted_as_pil_does(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8, 3))
    image = Image.frombytes("LAB", (8, 8), image.tobytes()) if mode == "LAB" else image.convert(mode)
    image.save(tmp_path / "image.tif")
    assert np.array_equal(pixels(tmp_path / "image.tif"), np.asarray(image.convert("RGB")))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for ending in ("gif", "webp", "png"):
        path = tmp_path / f"moving.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(pixels(path), np.asarray(frames[0])), ending


def test_the_extensions_are_those_that_pil_decodes() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".jp2"} <= set(extensions())
    assert not {".eps", ".h5", ".mpg", ".wmf", ".txt", ".pdf"} & set(extensions())


def test_no_program_is_started_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", started.append)
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(ValueError, match=r"drawing.png is not a readable image: its content is of no known format"):
        pixels(tmp_path / "drawing.png")
    assert not started


def truncated(path: Path) -> None:
    Image.fromarray(noise(32, 32, 3)).save(path)
    path.write_bytes(path.read_bytes()[:200])


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def forbidden(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    Image.fromarray(noise(8, 8, 3)).save(path)
    path.chmod(0)


HOSTILE = {
    "truncated": (truncated, ""),
    "text": (lambda path: path.write_text("a letter"), "its content is of no known format"),
    "empty": (Path.touch, "its content is of no known format"),
    "bomb": (lambda path: path.write_bytes(png(100_000, 100_000)), "decompression bomb"),
    "large": (lambda path: path.write_bytes(png(13_000, 13_000)), "it has 13000 x 13000 pixels, and 67,108,864 are"),
    "too wide": (lambda path: path.write_bytes(png(2**26 + 1, 1)), "it has 67108865 x 1 pixels"),
    "pipe": (os.mkfifo, "it is not a regular file"),
    "socket": (bound_socket, "No such device or address"),
    "folder": (Path.mkdir, "Is a directory"),
    "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    "gone": (lambda path: None, "No such file or directory"),
    "forbidden": (forbidden, "Permission denied"),
}


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_image_is_named_in_one_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = HOSTILE[kind]
    make(tmp_path / "x.png")
    if kind not in ("truncated", "bomb"):  # which PIL refuses as it decodes, or before
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda file: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x.png'} is not a readable image: .*{said}") as caught:
        decode_files([str(tmp_path / "x.png")], 3, 32)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize(("every", "more"), [(40, ""), (10, " and 10 more")])
def test_broken_files_are_counted_and_named(every: int, more: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index:03}.png" for index in range(300)]
    for index, path in enumerate(paths):
        Image.new("RGB", (8, 8)).save(path)
        if index % every == 7:
            path.write_text("a letter")
    broken = list(map(str, paths[7::every]))
    with pytest.raises(BrokenFilesError) as caught:
        decode_files([str(path) for path in paths], 3, 8)
    assert str(caught.value) == (
        f"{len(broken)} of 300 files are no readable images: {', '.join(broken[:20])}{more}; repair or remove "
        f"them ({paths[7]}: its content is of no known format)"
    )


def test_a_file_that_vanishes_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    whole = decoding.decode

    def decode_and_remove(path: str, *how: int) -> tuple[np.ndarray, bool]:
        Path(paths[2]).unlink(missing_ok=True)
        return whole(path, *how)

    monkeypatch.setattr(decoding, "decode", decode_and_remove)
    with pytest.raises(ValueError, match=r"2.png is not a readable image: No such file or directory$"):
        decode_files(paths, 3, 8)


def test_a_file_that_is_shortened_as_it_is_decoded_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tif"  # which PIL maps into memory if it opens the file itself
    Image.fromarray(noise(512, 512)).save(path)
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image, in_place: os.truncate(path, 0))
    images, _ = decode_files([str(path)], 1, 512)
    assert np.array_equal(images[0, 0].numpy(), noise(512, 512))


def test_a_killed_process_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda *what: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OSError, match="a process that decoded the images was killed, after 0 of 40: it may have"):
        decode_files([str(tmp_path / f"{index}.png") for index in range(40)], 3, 8)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *size, **options: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match=r"^1000 images of 3 x 100000 x 100000 need 55,879\.4 GiB .*data\.image_size"):
        decode_files(["x.png"] * 1000, 3, 100_000)
