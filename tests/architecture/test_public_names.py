"""Public names: what is promised is there, and what is there is promised."""

import importlib

import pytest

import graph_patterns
import postproc_export


@pytest.mark.parametrize("package", [graph_patterns, postproc_export], ids=lambda package: package.__name__)
def test_every_promised_name_can_be_imported(package: object) -> None:
    """`__all__` lists only names that exist, in order."""
    names = package.__all__  # type: ignore[attr-defined]
    assert sorted(names) == sorted(set(names))
    assert [name for name in names if getattr(package, name, None) is None] == []


def test_every_lazy_name_is_promised() -> None:
    """The lazily imported names are public, the same objects as in their modules, and documented there."""
    for name in set(postproc_export.__all__) - {"__version__"}:
        value = getattr(postproc_export, name)
        assert value is getattr(importlib.import_module(value.__module__), value.__name__)
        assert (value.__doc__ or "").strip(), f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any other module."""
    with pytest.raises(AttributeError, match="has no attribute 'attach_postprocesing'"):
        _ = postproc_export.attach_postprocesing


def test_the_version_is_the_one_of_the_project() -> None:
    """pyproject.toml and the package agree."""
    import tomllib
    from pathlib import Path

    document = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["version"] == postproc_export.__version__
