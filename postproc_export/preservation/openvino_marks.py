"""The marks of an IR's operators and ports (their rt_info), which only the .xml itself tells in full."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from postproc_export.errors import UnsupportedModelError
from postproc_export.preservation.change import Change, shown


def mark_changes(raw: Path, attached: Path) -> Iterator[Change]:
    """Yield the operators of the raw IR whose marks are others in the attached one, in bodies too.

    Parameters
    ----------
    raw, attached
        The .xml files, which `refuse_unsafe_ir` has let pass.

    Raises
    ------
    UnsupportedModelError
        If one is no XML; OpenVINO's own reader takes some that are not.
    """
    before, after = _marks(raw), _marks(attached)
    for name, marks in before.items():
        if after.get(name, marks) != marks:
            yield Change(f"'{name}': rt_info", shown(", ".join(marks)), shown(", ".join(after[name])))


def _marks(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    try:
        for _, layer in ElementTree.iterparse(path):
            if layer.tag == "layer":
                found[layer.get("name", "")] += _marks_of(layer)
                layer.clear()
    except ElementTree.ParseError as error:
        raise UnsupportedModelError(f"cannot read {path}: not XML", found=str(error)) from error
    return found


def _marks_of(layer: ElementTree.Element) -> Iterator[str]:
    places = {"": layer.findall("rt_info")}
    for side in ("input", "output"):
        for index, port in enumerate(layer.findall(f"{side}/port")):
            places[f"{side} {index}: "] = port.findall("rt_info")
    for place, infos in places.items():
        for mark in (mark for info in infos for mark in info.iter() if mark is not info):
            yield place + " ".join((mark.tag, *(f"{key}={value}" for key, value in sorted(mark.attrib.items()))))
