"""What all tests share: hypothesis profiles and the demo's files."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=10)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one demo run."""
    from postproc_export.demo.run import run_demo

    folder = tmp_path_factory.mktemp("demo") / "postproc-export-demo"
    assert run_demo(folder).passed
    return folder
