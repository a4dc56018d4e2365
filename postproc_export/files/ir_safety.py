"""What an IR must not hold before anything parses it: references to other files, and sizes that no model has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from postproc_export.errors import UnsupportedModelError

LARGEST: Final = 512 * 1024 * 1024  # bytes of an .xml; that of a model of 50,000 operators has about 100 MB
LONGEST_RANGE: Final = 2**23  # elements of a constant range: OpenVINO computes it while it reads the file
_FIX: Final = "convert the model to an IR again, with OpenVINO itself"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STARTS: Final = (b"<?xml", b"<net")
_REFUSED: Final = {
    b"<!DOCTYPE": "a document type, which may define entities",
    b"<!ENTITY": "an entity",
    b"http://www.w3.org/2001/XInclude": "an inclusion of other files",
}
_SIZING: Final = re.compile(rb'<layer id="(\d{1,9})"[^>]*\btype="(?:Range|Broadcast|Tile|ConstantOfShape)"')
_EDGE: Final = re.compile(rb'<edge from-layer="(\d{1,9})"[^>]*\bto-layer="(\d{1,9})"')
_INTEGERS: Final = re.compile(
    rb'<layer id="(\d{1,9})"[^>]*\btype="Const"[^>]*>\s*'
    rb'<data element_type="i(32|64)" shape="[\d, ]*" offset="(\d{1,15})" size="(\d{1,4})"'
)


def refuse_unsafe_ir(path: Path) -> None:
    """Refuse an IR that is too large, is no XML in UTF-8, refers to other files, or asks for absurd sizes.

    Raises
    ------
    UnsupportedModelError
        If it is one of these.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise _refused(path, f"{size:,} bytes", needed=f"at most {LARGEST:,} bytes")
    content = path.read_bytes()
    if not content.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(_STARTS):
        raise _refused(path, f"a file that begins with {content[:20]!r}", needed="XML in UTF-8 with the element <net>")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, str(error), needed="XML in UTF-8") from error
    for text, what in _REFUSED.items():
        if text in content:
            raise _refused(path, what, needed="elements, attributes and text alone")
    for value in _sizes(content, path.with_suffix(".bin")):
        if abs(value) > LONGEST_RANGE:
            raise _refused(path, f"a size of {value:,}", needed=f"sizes of at most {LONGEST_RANGE:,} in a constant")


def _sizes(content: bytes, weights: Path) -> Iterator[int]:
    """Yield the constants that decide how large a computed value is."""
    sizing = {match[1] for match in _SIZING.finditer(content)}
    if not sizing:
        return
    sources = {match[1] for match in _EDGE.finditer(content) if match[2] in sizing}
    with weights.open("rb") as stream:
        for layer, bits, offset, size in (match.groups() for match in _INTEGERS.finditer(content)):
            if layer in sources:
                stream.seek(int(offset))
                values = stream.read(int(size))
                width = int(bits) // 8
                yield from np.frombuffer(values[: len(values) // width * width], f"<i{width}").tolist()


def _refused(path: Path, found: str, *, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"cannot read {path}: not an OpenVINO IR", found=found, needed=needed, fix=_FIX)
