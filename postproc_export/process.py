"""The process that runs: signals that end it in order, and what other packages print into its stderr."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn

# --- Silence for single messages of other packages that nobody who reads them can act on.

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


# --- Signals that end a process: what was begun is taken back first, and what must not be cut in two is finished
# first.
#
# No handler of this module raises anything: an exception out of a handler may strike inside an extension, which turns
# it into an error of its own or drops it.

ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
_SHOW_CURSOR: Final = "\r\x1b[K\x1b[?25h"  # a progress bar hides it
_begun: "list[Undoing]" = []


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process with one line and code 128 + n; for the command line alone.

    A signal that somebody ignores or handles already, as `nohup` does, is left alone.
    """
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end_command)


class Undoing:
    """A block after which something is undone, however it ends; a signal that ends the process undoes it first.

    Parameters
    ----------
    undo
        Called once or more; must not raise.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo, self._process = undo, os.getpid()

    def __enter__(self) -> None:
        _begun.append(self)

    def __exit__(self, *_: object) -> None:
        with HeldSignals():
            self._undo()
            _begun.remove(self)

    def undo_here(self) -> None:
        """Undo it, unless it belongs to the process that this one was forked from."""
        if self._process == os.getpid():
            self._undo()


class OrderlyEnd:
    """A block in which a program that leaves SIGTERM and SIGHUP to the system undoes what was begun, and ends by them.

    That is in the main thread only; a handler of the program's own is left alone.
    """

    def __enter__(self) -> None:
        self._handlers = ExitStack()
        for number in ENDING if _in_main_thread() else ():
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers.callback(signal.signal, number, signal.SIG_DFL)
                signal.signal(number, _end_program)

    def __exit__(self, *_: object) -> None:
        self._handlers.close()


class HeldSignals:
    """A block that no signal cuts in two: those that arrive in the main thread are delivered when it ends."""

    def __enter__(self) -> None:
        self._seen: list[int] = []
        self._handlers = ExitStack()
        for number in ENDING if _in_main_thread() else ():
            handler: Any = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                self._handlers.callback(signal.signal, number, handler)
                signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        self._handlers.close()
        for number in dict.fromkeys(self._seen):
            signal.raise_signal(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._seen.append(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end_command(number: int, _: FrameType | None) -> NoReturn:
    _undo_everything()
    with suppress(OSError):
        tell(f"{_SHOW_CURSOR * os.isatty(2)}error: stopped by {signal.Signals(number).name}\n")
    os._exit(128 + number)


def _end_program(number: int, _: FrameType | None) -> None:
    _undo_everything()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _undo_everything() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    for each in reversed(_begun):
        each.undo_here()
