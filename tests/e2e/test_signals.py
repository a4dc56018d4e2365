"""Commands that are stopped by signals at random moments: nothing is lost, nothing stays, one line is said."""

import pytest
from scripting import run_script

COMMANDS = ("attach", "attach-external", "attach-ir", "update", "update-ir", "in-place", "in-place-ir", "calibrate")
pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("command", "count"), [("attach", "6"), ("in-place-ir", "6"), ("calibrate", "3")])
def test_a_stopped_command_loses_and_leaves_nothing(command: str, count: str) -> None:
    """Input whole, old output or new one whole, no litter, no traceback; after SIGKILL the next run tidies up."""
    run_script("signalled_commands.py", command, count, "1", "forked")


def test_a_command_that_is_stopped_while_it_starts_says_one_line() -> None:
    """So it is for a process of its own, from the moment on at which Python has started."""
    run_script("signalled_commands.py", "update-ir", "3", "1", "own")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hundred_signals(command: str) -> None:
    """The same at a hundred moments, with SIGTERM, SIGINT and SIGKILL in turn."""
    run_script("signalled_commands.py", command, "100", "2", "forked", timeout=3600)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["attach", "in-place-ir"])
def test_thirty_signals_to_processes_of_their_own(command: str) -> None:
    """The same with imports and all."""
    run_script("signalled_commands.py", command, "30", "3", "own", timeout=3600)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "export-both"])
def test_signals_to_an_export(command: str) -> None:
    """An export, which takes long, leaves all of its files or none."""
    run_script("signalled_commands.py", command, "100", "4", "forked", timeout=7200)
