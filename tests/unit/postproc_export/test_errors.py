"""One class catches every error that is raised on purpose, and a package that is missing is named as pip knows it."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import hosts
import pytest
from scripting import environment

import graph_patterns
from postproc_export import CalibrationStats, LevelStats, PostprocError, attach_postprocessing, errors
from postproc_export.errors import MissingDependencyError, install, require

ROOT: Final = Path(__file__).parents[3]
STATS: Final = CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=2.0))


def packages() -> set[str]:
    """Return what the project's extras and requirements install, by the names that pip knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[\[<>=; ]", each)[0].replace("_", "-") for items in lists for each in items}


def required() -> set[str]:
    """Return the names of the modules that any place of the package asks `require` or `install` for."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "postproc_export").rglob("*.py")]
    return {name for text in texts for name in re.findall(r"\b(?:require|install)\(\s*\"([\w.]+)\"", text)}


def test_what_is_advised_installs_what_is_missing() -> None:
    """Every module that may be missing is in a package that the project names, under the name that is advised."""
    modules = required()
    assert {"torch", "onnxruntime", "openvino", "PIL.Image", "zarr", "dask.array", "skimage", "nncf"} <= modules
    known = packages() | {"onnx-ir", "anomalib"}  # what onnxscript brings along, and what brings its own torch
    assert {module for module in modules if install(module).removeprefix("pip install ") not in known} == set()


@pytest.mark.parametrize("module", sorted(required()))
def test_a_missing_package_is_an_import_error_with_the_command(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever catches either class sees the purpose and what to type; a module that is there is returned."""
    name = module.split(".")[0]
    for each in [each for each in sys.modules if each == module or each.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=f"tests needs the package '{name}', .*\n  fix:     pip install [a-z-]+$"
    ) as it:
        require(module, purpose="a run of the tests")
    assert isinstance(it.value, PostprocError)
    assert require("json.decoder", purpose="nothing").__name__ == "json.decoder"


def test_the_module_class_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from postproc_export import PostProcessor` without torch, which nothing else needs before it is called."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependencyError, match=r"PostProcessor needs the package 'torch'.*\n.*pip install torch$"
    ):
        exec("from postproc_export import PostProcessor", {})


@pytest.mark.parametrize("blocked", ["torch", "onnxruntime,openvino,PIL,zarr,dask,nncf,skimage,matplotlib,lightning"])
def test_every_other_name_is_there_without_the_extras(blocked: str) -> None:
    """What a name needs, it asks for when it is called: in a process that has imported nothing yet."""
    code = (
        f"import sys; sys.modules |= dict.fromkeys('{blocked}'.split(',')); import postproc_export as it;"
        "[getattr(it, name) for name in it.__all__ if name != 'PostProcessor']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


def test_one_class_catches_the_errors_of_both_packages(tmp_path: Path) -> None:
    """Those of a file that is no model, of options and of statistics, and each class that is defined for users."""
    (tmp_path / "text.onnx").write_text("hello, this is text")
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    for path, options in (("text.onnx", {}), ("none.onnx", {}), ("raw.onnx", {"image_output": "nope"})):
        with pytest.raises(PostprocError):
            attach_postprocessing(tmp_path / path, STATS, **options)
    with pytest.raises(PostprocError):
        attach_postprocessing(raw, STATS, image_sensitivity=2.0)
    classes = [*vars(errors).values(), *vars(graph_patterns).values()]
    found = [each for each in classes if isinstance(each, type) and issubclass(each, Exception)]
    assert len(found) >= 10
    assert [each for each in found if not issubclass(each, PostprocError)] == []


def test_an_import_error_of_another_package_is_not_taken_for_the_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is there and needs one that is not would not be mended by installing it."""
    (tmp_path / "halfway_there.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        require("halfway_there", purpose="nothing")
