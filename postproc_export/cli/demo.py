"""`postproc-export demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write: a new or empty one, or an earlier demo's.")
    ] = Path("postproc-export-demo"),
) -> None:
    """Calibrate, attach and check a small detector on real photos, with no download, in about half a minute.

    Example: postproc-export demo --output postproc-export-demo
    """
    from rich.markup import escape

    from postproc_export.cli.console import stderr, stdout
    from postproc_export.demo.run import FILES, run_demo

    console = stdout(markup=True)
    stderr().print("running the demo: about half a minute on two free cores; nothing is downloaded")
    result = run_demo(output, tell=lambda step, outcome: console.print(f"[bold]{step:<10}[/]{escape(outcome)}"))
    for report in result.reports:
        if not report:
            console.print(report.describe(), markup=False)
    console.print(f"\n[bold]files in {escape(str(result.folder))}[/]")
    for name, what in FILES.items():
        console.print(f"  {name:<17}{what}")
    console.print("\n[bold]the same with a model of your own[/] (as they stand, these repeat the demo)")
    for command in result.commands:
        console.print(f"  {escape(command)}")
    raise typer.Exit(0 if result.passed else 1)
