"""Files below a folder: the same as torchvision finds, but for hidden names and loops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.data.folders import SUFFIXES, find_samples
from epim_nas.data.listing import Listing
from epim_nas.errors import InputError
from epim_nas.models._torchvision import import_torchvision


def listing(root: Path) -> Listing:
    return Listing(root, SUFFIXES, "data.root")


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def below(root: Path, paths: list[str]) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes in each split; class ``a`` of the training images has two images."""
    for split in ("train", "val", "test"):
        fill(tmp_path / split / "a", "0.png", "1.JPG")
        fill(tmp_path / split / "b", "0.png")
    return tmp_path


def images_of_a(root: Path) -> list[str]:
    train = find_samples(root, "x", 1, 0)[0]["train"]
    paths = [path for path, label in zip(train.paths, train.labels, strict=True) if label == 0]
    return below(root / "train" / "a", paths)


@pytest.mark.parametrize("relative", [False, True])
def test_links_to_folders_and_files_are_followed(tree: Path, tmp_path_factory, relative) -> None:
    more = tmp_path_factory.mktemp("more")
    fill(more / "deep" / "deeper", "2.png")
    fill(more, "3.tif")
    place = tree / "train" / "a"
    os.symlink(os.path.relpath(more, place) if relative else more, place / "linked")
    os.symlink(more / "3.tif", place / "4.tif")
    assert images_of_a(tree) == [
        "0.png", "1.JPG", "4.tif", "linked/3.tif", "linked/deep/deeper/2.png",
    ]  # fmt: skip


def test_a_class_may_be_a_link_and_hold_links_alone(tree: Path, tmp_path_factory) -> None:
    more = fill(tmp_path_factory.mktemp("more"), "5.png")
    place = tree / "train" / "a"
    for path in place.iterdir():
        path.unlink()
    os.symlink(more, place / "only")
    assert images_of_a(tree) == ["only/5.png"]
    (place / "only").unlink()
    place.rmdir()
    os.symlink(more, place)
    assert images_of_a(tree) == ["5.png"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "sub"])
def test_loops_are_left_out_with_a_warning(tree: Path, caplog, target: str) -> None:
    sub = fill(tree / "train" / "a" / "sub", "2.png")
    os.symlink(Path("..") / target, sub / "back")
    assert images_of_a(tree) == ["0.png", "1.JPG", "sub/2.png"]
    assert "1 link(s) back to a folder above (`a/sub/back`)" in caplog.text


def test_loops_of_two_classes_end(tree: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for mine, other in (("p", "q"), ("q", "p")):
        fill(elsewhere / mine, f"{mine}.png")
        os.symlink(elsewhere / other, elsewhere / mine / "next")
    os.symlink(elsewhere / "p", tree / "train" / "a" / "in")
    assert images_of_a(tree) == ["0.png", "1.JPG", "in/next/q.png", "in/p.png"]


def test_a_folder_reached_twice_counts_twice_as_for_torchvision(
    tree: Path, tmp_path_factory
) -> None:
    more = fill(tmp_path_factory.mktemp("more"), "2.png")
    for name in ("x", "y"):
        os.symlink(more, tree / "train" / "a" / name)
    assert images_of_a(tree) == ["0.png", "1.JPG", "x/2.png", "y/2.png"]


def test_hidden_names_are_left_out_on_every_level_with_a_warning(tree: Path, caplog) -> None:
    fill(tree / "train" / ".ipynb_checkpoints", "0.png")
    fill(tree / "train" / "a" / ".ipynb_checkpoints", "0-checkpoint.png")
    fill(tree / "train" / "a" / "sub" / ".cache" / "deep", "9.png")
    fill(tree / "train" / "a", "._0.png", ".DS_Store")
    assert images_of_a(tree) == ["0.png", "1.JPG"]
    assert "4 hidden file(s) or folder(s) (`.ipynb_checkpoints`, `a/._0.png`, " in caplog.text


def test_other_files_are_named(tree: Path, caplog) -> None:
    fill(tree / "train" / "a", "0.gif", "notes.txt")
    fill(tree / "train", "loose.png")
    fill(tree / "train" / "a" / "folder.png", "2.png")
    os.mkfifo(tree / "train" / "a" / "pipe.png")
    assert images_of_a(tree) == ["0.png", "1.JPG", "folder.png/2.png"]
    assert "4 other file(s) (`loose.png`, `a/0.gif`, `a/notes.txt`, ...)" in caplog.text
    caplog.clear()
    for path in (tree / "test" / "b").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(InputError, match=r"b` has no images; left out: .*`b/0\.gif`"):
        find_samples(tree, "x", 1, 0)


def test_nothing_is_said_where_nothing_is_left_out(tree: Path, caplog) -> None:
    find_samples(tree, "x", 1, 0)
    assert not caplog.text


@pytest.mark.parametrize("place", ["train/a/9.png", "train/a/more", "train/c", "val/b/sub"])
@pytest.mark.parametrize("target", ["missing", "itself"])
def test_links_that_lead_nowhere_are_refused(tree: Path, place: str, target: str) -> None:
    os.symlink("missing" if target == "missing" else tree / place, tree / place)
    with pytest.raises(InputError, match="a link that leads nowhere") as caught:
        find_samples(tree, "x", 1, 0)
    assert str(tree / place) in caught.value.field


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_refused(tree: Path) -> None:
    (tree / "train" / "a").chmod(0)
    try:
        with pytest.raises(InputError, match=r"a: cannot be read: Permission denied"):
            find_samples(tree, "x", 1, 0)
    finally:
        (tree / "train" / "a").chmod(0o700)


def test_a_folder_that_fails_while_it_is_read_is_refused(tree: Path, monkeypatch) -> None:
    scan = os.scandir

    def failing(path: Path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(InputError, match=r"b: cannot be read: Permission denied"):
        find_samples(tree, "x", 1, 0)


NAMES = st.sampled_from(["a.png", "b.jpeg", "c.TIF", "d.txt", "e", "f.webp"])
FOLDERS = st.recursive(
    st.dictionaries(NAMES, st.none(), max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["p", "q", "r.png"]), inner | st.none(), max_size=3
    ),
    max_leaves=12,
)


def build(folder: Path, content: dict, elsewhere: Path, draw) -> None:
    for name, inner in content.items():
        if inner is None:
            (folder / name).touch()
        elif draw(st.booleans()):
            (folder / name).mkdir()
            build(folder / name, inner, elsewhere, draw)
        else:
            target = elsewhere / f"{len(list(elsewhere.iterdir()))}"
            target.mkdir()
            build(target, inner, elsewhere, draw)
            os.symlink(target, folder / name)


@settings(max_examples=40)
@given(content=FOLDERS, data=st.data())
def test_the_same_files_as_torchvisions_image_folder(tmp_path_factory, content, data) -> None:
    """Trees of folders and links without loops and hidden names."""
    root, elsewhere = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("elsewhere")
    (root / "a").mkdir()
    build(root / "a", content, elsewhere, data.draw)
    datasets = import_torchvision("a test").datasets
    extensions = datasets.folder.IMG_EXTENSIONS
    theirs = datasets.folder.make_dataset(
        str(root), {"a": 0}, extensions=extensions, allow_empty=True
    )
    assert sorted(path for path, _ in theirs) == listing(root).files("a")
