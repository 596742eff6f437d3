"""Checking an export folder again: that it is as it was written, and that its parts agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from epim_nas.datapath.index import INDEX_FILE
from epim_nas.epitome.design import Design, load_design
from epim_nas.errors import InputError
from epim_nas.export.design import DESIGN_FILE
from epim_nas.export.manifest import (
    DESIGN_KEY,
    WEIGHTS_KEY,
    Manifest,
    design_digest,
    verify_manifest,
)
from epim_nas.export.mnsim import MNSIM_FILE, design_of
from epim_nas.export.weights import WEIGHTS, load_weights, weights_digest

if TYPE_CHECKING:
    from torch import Tensor

DATAPATH = "datapath"
"""Folder of the datapath in an export folder."""


@dataclass(frozen=True)
class Check:
    """A check that was passed.

    Attributes:
        part: what was checked.
        found: what was found.
    """

    part: str
    found: str


def verify_export(folder: str | Path) -> tuple[Manifest, list[Check]]:
    """Check a folder that ``epim-nas export`` wrote.

    Every file against its digest; the design against the manifest; epitomes against the design
    (names, shapes, finite values); the datapath's tables in both formats and its memory images
    against one another and the design; ONNX files by onnx itself; the weights that the parts were
    made of against one another. Parts of older versions do not name their weights.

    Returns:
        The manifest and what was checked.

    Raises:
        InputError: the first thing that is wrong.
    """
    folder = Path(folder)
    manifest = verify_manifest(folder)
    checks = [Check("digests", f"{len(manifest.files)} files are as they were written")]
    design = None
    weights: dict[Path, str | None] = {}
    if DESIGN_FILE in manifest.files:
        design = _design(folder / DESIGN_FILE, manifest)
        checks.append(Check("design", f"{len(design.choices)} layers of {design.network}"))
    if WEIGHTS in manifest.files:
        found, weights[folder / WEIGHTS] = _weights(folder / WEIGHTS, design)
        checks.append(Check("weights", found))
    index = f"{DATAPATH}/{INDEX_FILE}"
    if index in manifest.files:
        found, weights[folder / index] = _datapath(folder / index, manifest)
        checks.append(Check("datapath", found))
    for name in manifest.files:
        if name.endswith(".onnx"):
            found, weights[folder / name] = _onnx(folder / name, manifest)
            checks.append(Check(name, found))
    if MNSIM_FILE in manifest.files:
        _belongs(folder / MNSIM_FILE, design_of(folder / MNSIM_FILE), manifest)
        checks.append(Check(MNSIM_FILE, "of this design"))
    _check_same_weights(weights)
    return manifest, checks


def _check_same_weights(weights: Mapping[Path, str | None]) -> None:
    """Check that files were made of the same weights; None where a file does not say."""
    known = [(path, digest) for path, digest in weights.items() if digest is not None]
    for path, digest in known[1:]:
        first, expected = known[0]
        if digest != expected:
            raise InputError(
                str(path),
                f"is of other weights ({digest[:12]}...) than {first}",
                f"the weights with the digest {expected[:12]}...",
                "Export with `--to all` into an empty folder.",
            )


def _belongs(path: Path, found: str | None, manifest: Manifest) -> None:
    """Check the digest of the design that a file was made of."""
    if found != manifest.design_sha256:
        raise InputError(
            str(path),
            f"is of another design ({(found or 'unknown')[:12]})",
            f"the design with the digest {manifest.design_sha256[:12]}...",
            "Export all parts of one design into one folder.",
        )


def _design(path: Path, manifest: Manifest) -> Design:
    design = load_design(path)
    _belongs(path, design_digest(design), manifest)
    return design


def _weights(path: Path, design: Design | None) -> tuple[str, str]:
    import torch

    tensors, _ = load_weights(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name}", "contains NaN or infinity", "finite numbers")
    if design is not None:
        check_epitomes(tensors, design, str(path))
    return f"{len(tensors)} tensors, all finite", weights_digest(tensors)


def check_epitomes(tensors: Mapping[str, Tensor], design: Design, source: str) -> None:
    """Check that weights are those of a design.

    Raises:
        InputError: an epitome is missing or has another shape.
    """
    for name, choice in design.choices.items():
        if choice.shape is None:
            continue
        tensor = tensors.get(f"{name}.epitome")
        if tensor is None or tuple(tensor.shape) != choice.shape.as_tuple:
            found = "no such tensor" if tensor is None else f"the shape {tuple(tensor.shape)}"
            raise InputError(
                source,
                f"has {found} for `{name}.epitome`",
                f"epitomes of this design; here {choice.shape.as_tuple}",
                "Give the weights that were trained for the selected design.",
            )


def _datapath(path: Path, manifest: Manifest) -> tuple[str, str | None]:
    from epim_nas.export.datapath import read_datapath

    index, layers = read_datapath(path.parent)
    _belongs(path, index.design_sha256, manifest)
    return f"tables and memory images of {len(layers)} layers agree", index.weights_sha256


def _onnx(path: Path, manifest: Manifest) -> tuple[str, str | None]:
    try:
        import onnx
    except ImportError:
        return "not checked beyond its digest: the package onnx is not installed", None
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx has several, and protobuf its own
        raise InputError(str(path), f"is not valid ONNX ({type(error).__name__})") from None
    kept = {entry.key: entry.value for entry in model.metadata_props}
    _belongs(path, kept.get(DESIGN_KEY), manifest)
    return f"valid ONNX of {len(model.graph.node)} nodes", kept.get(WEIGHTS_KEY)
