"""The content digest of a model: the same for every copy of it, whatever its names, paths and metadata are.

It tells models apart by what they compute with. A constant counts by its element type, its shape and samples of its
bytes, so that the digest of any model takes milliseconds; an operator counts by its type and attributes. Their order is
left aside, and so is what this package added, all of which has its prefix.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

BLOCKS: Final = 16
BLOCK: Final = 256  # bytes
_SIZE: Final = 16  # bytes of a digest

Read: TypeAlias = Callable[[int, int], bytes]
"""Returns so many bytes of a constant, from a byte on."""


def constant_part(dtype: str, shape: Sequence[int], size: int, read: Read) -> bytes:
    """Return what counts of a constant of `size` bytes: all of a small one, else blocks spread evenly over it."""
    starts = [index * (size - BLOCK) // (BLOCKS - 1) for index in range(BLOCKS)]
    sampled = [read(0, size)] if size <= BLOCKS * BLOCK else [read(start, BLOCK) for start in starts]
    return b"".join([f"constant {dtype} {[*shape]} {size} ".encode(), *sampled])


def operator_part(kind: str, attributes: Iterable[bytes]) -> bytes:
    """Return what counts of an operator."""
    return b"".join([f"operator {kind} ".encode(), *(_hashed(item) for item in attributes)])


def content_digest(parts: Iterable[bytes]) -> str:
    """Return the digest of a model's constants and operators, in any order, as hexadecimal digits."""
    return _hashed(b"".join(sorted(map(_hashed, parts)))).hex()


def _hashed(content: bytes) -> bytes:
    return blake2b(content, digest_size=_SIZE).digest()
