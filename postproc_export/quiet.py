"""Silence for single messages of other packages that nobody who reads them can act on."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_of_command = False
_descriptors = [2]  # the last one leads to where stderr led at the start


@contextmanager
def natives_of_command() -> Iterator[None]:
    """Let `quiet_natives` do its work while the block runs: the process is a command's, and its stderr is ours."""
    global _of_command
    before, _of_command = _of_command, True
    try:
        yield
    finally:
        _of_command = before


@contextmanager
def quiet_natives() -> Iterator[None]:
    """Drop what C++ code writes to stderr by itself while the block runs, such as the log of each parser that failed.

    One message says what is wrong. In a program that is not ours nothing is dropped.
    """
    if not _of_command:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    _descriptors.append(kept)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        _descriptors.remove(kept)
        os.close(kept)


def tell(text: str) -> None:
    """Write to stderr at once, from anywhere, whoever is kept quiet."""
    os.write(_descriptors[-1], text.encode())


@contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """Let only errors of one logger through while the block runs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what `torch.onnx.export` says of itself while the block runs."""
    # The logger: one line for each torchvision operator that it would know if torchvision were installed.
    with quiet_logger("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
        # torch 2.13 using a class that it has deprecated itself.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        yield
