"""The project beside its peers: tail, calibration, editing files, checks and whole processes, in one table.

    python benchmarks/peers.py                       # everything, in less than an hour
    python benchmarks/peers.py --parts tail --cases '1x256|2048'  # some of it
    python benchmarks/peers.py --readme              # only renew the README's table from results/peers.json

It runs in the environment that benchmarks/peers.txt describes. What is not installed has a row that says so. Each part
runs in a process of its own with one thread; all that is compared is run in turn in one run. Results go to
results/peers.json and results/peers.md and into the README's table, part by part; parts that are not run keep theirs.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import environment
from peer_rows import COLUMNS, OURS, Row, ratio_text, table

PARTS = ("tail", "models", "calibration", "files", "checks", "commands")
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
MARKS = ("<!-- peers -->", "<!-- /peers -->")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
PACKAGES = tuple(
    line.split("==")[0].split("[")[0]
    for line in (Path(__file__).parent / "peers.txt").read_text("utf-8").splitlines()
    if "==" in line
)


def run_part(part: str, cases: str) -> list[dict[str, Any]]:
    """Return the rows of a part, which runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--parts", part, "--rows", str(found), "--cases", cases]
        subprocess.run(command, env=os.environ | ONE_THREAD, check=True)
        rows: list[dict[str, Any]] = json.loads(found.read_text("utf-8"))
        return rows


def measure(part: str, target: Path, cases: str) -> None:
    """Run a part in this process, tell each row as it comes, and write all of them."""
    rows, pattern = [], re.compile(cases)

    def wanted(case: str) -> bool:
        return pattern.search(case) is not None

    for row in importlib.import_module(f"peer_{part}").rows(wanted):
        print(" | ".join(cell for cell in row.cells() if cell), flush=True)
        rows.append(asdict(row))
        target.write_text(json.dumps(rows), "utf-8")


def markdown(document: dict[str, Any]) -> str:
    """Return the whole table, with what it depends on."""
    runs = "\n".join(f"- {part}: {_told(found['environment'])}" for part, found in document.items())
    rows = [Row(**row).cells() for found in document.values() for row in found["rows"]]
    return f"""# Beside the peers

Written by `python benchmarks/peers.py`. All of a case ran in turn in one run. "by ours" is the median over the rounds
of a time by ours in the same round: more than 1 is slower than this project. The spread is the interquartile range by
the median. The times of "tail", "models" and "calibration" are the processor's; all others go by the clock.

The parts ran here:

{runs}

{table(COLUMNS, rows)}
"""


def _told(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version or '(not installed)'}" for name, version in machine["packages"].items())
    commit = f"commit {machine['commit'][:12]}"
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {commit}; {packages}"


# What the README shows: what is done, the part and the case of it.
SHOWN = {
    "tail of 4x2048² in ONNX Runtime": ("tail", "4x2048² behind nothing, ONNX Runtime"),
    "the same behind a convolution": ("tail", "4x2048² behind Conv 3x3, ONNX Runtime"),
    "the same in OpenVINO": ("tail", "4x2048² behind Conv 3x3, OpenVINO"),
    "calibrating 10^7 pixels": ("calibration", "1e7 pixels"),
    "attaching to 1 GiB": ("files", "attach, 1 GiB inline"),
    "updating it": ("files", "update, 1 GiB inline"),
    "attaching to an IR of 1 GiB": ("files", "attach, 1 GiB IR"),
}


def readme_table(document: dict[str, Any]) -> str:
    """Return the README's table: each job that was measured, and how many times as long as this project others take."""
    rows = [Row(**row) for found in document.values() for row in found["rows"]]
    lines = []
    for job, case in SHOWN.items():
        others = [row for row in rows if (row.part, row.case) == case and row.ratio is not None]
        others = sorted((row for row in others if not row.who.startswith(OURS)), key=lambda row: row.ratio)
        lines.append([job, ", ".join(f"{row.who} {ratio_text(row.ratio)}" for row in others)])
    checks = [row for row in rows if (row.part, row.case) == ("checks", "all faults")]
    lines.append(["twelve planted faults", "; ".join(f"{row.who}: {row.result}" for row in checks)])
    return table(("job", "time of others by ours"), [line for line in lines if line[1]])


def renew_readme(document: dict[str, Any]) -> None:
    """Put the table between its marks in the README."""
    before, _, rest = README.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(f"{before}{MARKS[0]}\n{readme_table(document)}\n{MARKS[1]}{after}", "utf-8")


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", default="", help="a regular expression: only cases that it is found in")
    parser.add_argument("--readme", action="store_true", help="renew the README's table and measure nothing")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows is not None:
        measure(options.parts[0], options.rows, options.cases)
        return
    for part in options.parts if not options.readme else ():
        renew({part: {"environment": environment(*PACKAGES), "rows": run_part(part, options.cases)}})
    renew({})


def renew(found: dict[str, Any]) -> None:
    """Put the rows of parts into the results, and make the page and the README's table of them."""
    path = RESULTS / "peers.json"
    document = json.loads(path.read_text("utf-8")) if path.exists() else {}
    document = {part: rows for part in PARTS if (rows := found.get(part, document.get(part))) is not None}
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(markdown(document), "utf-8")
    renew_readme(document)


if __name__ == "__main__":
    main()
