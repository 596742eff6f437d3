"""``manifest.json``: what an export folder holds, and the digests to check it by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pydantic

from epim_nas._version import __version__
from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.files import digest, file_digest, load_json, write_json
from epim_nas.schema import Strict, validate

MANIFEST_FILE = "manifest.json"
MANIFEST_SCHEMA = "epim-nas/manifest@1"
DESIGN_KEY = "epim_nas.design_sha256"
"""Under this key files of other formats keep the digest of their design."""
WEIGHTS_KEY = "epim_nas.weights_sha256"
"""Under this one that of the weights that they were made of."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileEntry(Strict):
    """One exported file.

    Attributes:
        sha256: SHA-256 of its bytes (hex).
        size_bytes: its size.
    """

    sha256: str
    size_bytes: int = pydantic.Field(ge=0)

    @pydantic.field_validator("sha256")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise ValueError(f"got `{value}`; allowed: 64 hexadecimal digits")
        return value


class Manifest(Strict):
    """The content of ``manifest.json``.

    Attributes:
        schema_: ``epim-nas/manifest@1``.
        tool: name of the tool.
        version: its version.
        network: the design's network.
        design_sha256: digest of the design's choices.
        files: path relative to the folder -> entry.
        details: whatever else the exporter wrote down (run, trial, metrics).
    """

    schema_: Literal["epim-nas/manifest@1"] = pydantic.Field(alias="schema")
    tool: Literal["epim_nas"]
    version: str
    network: str
    design_sha256: str
    files: dict[str, FileEntry]
    details: dict[str, Any] = pydantic.Field(default_factory=dict)


def design_digest(design: Design) -> str:
    """SHA-256 (hex) of a design's network and choices; totals and provenance do not count."""
    content = design.to_dict()
    return digest({"network": content["network"], "layers": content["layers"]})


def write_manifest(
    folder: str | Path, design: Design, details: Mapping[str, Any] | None = None
) -> Path:
    """Write ``manifest.json`` over every file in a folder and its sub-folders.

    Hidden files are left out.

    Args:
        folder: the export folder, complete but for the manifest.
        design: the exported design.
        details: JSON values to keep beside, e.g. run and trial.

    Returns:
        The manifest's path.

    Raises:
        InputError: the folder is missing or holds nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder")
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() != MANIFEST_FILE:
            files[relative.as_posix()] = {
                "sha256": file_digest(path),
                "size_bytes": path.stat().st_size,
            }
    if not files:
        raise InputError(str(folder), "the folder holds no exported file")
    target = folder / MANIFEST_FILE
    write_json(
        target,
        {
            "schema": MANIFEST_SCHEMA,
            "tool": "epim_nas",
            "version": __version__,
            "network": design.network,
            "design_sha256": design_digest(design),
            "files": files,
            "details": dict(details or {}),
        },
    )
    return target


def check_same_design(folder: Path, design: Design, field: str) -> None:
    """Refuse to write a design beside parts of another one.

    Raises:
        InputError: the folder's manifest is of another design.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return
    other = _read(folder / MANIFEST_FILE).design_sha256
    if other != design_digest(design):
        raise InputError(
            field,
            f"`{folder}` holds an export of another design ({other[:12]}...)",
            "an empty folder, or one of the same design",
            "Take another folder, or delete this one.",
        )


def verify_manifest(folder: str | Path) -> Manifest:
    """Check every file of an export folder against its manifest.

    Files that the manifest does not name are ignored: a user may add notes.

    Raises:
        InputError: the manifest is missing or malformed, names a file outside the folder, or a
            file is missing or has changed.
    """
    folder = Path(folder)
    source = folder / MANIFEST_FILE
    manifest = _read(source)
    for name, entry in manifest.files.items():
        field = f"{source}: files.{name}"
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise InputError(field, "lies outside the folder", "a relative path without `..`")
        path = folder / relative
        if not path.is_file():
            raise InputError(field, "the file is missing", hint="Export the design again.")
        if path.stat().st_size != entry.size_bytes or file_digest(path) != entry.sha256:
            raise InputError(
                field,
                "the file has changed since it was exported",
                f"SHA-256 {entry.sha256}",
                "Export the design again.",
            )
    return manifest


def _read(source: Path) -> Manifest:
    content = load_json(source)
    return validate(Manifest, content, str(source))
