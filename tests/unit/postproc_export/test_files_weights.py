"""`postproc_export.files`: external data that is brought along."""

from pathlib import Path
from typing import NoReturn

import pytest
from publications import contents, fill, publish_with_weights

from postproc_export.errors import FileError


def refuse(*arguments: object) -> NoReturn:
    """Fail as a system call that the file system does not have."""
    raise OSError("not supported")


@pytest.mark.parametrize("clone", [True, False], ids=["reflink_if_possible", "no_reflink"])
def test_weights_are_brought_along(clone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """External data is copied, sub-folders included, with the permissions of a new file."""
    if not clone:
        monkeypatch.setattr("fcntl.ioctl", refuse)
    source = fill(tmp_path / "source", {"a.bin": "a" * 9999, "deep/er/b.bin": "b"})
    (source / "a.bin").chmod(0o400)
    files = {Path(name): source / name for name in ("a.bin", "deep/er/b.bin")}
    target = fill(tmp_path / "target", {}) / "model.onnx"
    target.parent.mkdir()
    publish_with_weights(target, files)
    assert contents(target.parent) == {**contents(source), "model.onnx": "model"}
    assert (target.parent / "a.bin").stat().st_mode == target.stat().st_mode


def bring(source: Path, folder: Path, *, link: bool = False) -> None:
    """Publish a model into a folder with the weights of another."""
    folder.mkdir(exist_ok=True)
    publish_with_weights(folder / "model.onnx", {Path("w.bin"): source / "w.bin"}, link=link)


def test_weights_are_linked_on_request(tmp_path: Path) -> None:
    """`link` makes a second name for the same file."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    bring(source, tmp_path / "target", link=True)
    assert (tmp_path / "target" / "w.bin").samefile(source / "w.bin")


def test_weights_that_cannot_be_linked_are_not_copied_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without links is an error that says how to go on."""

    def deny(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", deny)
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    with pytest.raises(FileError, match=r"cannot make a hard link to .*w\.bin\n  found:   Invalid cross-device link"):
        bring(source, tmp_path / "target", link=True)
    assert contents(tmp_path / "target") == {}


def test_weights_that_are_there_already_are_used(tmp_path: Path) -> None:
    """In the input's own folder, and where the same content is there, nothing is copied."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    bring(source, source)
    target = fill(tmp_path / "target", {"w.bin": "weights"})
    before = (target / "w.bin").stat()
    bring(source, target)
    assert (target / "w.bin").stat() == before
    assert contents(target) == {"w.bin": "weights", "model.onnx": "model"}


@pytest.mark.parametrize("there", ["other weights", "WEIGHTS"], ids=["other_size", "same_size"])
def test_other_weights_of_the_same_name_are_never_overwritten(there: str, tmp_path: Path) -> None:
    """A different file in the target folder is refused by name, and neither it nor anything else changes."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    target = fill(tmp_path / "target", {"w.bin": there})
    with pytest.raises(FileError, match=r"w\.bin is there already and holds something else"):
        bring(source, target)
    assert contents(target) == {"w.bin": there}


def test_weights_do_not_appear_over_a_dangling_link(tmp_path: Path) -> None:
    """A link to nothing occupies its name."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "w.bin").symlink_to("nothing")
    with pytest.raises(FileError, match="is there already"):
        bring(source, tmp_path / "target")


def test_weights_do_not_leave_the_target_folder(tmp_path: Path) -> None:
    """A sub-folder that is a link out of the target folder is refused."""
    source = fill(tmp_path / "source", {"sub/w.bin": "weights"})
    target = fill(tmp_path / "target", {"old": ""})
    (tmp_path / "elsewhere").mkdir()
    (target / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="it is a link out of"):
        publish_with_weights(target / "m.onnx", {Path("sub/w.bin"): source / "sub" / "w.bin"})
    assert contents(tmp_path / "elsewhere") == {}
    assert contents(target) == {"old": ""}


def test_the_model_is_not_written_over_its_weights(tmp_path: Path) -> None:
    """An output with the name of the weights is refused, in their own folder and in another."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    (tmp_path / "target").mkdir()
    for target in (source / "w.bin", tmp_path / "target" / "w.bin"):
        with pytest.raises(FileError, match="the model keeps its weights there"):
            publish_with_weights(target, {Path("w.bin"): source / "w.bin"})
    assert contents(source) == {"w.bin": "weights"}


def test_folders_that_were_made_are_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move that fails after the data is in place takes the data and its new folders back, and only those."""
    source = fill(tmp_path / "source", {"old/new/w.bin": "weights"})
    target = fill(tmp_path / "target", {"old/kept": "kept"}) / "model.onnx"

    def fail(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FileError, match="Input/output error"):
        publish_with_weights(target, {Path("old/new/w.bin"): source / "old/new/w.bin"})
    assert contents(target.parent) == {"old/kept": "kept"}
    assert not (target.parent / "old" / "new").exists()
