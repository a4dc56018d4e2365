"""`postproc_export.files`: files that appear whole or not at all."""

import os
import stat
from pathlib import Path

import pytest
from publications import NEW, OLD, contents, fill, publish_pair

from postproc_export import files
from postproc_export.errors import FileError
from postproc_export.files import check_folder, check_target, publishing, write_text


def test_write_text_writes_and_replaces(tmp_path: Path) -> None:
    """The text is there as UTF-8, nothing else is, and a second run replaces it."""
    write_text(tmp_path / "stats.json", "1")
    write_text(tmp_path / "stats.json", "µ\n")
    assert (tmp_path / "stats.json").read_bytes() == b"\xc2\xb5\n"
    assert contents(tmp_path) == {"stats.json": "µ\n"}


def test_a_new_file_has_usual_permissions_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    """A new file follows the umask like any other; a file that is replaced passes its mode on."""
    path = tmp_path / "a.txt"
    (tmp_path / "usual").touch()
    write_text(path, "1")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    path.chmod(0o640)
    write_text(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Writing onto a symbolic link leaves what it points to alone."""
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "link.txt").symlink_to("kept.txt")
    write_text(tmp_path / "link.txt", "new")
    assert contents(tmp_path) == {"kept.txt": "kept", "link.txt": "new"}


def test_what_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A folder in the place of the file, a file in the place of the folder, a device; a missing folder is made."""
    write_text(tmp_path / "missing" / "a.txt", "")
    assert (tmp_path / "missing" / "a.txt").is_file()
    with pytest.raises(FileError, match="found:   a folder"):
        write_text(tmp_path, "")
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "new" / "a.txt"):
        with pytest.raises(FileError, match=r"found:   .*file is no folder, so that none can be made in it"):
            write_text(target, "")
    with pytest.raises(FileError, match="found:   a device or a pipe"):
        write_text(Path(os.devnull), "")
    with pytest.raises(FileError, match="found:   File name too long"):
        write_text(tmp_path / ("x" * 300), "")


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's reason is in the message."""

    def deny(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", deny)
    with pytest.raises(FileError, match=r"cannot write .*a\.txt\n  found:   Permission denied"):
        write_text(tmp_path / "a.txt", "")


def fail_halfway(target: Path, files: dict[Path, Path], error: BaseException) -> None:
    """Publish a model by work that fails after half of it."""
    with publishing([target]) as publication:
        publication.bring_along(files)
        publication.temporary(target).write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("of the work"), ValueError),
        (KeyboardInterrupt("of the work"), KeyboardInterrupt),
        (OSError(28, "of the work"), FileError),
    ],
)
def test_work_that_fails_leaves_everything_as_it_was(
    error: BaseException, shown: type[BaseException], tmp_path: Path
) -> None:
    """Neither a temporary file nor data that was brought along stays, and old files are untouched."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    target = fill(tmp_path / "target", {"model.onnx": "old"}) / "model.onnx"
    with pytest.raises(shown, match="of the work"):
        fail_halfway(target, {Path("w.bin"): source / "w.bin"}, error)
    assert contents(target.parent) == {"model.onnx": "old"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("existing", [{}, OLD, {"model.bin": "old bin"}], ids=["new", "both_exist", "one_exists"])
def test_a_pair_is_replaced_with_no_backup_left(existing: dict[str, str], tmp_path: Path) -> None:
    """After two moves both files are new and nothing else is there."""
    publish_pair(fill(tmp_path, existing))
    assert contents(tmp_path) == NEW


@pytest.mark.parametrize("existing", [{}, OLD, {"model.bin": "old bin"}], ids=["new", "both_exist", "one_exists"])
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_pair_that_fails_between_the_moves_is_restored(
    existing: dict[str, str], hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the second move fails, the first one is taken back, from a link or a copy."""
    replace = Path.replace

    def fail_once(self: Path, target: Path) -> Path:
        if self.name == "model.xml":
            raise KeyboardInterrupt
        return replace(self, target)

    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", fail_once)
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(KeyboardInterrupt):
        publish_pair(fill(tmp_path, existing))
    assert contents(tmp_path) == existing


def test_an_interruption_after_the_last_move_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the last file is in place the work is done, whatever comes then: data and files stay, backups go."""
    source = fill(tmp_path / "source", {"w.bin": "weights"})
    folder = fill(tmp_path / "target", OLD)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        if target.suffix == ".xml":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_pair(folder, weights={Path("w.bin"): source / "w.bin"})
    assert contents(folder) == {**NEW, "w.bin": "weights"}


def test_writing_onto_the_input_needs_in_place(tmp_path: Path) -> None:
    """The input is recognised by what it is, through links and other spellings."""
    model = fill(tmp_path, {"sub/model.onnx": "old"}) / "sub" / "model.onnx"
    (tmp_path / "hard.onnx").hardlink_to(model)
    (tmp_path / "soft.onnx").symlink_to(model)
    for target in (
        model,
        tmp_path / "sub" / ".." / "sub" / "model.onnx",
        tmp_path / "hard.onnx",
        tmp_path / "soft.onnx",
    ):
        with (
            pytest.raises(FileError, match=r"it is the file that is read\n  fix: .*--in-place"),
            publishing([target], inputs=[model]),
        ):
            pytest.fail("nothing may be written")
    with publishing([model], inputs=[model], in_place=True) as publication:
        publication.temporary(model).write_text("new")
    assert model.read_text() == "new"
    assert (tmp_path / "hard.onnx").read_text() == "old"


def test_a_name_of_the_system_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/dev/stdout` is a link, maybe to a file, that all processes use; /dev/shm is a folder."""
    devices = tmp_path / "dev"
    (devices / "shm").mkdir(parents=True)
    (tmp_path / "file").write_text("kept")
    (devices / "stdout").symlink_to(tmp_path / "file")
    (tmp_path / "elsewhere").symlink_to(devices)
    monkeypatch.setattr(files, "DEVICES", devices)
    for target in (devices / "stdout", tmp_path / "elsewhere" / "stdout"):
        with pytest.raises(FileError, match=r"found:   a name of the system(.|\n)*fix: "):
            write_text(target, "new")
    assert (devices / "stdout").is_symlink()
    write_text(devices / "shm" / "a.txt", "new")
    assert contents(devices) == {"stdout": "kept", "shm/a.txt": "new"}
    with pytest.raises(FileError, match="a name of the system, in /proc"):
        check_target(Path("/proc/self/comm"))


def test_a_target_is_checked_without_writing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `write_text` would refuse is refused before, with what to do; a good target is not made."""
    (tmp_path / "in.npz").write_text("input")
    check_target(tmp_path / "new.json", [tmp_path / "in.npz"])
    check_target(tmp_path / "absent" / "a.json")
    assert contents(tmp_path) == {"in.npz": "input"}
    cases = {
        tmp_path / "in.npz" / "a.json": "is no folder.*\n  fix:     choose another path",
        tmp_path: "a folder",
        tmp_path / ("x" * 300): "too long\n  fix:     choose a shorter name",
    }
    for target, message in cases.items():
        with pytest.raises(FileError, match=message):
            check_target(target)

    def deny(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "TemporaryFile", deny)
    for check in (check_target, check_folder):
        with pytest.raises(FileError, match="Permission denied\n  fix:     choose a folder that you may write to"):
            check(tmp_path / "a.json" if check is check_target else tmp_path)


def test_a_folder_is_checked_without_leaving_anything(tmp_path: Path) -> None:
    """A missing folder and a file in its place are refused."""
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match=r"no such folder(.|\n)*make the folder first"):
        check_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="a file"):
        check_folder(tmp_path / "file")


def test_a_target_that_is_read_is_refused(tmp_path: Path) -> None:
    """By whatever name, also within a folder that is read as one; a file beside it may be written."""
    fill(tmp_path, {"in.npz": "input", "store/zarr.json": "{}", "store/c/0": "x"})
    (tmp_path / "hard.npz").hardlink_to(tmp_path / "in.npz")
    (tmp_path / "soft.npz").symlink_to("in.npz")
    (tmp_path / "linked").symlink_to("store")
    read = [tmp_path / "in.npz", tmp_path / "store", tmp_path / "absent"]
    for name in ("in.npz", "hard.npz", "soft.npz", "store/../in.npz"):
        with pytest.raises(FileError, match=r"it is the file that is read\n  fix: "):
            check_target(tmp_path / name, read)
    for name in ("store/new.json", "store/c/0", "linked/c/new.json"):
        with pytest.raises(FileError, match=r"it lies in .*store, which is read"):
            check_target(tmp_path / name, read)
    check_target(tmp_path / "store.json", read)
    (tmp_path / "other.npz").touch()
    check_target(tmp_path / "other.npz", read)
