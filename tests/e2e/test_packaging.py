"""The wheel and the archive of sources, built and installed as a user has them, away from the repository."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import hosts
import numpy as np
import pytest

import postproc_export

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEM = f"postproc_export-{PROJECT['version']}"

pytestmark = pytest.mark.e2e


def run(*command: object, cwd: Path) -> str:
    """Run a program that has to succeed, and return what it prints."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


def test_the_archives_hold_what_they_should(built: Path) -> None:
    """Every module and file of the packages, types marked as such; the sources with tests, docs and pins."""
    kept = {
        path.relative_to(ROOT).as_posix()
        for name in ("graph_patterns", "postproc_export")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == kept
    assert {"graph_patterns/py.typed", "postproc_export/py.typed", "postproc_export/report/report.js"} <= names
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        sources = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    assert kept <= sources
    read = ("docs/conf.py", ".ci/run", ".github/workflows/ci.yml", "CITATION.cff")  # by tests
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "constraints.txt", *read):
        assert name in sources, name
    assert any(name.startswith("tests/e2e/") for name in sources)


def test_the_version_is_told_once(built: Path) -> None:
    """The package, its metadata and the citation say the same."""
    assert postproc_export.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_pages_name_the_wheel_and_its_extras(built: Path) -> None:
    """What they say to install is there: the wheel by its name, and every extra."""
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    wheels = {name for page in pages for name in re.findall(r"[\w.-]+\.whl", page)}
    assert wheels == {path.name for path in built.glob("*.whl")}
    named = {text for page in pages for text in re.findall(r"(?:postproc-export|\.whl|\.)\[([a-z,]+)\]'", page)}
    assert {extra for text in named for extra in text.split(",")} <= set(PROJECT["optional-dependencies"])
    assert named >= {"nncf", "export", "onnxruntime,openvino,predict,report"}


def test_an_installed_wheel_does_the_first_job(built: Path, tmp_path: Path) -> None:
    """In an environment of its own: calibrate on values, attach, look, and write a report from the package's files."""
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "-q", "--no-deps", "--no-index", *built.glob("*.whl"), cwd=tmp_path)
    shared = next((tmp_path / "env" / "lib").glob("python*/site-packages")) / "dependencies.pth"
    shared.write_text("\n".join(each for each in sys.path if each.endswith("site-packages")), encoding="utf-8")
    command = python.parent / "postproc-export"
    home = run(python, "-c", "import postproc_export; print(postproc_export.__file__)", cwd=tmp_path).strip()
    assert Path(home).is_relative_to(tmp_path)
    hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    scores = np.arange(16, dtype=np.float32)
    maps = np.random.default_rng(0).normal(scores[:, None, None, None], 1.0, (16, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "values.npz", pred_score=scores, gt_label=scores > 8, anomaly_map=maps, gt_mask=maps > 8)
    run(command, "calibrate", "values.npz", "-o", "stats.json", cwd=tmp_path)
    run(command, "attach", "raw.onnx", "--stats", "stats.json", "-o", "model.onnx", cwd=tmp_path)
    assert "pred_label" in run(command, "inspect", "model.onnx", cwd=tmp_path)
    run(command, "report", "stats.json", "-o", "report.html", cwd=tmp_path)
    told = run(*pip, "install", "--no-index", "postproc-export[demo]", cwd=tmp_path)  # as messages say
    assert "already satisfied: postproc-export[demo] in" in told
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
