"""An option is declared once: its class gives the signature, the help and the command line."""

import inspect
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import hosts
import pytest
from conftest import Invoke
from cyclopts import App

import postproc_export
from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.cli.options import command, options_of
from postproc_export.options import AttachOptions, EagerOptions, UpdateOptions
from postproc_export.run_options import CheckOptions, ExportOptions, ModelOptions, ShardOptions
from postproc_export.validation import called_like, descriptions

CLASSES = (AttachOptions, UpdateOptions, EagerOptions, ShardOptions, ModelOptions, CheckOptions, ExportOptions)
OWN_PARAMETERS = 12


@dataclass(frozen=True)
class MoreOptions(AttachOptions):
    """What `attach` would take with one more option.

    Parameters
    ----------
    rounding
        How scores are rounded.
    """

    rounding: Literal["nearest", "down"] = "nearest"


def test_adding_an_option_is_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    """A field with its line of help is a typed keyword, stands in `help()`, and is an option of the command."""

    @called_like(MoreOptions)
    def attach(**given: Any) -> MoreOptions:
        """Attach."""
        return MoreOptions(**given)

    assert attach("m.onnx", "s.json", rounding="down").rounding == "down"
    assert inspect.signature(attach).parameters["rounding"].default == "nearest"
    assert "rounding\n    How scores are rounded." in str(attach.__doc__)
    app = App(result_action="return_value", help_formatter="plain")
    run = command(options_of(MoreOptions))(lambda **given: print(given) or 0)
    app.default(run)
    app(["m.onnx", "--stats", "s.json", "--rounding", "down", "--no-normalize"])
    assert "'rounding': 'down'" in capsys.readouterr().out
    app(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--rounding CHOICE: How scores are rounded. [choices: nearest, down] [default: nearest]" in shown


@pytest.mark.parametrize("options", CLASSES)
def test_every_option_is_explained(options: type) -> None:
    """No field without a text, no text without a field."""
    assert set(descriptions(options)) == {item.name for item in fields(options)}


def test_a_name_that_is_not_known_is_a_type_error() -> None:
    """As for any function; a name that is nearly one is told."""
    with pytest.raises(TypeError, match=r"attach_postprocessing.*'image_sensitivty'; did you mean 'image_sensitivity'"):
        attach_postprocessing("m.onnx", "s.json", image_sensitivty=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'stats'"):
        attach_postprocessing("m.onnx")  # type: ignore[call-arg]


def test_no_public_function_has_many_parameters_of_its_own() -> None:
    """What goes beyond a handful stands in an options class."""
    found = [each for name in postproc_export.__all__ if callable(each := getattr(postproc_export, name))]
    code = [inspect.unwrap(each.__init__ if isinstance(each, type) else each) for each in found]
    own = {each.__qualname__: len(inspect.signature(each).parameters) for each in code}
    assert {name: count for name, count in own.items() if count > OWN_PARAMETERS} == {}


def test_a_value_of_the_wrong_type_is_an_error_of_mypy(tmp_path: Path) -> None:
    """Calls stay typed: values, names and what is missing are judged before anything runs."""
    calls = ("'s', image_sensitivity='x'", "'s', image_sensitivty=0.5", "'s', comparison='lt'", "keep_raw=True", "'s'")
    lines = [f"attach_postprocessing('m', {call})" for call in calls]
    source = tmp_path / "calls.py"
    source.write_text("\n".join(["from postproc_export import attach_postprocessing", *lines]), encoding="utf-8")
    # What the signature is made of is read; the rest, with torch and onnx behind it, would take a minute.
    read = [f"postproc_export/{name}.py" for name in ("__init__", "attach", "options", "validation", "stats")]
    arguments = [sys.executable, "-m", "mypy", "--follow-imports=skip", f"--cache-dir={tmp_path}", str(source), *read]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    found = {int(line.split(":")[-3]) for line in run.stdout.splitlines() if "calls.py" in line and ": error:" in line}
    assert found == {2, 3, 4, 5}, run.stdout


def test_step_is_the_name_of_tail(tmp_path: Path, invoke: Invoke) -> None:
    """The old name works and stands in no help of the command line."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    level = LevelStats(threshold=0.25, min=-1, max=1)
    CalibrationStats(image=level, pixel=level).save(tmp_path / "s.json")
    written = []
    for option in ("--step", "--tail"):
        result = invoke("attach", model, "-s", tmp_path / "s.json", "-o", tmp_path / "o.onnx", option, "gate")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "with     gate" in result.stdout
        written.append((tmp_path / "o.onnx").read_bytes())
    assert written[0] == written[1]
    shown = invoke("attach", "--help").stdout
    assert "--step" in shown
    assert "--tail" not in shown
