"""Damage to a file, drawn from a seed: truncation, flipped bits, random bytes, pieces moved or repeated."""

import random
from collections.abc import Callable
from typing import Final


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8) if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a stretch by random bytes."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.randint(1, 16)) + data[start + rng.randint(0, 16) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Insert a stretch of the file somewhere else."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randint(1, 64)]
    place = rng.randrange(len(data) + 1)
    return data[:place] + piece + data[place:]


def delete(data: bytes, rng: random.Random) -> bytes:
    """Take a stretch out."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randint(1, 64) :]


def extreme(data: bytes, rng: random.Random) -> bytes:
    """Write a length, a number or a sign where another byte was."""
    if not data:
        return data
    start = rng.randrange(len(data))
    value = rng.choice([b"\xff" * 9, b"\x00", b"\x7f", b"\xff\xff\xff\xff\x07", b"-1", b"99999999999999999999", b"nan"])
    return data[:start] + value + data[start + 1 :]


def digits(data: bytes, rng: random.Random) -> bytes:
    """Replace a digit of a text, where there is one."""
    places = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip_bits(data, rng)
    place = rng.choice(places)
    return data[:place] + rng.choice([b"0", b"7", b"-", b"1e400", b"999999999999"]) + data[place + 1 :]


def noise(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    return rng.randbytes(rng.randint(0, 256))


MUTATIONS: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    truncate,
    flip_bits,
    flip_bits,
    overwrite,
    repeat,
    delete,
    extreme,
    digits,
    digits,
    noise,
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a file damaged once, or now and then twice."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        data = rng.choice(MUTATIONS)(data, rng)
    return data
