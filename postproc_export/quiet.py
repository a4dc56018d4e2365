"""Silence for single messages of other packages that nobody who reads them can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
