"""`postproc-export --completion`: scripts that shells read, and what bash and fish complete with them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke

CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}
COMPLETED = [
    (["at"], ["attach"]),
    (["attach", "--image-s"], ["--image-sensitivity", "--image-sensitivity-for"]),
    (["attach", "--comparison", ""], ["ge", "gt"]),
    (["attach", "mod"], ["model.onnx"]),
    (["attach", "--in-place", "mod"], ["model.onnx"]),  # a switch takes no value
    (["check", "model.onnx", "--raw", "mod"], ["model.onnx"]),
    (["nothing-of-the-kind"], []),
]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Callable[[str], Path]:
    """Write the script for a shell to a file, beside a model, in the folder to work in; skips where there is none."""

    def write(shell: str) -> Path:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        result = invoke("--completion", shell)
        assert (result.exit_code, result.stderr) == (0, "")
        (tmp_path / "model.onnx").touch()
        (tmp_path / "script").write_text(result.stdout)
        monkeypatch.chdir(tmp_path)
        return tmp_path / "script"

    return write


@pytest.mark.parametrize("shell", CHECKS)
def test_a_shell_can_read_its_script(shell: str, script: Callable[[str], Path]) -> None:
    """Its own check of the syntax finds nothing."""
    done = subprocess.run([*CHECKS[shell], script(shell)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("typed", "completed"), COMPLETED)
def test_bash_completes(typed: list[str], completed: list[str], script: Callable[[str], Path]) -> None:
    """Commands, options, choices and files; nothing for what is none of them."""
    words = 'source ./script; COMP_WORDS=(postproc-export "$@"); COMP_CWORD=$#; _postproc_export'
    code = f'{words}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    script("bash")
    done = subprocess.run(["bash", "-c", code, "test", *typed], capture_output=True, text=True, check=True)
    assert sorted(set(done.stdout.split())) == completed


def test_fish_completes(script: Callable[[str], Path]) -> None:
    """A command, and the choices of an option."""
    script("fish")
    for typed, completed in (("ins", ["inspect"]), ("attach --comparison ", ["ge", "gt"])):
        code = f'source ./script; complete -C "postproc-export {typed}"'
        done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == completed


@pytest.mark.parametrize("arguments", [["--completion"], ["--completion", "tcsh"]])
def test_another_shell_is_one_message(arguments: list[str], invoke: Invoke) -> None:
    """Exit code 2; the message names the shells that there are."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "fix:     such as postproc-export --completion bash\n" in result.stderr
