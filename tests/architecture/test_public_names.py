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
    """The lazily imported names are public, and documented where they live."""
    assert set(postproc_export._HOMES) | {"__version__"} == set(postproc_export.__all__)
    for name, home in postproc_export._HOMES.items():
        value = getattr(importlib.import_module(home), name)
        assert value is getattr(postproc_export, name)
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
