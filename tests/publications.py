"""Folders before and after files were published into them."""

from pathlib import Path

from postproc_export.files import publishing

OLD = {"model.xml": "old xml", "model.bin": "old bin"}
NEW = {"model.xml": "new xml", "model.bin": "new bin"}


def contents(folder: Path) -> dict[str, str]:
    """Read all files below a folder: {relative path: text}."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, files: dict[str, str]) -> Path:
    """Write some files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def publish_with_weights(target: Path, files: dict[Path, Path], *, link: bool = False) -> None:
    """Publish a model with the weights that it needs."""
    with publishing([target]) as publication:
        publication.bring_along(files, link=link)
        publication.temporary(target).write_text("model")


def publish_pair(folder: Path, *, weights: dict[Path, Path] | None = None) -> None:
    """Publish the two new files of an IR."""
    targets = [folder / name for name in NEW]
    with publishing(targets) as publication:
        publication.bring_along(weights or {})
        for target in targets:
            publication.temporary(target).write_text(NEW[target.name])
