"""The project beside its peers: tail, calibration, editing files, checks and whole processes, in one table.

    python benchmarks/peers.py                       # everything, in less than an hour
    python benchmarks/peers.py --quick --parts tail  # does it run?
    python benchmarks/peers.py --readme              # only renew the README's table from results/peers.json

It runs in the environment that benchmarks/peers.txt describes. What is not installed has a row that says so. Each part
runs in a process of its own with one thread; all that is compared is run in turn in one run. Results go to
results/peers.json and results/peers.md; parts that are not run again keep their rows.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import environment
from peer_rows import COLUMNS, Row, table

PARTS = ("tail", "calibration", "commands")
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
PACKAGES = tuple(
    line.split("==")[0].split("[")[0]
    for line in (Path(__file__).parent / "peers.txt").read_text("utf-8").splitlines()
    if "==" in line
)


def run_part(part: str, *, quick: bool) -> list[dict[str, Any]]:
    """Return the rows of a part, which runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--parts", part, "--rows", str(found), *(["--quick"] if quick else [])]
        subprocess.run(command, env=os.environ | ONE_THREAD, check=True)
        rows: list[dict[str, Any]] = json.loads(found.read_text("utf-8"))
        return rows


def measure(part: str, target: Path, *, quick: bool) -> None:
    """Run a part in this process, tell each row as it comes, and write all of them."""
    rows = []
    for row in importlib.import_module(f"peer_{part}").rows(quick=quick):
        print(" | ".join(cell for cell in row.cells() if cell), flush=True)
        rows.append(asdict(row))
    target.write_text(json.dumps(rows), "utf-8")


def markdown(document: dict[str, Any]) -> str:
    """Return the whole table, with what it depends on."""
    told = document["environment"]
    packages = ", ".join(f"{name} {version or '(not installed)'}" for name, version in told["packages"].items())
    rows = [Row(**row).cells() for part in document["parts"].values() for row in part]
    return f"""# Beside the peers

Written by `python benchmarks/peers.py` on {told["cores"]} cores of {told["cpu"]}, Python {told["python"]}, commit
{told["commit"]}: {packages}.

All of a case ran in turn in one run. "by ours" is the median over the rounds of a time by ours in the same round: more
than 1 is slower than this project. The spread is the interquartile range by the median.

{table(COLUMNS, rows)}
"""


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="small cases only, printed and not written to results")
    parser.add_argument("--readme", action="store_true", help="renew the README's table and measure nothing")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows is not None:
        measure(options.parts[0], options.rows, quick=options.quick)
        return
    path = RESULTS / "peers.json"
    document = json.loads(path.read_text("utf-8")) if path.exists() else {"parts": {}}
    if not options.readme:
        document["environment"] = environment(*PACKAGES)
        for part in options.parts:
            document["parts"][part] = run_part(part, quick=options.quick)
    if options.quick:
        return
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(markdown(document), "utf-8")


if __name__ == "__main__":
    main()
