"""Image files of every kind that Pillow opens: their grey levels survive, or they are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.data.decoding import is_grey, pillow, read_image
from epim_nas.errors import InputError

pytest.importorskip("PIL")
from PIL import Image

LEVELS = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
"""A ramp over the whole range of 16 bits: 257 n is grey level n of 8 bits."""
SIDE = 16


def tiff(
    samples: bytes, bits: int, kind: int, *, order: str = "<", white_is_zero: bool = False
) -> bytes:
    """A grey TIFF file; ``kind`` is 1 unsigned, 2 signed, 3 floating point."""
    shorts = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: int(not white_is_zero), 277: 1,
              278: SIDE, 339: kind}  # fmt: skip
    longs = {273: 8, 279: len(samples)}
    entries = [
        (tag, struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)) for tag, value in shorts.items()
    ] + [(tag, struct.pack(f"{order}HHII", tag, 4, 1, value)) for tag, value in longs.items()]
    directory = b"".join(entry for _, entry in sorted(entries))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(samples))
    return head + samples + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def twelve_bits(levels: np.ndarray) -> bytes:
    pairs = levels.ravel().reshape(-1, 2).tolist()
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pgm(samples: bytes, white: int, kind: str = "P5") -> bytes:
    return f"{kind} {SIDE} {SIDE} {white}\n".encode() + samples


def write(folder: Path, name: str) -> Path:
    """The ramp as a file of more than 8 bits."""
    deep = Image.fromarray(LEVELS)
    big = Image.frombytes("I;16B", (SIDE, SIDE), LEVELS.astype(">u2").tobytes())
    floats = Image.fromarray((LEVELS / 65535).astype(np.float32))
    unsigned, twelve = LEVELS.astype("<u2").tobytes(), LEVELS // 257 * 16 + LEVELS // 257 // 16
    path = folder / f"{name.partition(' ')[2].replace(' ', '_')}.{name.partition(' ')[0]}"
    files = {
        "pgm 4095": pgm(twelve.astype(">u2").tobytes(), 4095),
        "pgm text": pgm(" ".join(map(str, LEVELS.ravel().tolist())).encode(), 65535, "P2"),
        "tif 12 bits": tiff(twelve_bits(twelve), 12, 1),
        "tif white is zero": tiff((65535 - LEVELS).astype("<u2").tobytes(), 16, 1,
                                  white_is_zero=True),
        "tif float white is zero": tiff((1 - LEVELS / 65535).astype(">f4").tobytes(), 32, 3,
                                        order=">", white_is_zero=True),
        "tif unsigned": tiff(unsigned, 16, 1),
        "tif float big endian": tiff((LEVELS / 65535).astype(">f4").tobytes(), 32, 3, order=">"),
    }  # fmt: skip
    if name in files:
        path.write_bytes(files[name])
        return path
    images = {
        "png 16": deep, "png big endian": big, "pgm 16": deep, "pgm I": deep.convert("I"),
        "pfm float": floats, "tif 16": deep, "tif big endian": big, "tif lzw": deep,
        "tif float": floats, "jp2 16": deep, "im 16": deep, "im big endian": big,
        "im float": floats, "spi float": floats,
    }  # fmt: skip
    options = {"tif lzw": {"compression": "tiff_lzw"}, "jp2 16": {"irreversible": False},
               "spi float": {"format": "SPIDER"}}  # fmt: skip
    return saved(images[name], path, **options.get(name, {}))


@pytest.mark.parametrize(
    "name",
    [
        "png 16", "png big endian", "pgm 16", "pgm I", "pgm 4095", "pgm text", "pfm float",
        "tif 16", "tif big endian", "tif lzw", "tif float", "tif 12 bits", "tif white is zero",
        "tif float white is zero", "tif unsigned", "tif float big endian", "jp2 16", "im 16",
        "im big endian", "im float", "spi float",
    ],
)  # fmt: skip
def test_levels_of_more_than_8_bits_are_scaled(tmp_path: Path, name: str) -> None:
    path = str(write(tmp_path, name))
    grey = np.asarray(read_image(path, "L"))
    np.testing.assert_array_equal(grey, LEVELS // 257)
    assert is_grey(read_image(path))
    np.testing.assert_array_equal(np.asarray(read_image(path, "RGB")), np.stack([grey] * 3, -1))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 65535), min_size=SIDE**2, max_size=SIDE**2))
def test_16_bits_keep_order_and_are_within_half_a_level(tmp_path_factory, levels) -> None:
    deep = np.array(levels, dtype=np.uint16).reshape(SIDE, SIDE)
    path = saved(Image.fromarray(deep), tmp_path_factory.mktemp("deep") / "x.png")
    grey = np.asarray(read_image(str(path), "L")).astype(float)
    assert np.abs(grey - deep / 257).max() <= 0.5
    assert (np.diff(grey.ravel()[np.argsort(deep.ravel())]) >= 0).all()


def eight_bit_image(mode: str) -> Image.Image:
    grey = Image.fromarray((LEVELS // 257).astype(np.uint8))
    if mode == "La":
        return grey.convert("LA").convert("La")
    if mode in ("HSV", "RGBa"):
        return grey.convert("RGB" if mode == "HSV" else "RGBA").convert(mode)
    if mode == "PA":
        return grey.convert("P").convert("PA")
    return grey.convert(mode)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_8_bits_keeps_its_levels(tmp_path: Path, monkeypatch, mode: str) -> None:
    image = eight_bit_image(mode)
    (tmp_path / "x.png").touch()
    # No format holds all modes; what a reader gives is what counts.
    monkeypatch.setattr(pillow(), "open", lambda path: image.copy())
    found = {to: np.asarray(read_image(str(tmp_path / "x.png"), to)) for to in ("L", "RGB")}
    expected = LEVELS // 257
    if mode == "1":
        assert set(np.unique(found["L"])) == {0, 255}
        expected = np.asarray(image).astype(int) * 255
    np.testing.assert_array_equal(found["L"], expected)
    np.testing.assert_array_equal(found["RGB"], np.stack([expected] * 3, -1))
    assert is_grey(read_image("x.png")) == (mode in ("1", "L", "LA", "La"))


def test_all_of_pillows_modes_are_tried() -> None:
    deep = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N", "LAB"}
    assert {mode for mode in Image.MODES if mode not in deep} <= set(MODES)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("jpg", "CMYK"), ("jpg", "YCbCr"), ("tif", "CMYK"), ("tif", "PA"),
     ("tif", "RGBX"), ("png", "P"), ("png", "RGBA"), ("png", "LA"), ("gif", "P"), ("webp", "RGBA"),
     ("bmp", "1"), ("bmp", "P"), ("tga", "LA"), ("jp2", "LA")],
)  # fmt: skip
def test_8_bit_files_keep_their_levels_and_order(tmp_path: Path, name: str, mode: str) -> None:
    image = eight_bit_image(mode)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(name, {})
    path = str(saved(image, tmp_path / f"x.{name}", **options))
    grey = np.asarray(read_image(path, "L")).astype(int).ravel()
    assert (np.diff(grey) >= (-3 if name == "jpg" else 0)).all() or mode == "1"
    assert len(np.unique(grey)) > (1 if mode == "1" else 200)


def test_lab_images_keep_their_order_or_are_refused(tmp_path: Path, monkeypatch) -> None:
    lightness = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    lightness[..., 0] = LEVELS // 257
    image = Image.frombytes("LAB", (SIDE, SIDE), lightness.tobytes())
    path = str(saved(image, tmp_path / "x.tif"))
    assert not is_grey(read_image(path))

    def unsupported(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")

    try:
        image.convert("RGB")
    except ValueError:
        pass
    else:
        grey = np.asarray(read_image(path, "L")).astype(int)
        assert (np.diff(grey.ravel()) >= 0).all()
        assert len(np.unique(grey)) > 200
    monkeypatch.setattr(Image.Image, "convert", unsupported)  # as in older versions of Pillow
    with pytest.raises(InputError, match=r"x\.tif: Pillow mode `LAB` cannot be converted to `L`"):
        read_image(path, "L")


def test_16_bit_colours_agree_within_one_level(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data)
        )  # fmt: skip

    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    assert np.abs(np.asarray(read_image(str(path), "RGB")) - deep / 257).max() < 1


@pytest.mark.parametrize("palette_alpha", [b"\0" * 100 + b"\x80" * 156, 3])
def test_transparency_is_ignored(tmp_path: Path, palette_alpha, recwarn) -> None:
    path = saved(eight_bit_image("P"), tmp_path / "x.png", transparency=palette_alpha)
    np.testing.assert_array_equal(np.asarray(read_image(str(path), "L")), LEVELS // 257)
    assert not recwarn.list


def test_of_several_images_the_first_is_read(tmp_path: Path) -> None:
    first = eight_bit_image("L")
    for name in ("x.tif", "x.gif", "x.png"):
        path = saved(
            first, tmp_path / name, save_all=True, append_images=[Image.new("L", first.size, 9)]
        )
        np.testing.assert_array_equal(np.asarray(read_image(str(path), "L")), LEVELS // 257)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff(LEVELS.astype("<i2").tobytes(), 16, 2), "TIFF image, Pillow mode `I`"),
        (tiff(LEVELS.astype("<u4").tobytes(), 32, 1), "TIFF image, Pillow mode `I`"),
        (tiff(LEVELS.astype("<i4").tobytes(), 32, 2), "TIFF image, Pillow mode `I`"),
        (tiff(LEVELS.astype("<f4").tobytes(), 32, 3), "from 0 to 65535, Pillow mode `F`"),
        (tiff((LEVELS / 65535 - 0.5).astype("<f4").tobytes(), 32, 3), "from -0.5 to 0.5"),
        (tiff(np.full(256, np.nan, "<f4").tobytes(), 32, 3), "from nan to nan"),
        (tiff(LEVELS.astype("<f8").tobytes(), 64, 3), "cannot be read as an image"),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", None])
def test_levels_without_a_known_range_are_refused_by_name(
    tmp_path: Path, content: bytes, said: str, mode
) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(str(path), mode)
    assert said in str(caught.value)
    assert str(path) in caught.value.field


@settings(max_examples=100)
@given(st.data())
def test_damaged_files_are_refused_by_name(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    name = data.draw(st.sampled_from(["png 16", "tif lzw", "pgm text", "jp2 16", "tif float"]))
    path = write(folder, name)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_image(str(path), "L")
    except InputError as error:
        image, field = None, error.field
    assert (str(path) in field) if image is None else (image.mode == "L")
