"""What is installed: packages that are missing, old or broken in every way, and what works without them."""

import json
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Invoke

from postproc_export.installation import BRINGS, examine

ROOT = Path(__file__).parents[3]
Wanted = Callable[..., None]

BROKEN = {
    "raises": ("raise ImportError('libfoo.so: cannot open shared object file')", "ImportError: libfoo.so: cannot open"),
    "silent": ("raise ValueError", "ValueError: no reason given"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "its import ends the process (SIGKILL)"),
    "leaves": ("import os, sys; print('gone', file=sys.stderr, flush=True); os._exit(3)", "ends the process: gone"),
    "nested": ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
}


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """Let the project require some packages, by extra, and write those that are given with their source."""

    def ask(*requirements: str, **sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(metadata, "requires", lambda _: [*requirements])

    return ask


def test_every_extra_of_the_project_is_told_of() -> None:
    """What an extra brings is said of each that a user may choose."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(BRINGS) == {"", *project["optional-dependencies"]} - {"all", "dev"}


def test_what_is_there_works_and_what_is_missing_is_named(wanted: Wanted) -> None:
    """A missing package costs its extra alone; the command brings what is missing and nothing else."""
    wanted(
        "there_it_is>=1.9",
        "there_it_is>=2; extra == 'zarr'",
        "not-there-at-all>=3; extra == 'zarr'",
        "there_it_is; extra == 'dask'",
        "unheard_of; extra == 'dev'",
        there_it_is="__version__ = '2.10.1+cpu'; print('noise')",
    )
    found = examine()
    assert dict(found.packages) == {
        "there-it-is": {"state": "installed", "version": "2.10.1+cpu", "error": None},
        "not-there-at-all": {"state": "missing", "version": None, "error": None},
    }
    assert {name: extra["works"] for name, extra in found.extras.items()} == {"": True, "zarr": False, "dask": True}
    assert found.extras["zarr"]["install"] == "pip install not-there-at-all"
    assert found.extras["zarr"]["packages"] == {"there-it-is": "2", "not-there-at-all": "3"}
    assert found.extras["dask"]["install"] is None
    assert found.headline().endswith("1 of 2 extras work here")
    assert "  version  there-it-is 2.10.1+cpu\n" in found.summary()
    told = f"  missing  {BRINGS['zarr']} (zarr)\n           fix: pip install not-there-at-all"
    assert told in found.summary()


def test_an_old_package_is_to_be_upgraded(wanted: Wanted) -> None:
    """Numbers are compared, not texts: 2.10 is later than 2.9; the extra that is content with it works."""
    wanted("aged>=2.9; extra == 'zarr'", "aged>=2.11; extra == 'dask'", aged="__version__ = '2.10'")
    extras = examine().extras
    assert (extras["zarr"]["works"], extras["dask"]["works"]) == (True, False)
    assert extras["dask"]["install"] == "pip install --upgrade aged"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_told_of_and_stops_nothing(name: str, wanted: Wanted, invoke: Invoke) -> None:
    """However it breaks: the command says so with the reason, ends with 0, and the other extra works."""
    source, reason = BROKEN[name]
    wanted(f"{name}_pkg; extra == 'zarr'", "sound; extra == 'dask'", **{f"{name}_pkg": source, "sound": ""})
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"  broken   {name}-pkg: " in result.stdout
    assert reason in result.stdout
    assert f"fix: pip install --force-reinstall {name}-pkg" in result.stdout
    assert "1 of 2 extras work here" in result.stdout


def test_what_another_package_breaks_is_asked_again_alone(wanted: Wanted) -> None:
    """Packages are imported one after the other; one that fails for what came before it is not broken."""
    marks = "import os, sys; sys.is_marked = True"
    ends = "import os, sys; getattr(sys, 'is_marked', False) and os._exit(1)"
    raises = "import sys; assert not getattr(sys, 'is_marked', False)"
    names = {"a_marks": marks, "b_ends": ends, "c_marks": marks, "d_raises": raises}
    wanted(*(f"{name}; extra == 'zarr'" for name in names), **names)
    assert {package["state"] for package in examine().packages.values()} == {"installed"}


def test_a_package_that_takes_for_ever_is_broken(wanted: Wanted) -> None:
    """It is waited for as long as was asked."""
    wanted("slow; extra == 'zarr'", slow="import sys, time; print('noise', file=sys.stderr); time.sleep(600)")
    assert examine(longest=0.5).packages["slow"]["error"] == "its import took longer than 0.5 seconds"


def test_without_its_own_metadata_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that was never installed knows no extras."""

    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert "postproc-export itself is not installed" in examine().summary()


def test_runtimes_and_the_machine_are_told_of(wanted: Wanted, invoke: Invoke) -> None:
    """Providers, devices with the precision that they compute in by default, and instruction sets, as JSON and text."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    wanted("onnxruntime>=1; extra == 'onnxruntime'", "openvino>=2025.0; extra == 'openvino'")
    document = json.loads(invoke("doctor", "--json").stdout)
    assert "CPUExecutionProvider" in document["packages"]["onnxruntime"]["providers"]
    (cpu,) = [device for device in document["packages"]["openvino"]["devices"] if device["name"] == "CPU"]
    assert cpu["precision"] in ("float32", "bfloat16", "float16")
    assert "FP32" in cpu["capabilities"]
    assert document["extras"]["openvino"]["works"] is True
    assert {"version", "python", "platform", "processor", "processor_features", "cores"} <= document.keys()
    text = invoke("doctor", "-q").stdout
    assert f"which computes in {cpu['precision']} by default; it is used, at float32, unless --runtime" in text
    assert all(feature in text for feature in document["processor_features"])
