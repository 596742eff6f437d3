"""Image files of every kind as 8-bit grey levels and colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epim_nas.data.decoding import is_grey, open_image, read_image
from epim_nas.errors import InputError

pytest.importorskip("PIL")
from PIL import Image

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
"""Grey levels from black to white."""
WHOLE = np.rint(255 * RAMP).astype(np.uint8)


def of_mode(mode: str) -> Image.Image:
    """The ramp in one of Pillow's modes."""
    if mode == "I;16":
        return Image.fromarray(np.rint(65535 * RAMP).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(np.rint(65535 * RAMP).astype(np.int32))
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32))
    grey = Image.fromarray(WHOLE)
    if mode in ("La", "RGBa"):
        return grey.convert(mode.upper()).convert(mode)
    return (
        grey.convert("RGB").convert(mode)
        if mode in ("CMYK", "YCbCr", "HSV")
        else grey.convert(mode)
    )


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"), ("L", "tif"), ("L", "pgm"), ("LA", "png"), ("P", "png"), ("RGB", "png"),
        ("RGB", "bmp"), ("RGBA", "png"), ("CMYK", "tif"), ("YCbCr", "tif"), ("RGB", "webp"),
        ("I;16", "png"), ("I;16", "tif"), ("I;16", "pgm"), ("I", "tif"), ("F", "tif"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_a_ramp_keeps_its_levels(mode: str, suffix: str, wanted: str, tmp_path: Path) -> None:
    path = str(tmp_path / f"ramp.{suffix}")
    of_mode(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    levels = np.asarray(read_image(path, wanted), dtype=int)  # type: ignore[arg-type]
    levels = levels if wanted == "L" else levels[:, :, 1]
    assert np.abs(levels - WHOLE).max() <= (2 if mode in ("CMYK", "YCbCr", "HSV") else 0)
    assert is_grey(open_image(path)) == (mode in ("L", "LA", "I", "I;16", "F"))


@pytest.mark.parametrize("mode", ["La", "RGBa", "HSV", "1"])
def test_modes_that_few_files_have(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epim_nas.data.decoding.open_image", lambda path, least=None: of_mode(mode))
    levels = np.asarray(read_image("x", "L"), dtype=int)
    assert len(np.unique(levels)) >= (2 if mode == "1" else 60)


@pytest.mark.parametrize(
    ("levels", "got"),
    [
        (np.full((4, 4), 70_000, np.int32), "70000"),
        (np.full((4, 4), -1, np.int32), "-1"),
        (np.full((4, 4), 255, np.float32), "255.0"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
    ],
)
def test_levels_without_a_known_range_are_refused(
    levels: np.ndarray, got: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "odd.tif")
    Image.fromarray(levels).save(path)
    with pytest.raises(InputError, match=rf"odd\.tif: grey levels of {got}.*0 to 1"):
        read_image(path, "L")


def test_a_mode_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "lab.tif")
    Image.new("LAB", (4, 4)).save(path)
    with pytest.raises(InputError, match=r"lab\.tif: an image of Pillow's mode `LAB`"):
        read_image(path, "L")
