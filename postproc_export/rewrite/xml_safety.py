"""What an .xml must not hold before anything parses it: an IR is plain elements, attributes and text."""

from pathlib import Path
from typing import Final

from postproc_export.errors import UnsupportedModelError

LARGEST: Final = 512 * 1024 * 1024  # bytes; the .xml of a model of 50,000 operators has about 100 MB
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STARTS: Final = (b"<?xml", b"<net")
_REFUSED: Final = {
    b"<!DOCTYPE": "a document type, which may define entities",
    b"<!ENTITY": "an entity",
    b"http://www.w3.org/2001/XInclude": "an inclusion of other files",
}


def refuse_unsafe_xml(path: Path) -> None:
    """Refuse an .xml that is too large, is no XML in UTF-8, or could refer to anything outside itself.

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
    for text, what in _REFUSED.items():
        if text in content:
            raise _refused(path, what, needed="elements, attributes and text alone")


def _refused(path: Path, found: str, *, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"cannot read {path}: not an OpenVINO IR", found=found, needed=needed)
