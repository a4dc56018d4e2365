"""docs/installation.md: every block as a user types it, in a home of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from postproc_export.installation import BRINGS

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "installation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_block_runs(tmp_path: Path) -> None:
    """The doctor names every extra and every key of the page; the scripts are where the page says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    text, _, rest = run.stdout.partition("\n{\n")
    document = json.loads("{" + rest)
    assert all(brings in text for brings in BRINGS.values())
    assert {"postproc-export", *BRINGS} - {""} == document["extras"].keys()
    told = set(re.findall(r"`([a-z_]+)`", PAGE)) - {"doctor", "onnxruntime", "openvino", "fpath", "compinit"}
    inside = [document, *document["packages"].values(), *document["extras"].values()]
    assert told <= {key for each in inside for key in each} | {
        key for device in document["packages"]["openvino"].get("devices", ()) for key in device
    }
    scripts = [path for path in tmp_path.rglob("*") if path.is_file() and "postproc-export" in path.name]
    assert len(scripts) == 3
    assert all(script.stat().st_size > 1000 for script in scripts)
