"""What every command prints, and what `--json`, `--quiet`, `--verbose` and the width of the terminal make of it."""

import json
import shlex
import shutil
from pathlib import Path

import hosts
import numpy as np
import pytest
from conftest import Invoke
from rich.console import Console

from postproc_export.attach import attach_postprocessing
from postproc_export.cli.commands import app
from postproc_export.cli.console import command_line, wrapped
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
NAMES = [name for name in app if not name.startswith("-")]
SHARED = {"input", "output", "levels", "sensitivities", "notes"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a raw model, an attached one, raw values and statistics."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "raw model.onnx")
    attach_postprocessing(host, STATS, output=tmp_path / "attached.onnx")
    STATS.save(tmp_path / "stats.json")
    np.savez(tmp_path / "values.npz", pred_score=np.arange(8, dtype=np.float32), gt_label=np.arange(8) > 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "attach": ["attach", "raw model.onnx", "--stats", "stats.json", "-o", "new.onnx"],
    "update": ["update", "attached.onnx", "--image-sensitivity", "0.3", "-o", "new.onnx"],
    "detach": ["detach", "attached.onnx", "-o", "new.onnx"],
    "calibrate": ["calibrate", "values.npz", "-o", "new.json"],
    "inspect": ["inspect", "attached.onnx"],
}
TELLING = ("inspect",)  # commands that do nothing but tell


def next_of(stdout: str) -> list[str]:
    """Return the words of the command in the last line, which may go on after a backslash."""
    text = stdout.replace("\\\n", " ").splitlines()[-1]
    assert text.startswith("next: postproc-export ")
    return shlex.split(text)[2:]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_quiet_and_speak_json(name: str, invoke: Invoke) -> None:
    """The three words are in the help of each command; `--verbose` where there is more to say."""
    text = invoke(name, "--help").stdout
    assert "  --json\n" in text
    assert "  --quiet, -q\n" in text
    assert "Printing:" in text


@pytest.mark.parametrize("width", [40, 80, 150])
def test_the_help_as_a_whole_is_that_of_its_application(
    width: int, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told without importing what takes long; no command at all gets it, too, and exit code 2."""
    monkeypatch.setenv("COLUMNS", str(width))
    app.help_print(console=Console(width=width))
    wanted = [line.rstrip() for line in capfd.readouterr().out.strip().splitlines()]
    shown = [invoke("--help"), invoke("-h"), invoke()]
    assert [each.stdout.splitlines() for each in shown] == [wanted] * 3
    assert [each.exit_code for each in shown] == [0, 0, 2]


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_and_nothing_else(name: str, folder: Path, invoke: Invoke) -> None:
    """On stdout; the keys that all results have are there, but in a statistics file, which is printed as it is."""
    result = invoke(*COMMANDS[name], "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    if name == "calibrate":
        assert result.stdout == (folder / "new.json").read_text()
    else:
        assert document.keys() >= SHARED
        assert document["input"] == COMMANDS[name][1]
        assert document["output"] == (None if name in TELLING else "new.onnx")


def test_the_page_about_json_holds(folder: Path, invoke: Invoke) -> None:
    """Its commands run as they stand, and what they print is by the schemas, which `invoke` compares."""
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    (folder / "raw model.onnx").rename(folder / "model.onnx")
    lines = page.split("```sh\n")[1].split("```")[0].strip().splitlines()
    assert [line.split()[1] for line in lines] == ["attach", "update", "detach", "inspect"]
    for line in lines:
        result = invoke(*shlex.split(line)[1:])
        assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["update", "detach"])
def test_json_tells_that_there_was_nothing_to_do(name: str, folder: Path, invoke: Invoke) -> None:
    """Exit code 1, and still one object: without an output, with the reason."""
    arguments = ["raw model.onnx" if word == "attached.onnx" else word for word in COMMANDS[name]]
    result = invoke(*arguments, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["found"], document["output"]) == (1, False, None)
    assert "no post-processing" in document["notes"][0]


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_leaves_nothing(name: str, folder: Path, invoke: Invoke) -> None:
    """Neither stream has a word, but where telling is all that a command does; JSON stays as it is."""
    for flag in ("-q", "--quiet"):
        result = invoke(*COMMANDS[name], flag)
        assert (result.exit_code, result.stderr, bool(result.stdout)) == (0, "", name in TELLING)
        assert "next: " not in result.stdout
        (folder / COMMANDS[name][-1]).unlink() if name not in TELLING else None
    document = invoke(*COMMANDS[name], "-q", "--json").stdout
    assert json.loads(document)


def test_quiet_leaves_what_went_wrong(folder: Path, invoke: Invoke) -> None:
    """Errors stay, and so does why there was nothing to do; warnings are notes."""
    broken = invoke("attach", "absent.onnx", "--stats", "stats.json", "-q")
    assert (broken.exit_code, broken.stdout) == (2, "")
    assert broken.stderr.startswith("error: ")
    nothing = invoke("detach", "raw model.onnx", "-q")
    assert (nothing.exit_code, nothing.stderr) == (1, "")
    assert "no post-processing" in nothing.stdout
    np.savez(folder / "good.npz", pred_score=np.arange(8, dtype=np.float32), gt_label=np.zeros(8, int))
    assert "warning: " in invoke("calibrate", "good.npz", "-o", "new.json").stderr
    assert invoke("calibrate", "good.npz", "-o", "new.json", "-q").stderr == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("attach", ["check", "new.onnx", "--raw", "raw model.onnx"]),
        ("update", ["check", "new.onnx"]),
        ("detach", ["inspect", "new.onnx", "--defaults"]),
        ("calibrate", ["attach", "MODEL.onnx", "--stats", "new.json"]),
        ("inspect", ["check", "attached.onnx"]),
    ],
)
def test_a_command_ends_with_the_next_one(name: str, words: list[str], folder: Path, invoke: Invoke) -> None:
    """The last line on stdout, with the real names, quoted where need be; not with `--json`."""
    assert next_of(invoke(*COMMANDS[name]).stdout) == words
    assert "next: " not in invoke(*COMMANDS[name], "--json").stdout


def test_the_next_commands_lead_from_a_raw_model_to_a_checked_one(folder: Path, invoke: Invoke) -> None:
    """Typed as they stand, with the images that only the user has: each works and names the one behind it."""
    first = next_of(invoke("inspect", "raw model.onnx").stdout)
    assert first == ["calibrate", "raw model.onnx", "--images", "FOLDER", "-o", "stats.json"]
    words = next_of(invoke("update", "raw model.onnx", "--image-sensitivity", 0.3).stdout)
    for name in ("attach", "check"):
        assert words[0] == name
        result = invoke(*words)
        assert result.exit_code == 0, result.stderr
        words = next_of(result.stdout) if name == "attach" else words
    assert words == ["check", "raw model.post.onnx", "--raw", "raw model.onnx"]


def test_in_place_there_is_no_raw_file_left(folder: Path, invoke: Invoke) -> None:
    """The next command does not give the attached file as the raw one."""
    result = invoke("attach", "raw model.onnx", "--stats", "stats.json", "-o", "raw model.onnx", "--in-place")
    assert next_of(result.stdout) == ["check", "raw model.onnx"]


@pytest.mark.parametrize(
    ("name", "columns"), [(name, columns) for name in COMMANDS for columns in (80, 60, 40) if name != "calibrate"]
)
def test_no_word_is_broken(
    name: str, columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """Lines fit the terminal, and have the words that they have in a pipe, where each fact is one line."""
    whole = invoke(*COMMANDS[name])
    (folder / COMMANDS[name][-1]).unlink() if name not in TELLING else None
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = invoke(*COMMANDS[name])
    for before, after in ((whole.stdout, narrow.stdout), (whole.stderr, narrow.stderr)):
        words = [word for word in after.split() if word != "\\"]
        assert words == before.split()
        assert all(len(line) <= columns or len(line.split()) == 1 for line in after.splitlines())
    assert columns > 40 or narrow.stdout != whole.stdout


def test_a_name_does_not_steer_the_terminal(folder: Path, invoke: Invoke) -> None:
    """A control character in a name is spelt out, in an error and in a table."""
    name = "a\x1b]0;title\x07.onnx"
    shutil.copy("attached.onnx", name)
    for ran in (invoke("inspect", name), invoke("check", f"no {name}")):
        assert r"a\x1b]0;title\x07.onnx" in ran.stdout + ran.stderr
        assert not {"\x1b", "\x07"} & {*ran.stdout, *ran.stderr}


def test_text_goes_on_below_text() -> None:
    """Of a fact what follows stands behind its label; what has none is set in; short lines stay as they are."""
    assert wrapped("  image    one two three\nshort", 22) == "  image    one two\n           three\nshort"
    assert wrapped("one two three four", 10) == "one two\n    three\n    four"
    assert wrapped("any  text of any width", None) == "any  text of any width"
    assert wrapped("  a-path-that-is-longer-than-it-may-be.onnx", 20) == "  a-path-that-is-longer-than-it-may-be.onnx"


def test_an_error_breaks_between_words_but_not_in_a_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """Below its label; what can be copied and typed stays on one line, however narrow the terminal."""
    whole = invoke("attach", "stats.json", "--stats", "stats.json").stderr
    monkeypatch.setenv("COLUMNS", "30")
    narrow = invoke("attach", "stats.json", "--stats", "stats.json").stderr
    assert narrow.split() == whole.split()
    assert len(narrow.splitlines()) > len(whole.splitlines())
    assert wrapped("  fix:     first postproc-export attach model.onnx -s stats.json", 30).count("\n") == 0


def test_a_command_that_is_broken_can_still_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell reads the same words, whatever the width."""
    words = ["attach", "my model.onnx", "--stats", "it's.json", "-o", "out.onnx"]
    whole = command_line(words)
    assert whole == "postproc-export attach 'my model.onnx' --stats 'it'\"'\"'s.json' -o out.onnx"
    monkeypatch.setenv("COLUMNS", "40")
    lines = command_line(words, before="next: ").splitlines()
    assert [line.endswith(" \\") for line in lines] == [*[True] * (len(lines) - 1), False]
    assert max(map(len, lines)) <= 40
    assert shlex.split("\n".join(lines)[6:].replace("\\\n", "")) == ["postproc-export", *words]
