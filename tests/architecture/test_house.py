"""The house stays small: every bar of benchmarks/house.py holds."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "house.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that measures."""
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures(script: ModuleType) -> dict[str, object]:
    """What it measures."""
    return script.house() | script.courses()


def test_every_bar_holds(script: ModuleType, figures: dict[str, object]) -> None:
    """Files, lines, bodies, dataclasses, names, parameters and copies; and how many files a call goes through."""
    over = {key: figures[key] for key, bar in script.BARS.items() if script.count(figures[key]) > bar}
    assert not over, "python benchmarks/house.py prints where"


def test_copies_are_found(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines that stand twice are found, whatever names and comments they have; nine lines and tables are not."""
    body = [f"value = {'x + ' * number}{number}" for number in range(10)]
    (tmp_path / "first.py").write_text("\n".join(body))
    (tmp_path / "second.py").write_text("\n\n# why\n".join(body).replace("value", "other"))
    (tmp_path / "third.py").write_text("\n".join(body[:9]))
    (tmp_path / "table.py").write_text("\n".join("value = 1" for _ in range(30)))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "sources", lambda: sorted(tmp_path.glob("*.py")))
    assert script.alike() == ["first.py:1 = second.py:1"]
