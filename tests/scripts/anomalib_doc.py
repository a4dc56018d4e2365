"""The Python of docs/anomalib.md as it stands there, in the real Anomalib, and each command when it is reached.

Usage: PYTHONPATH=tests python anomalib_doc.py FOLDER

Backbones are random: nothing is downloaded.
"""

import logging
import os
import re
import shlex
import sys
import warnings
from pathlib import Path

import timm
from anomalib_cases import crops

from postproc_export.cli import main as command

PAGE = Path(__file__).parents[2] / "docs" / "anomalib.md"
BLOCK = re.compile(r"```(python|sh)\n(.*?)```", re.DOTALL)


def main(folder: Path) -> None:
    """Run every block in order, in one name space."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})
    os.chdir(folder)
    crops(folder / "parts")
    known: dict[str, object] = {}
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), known)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "postproc-export", line
            assert command(arguments) == 0, line


if __name__ == "__main__":
    main(Path(sys.argv[1]))
