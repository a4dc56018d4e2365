"""Run commands in one process under an audit hook: which of them import, open or run something that is watched for.

The arguments: a folder, which becomes the working directory and comes first on `sys.path`, and a JSON file in it with
``{"watched": [module, ...], "commands": [[argument, ...], ...]}``. Writes ``seen.json``: per command exit code, what
it printed, and the events.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

RUNS = ("os.system", "subprocess.Popen", "os.posix_spawn", "os.exec")


def main(folder: Path) -> None:
    """Run the commands."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    asked = json.loads(Path("commands.json").read_text(encoding="utf-8"))
    watched, events, seen = tuple(asked["watched"]), list[str](), list[dict[str, Any]]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        found = ""
        if event == "import":
            found = str(arguments[0]).partition(".")[0]
        elif event == "open" and isinstance(arguments[0], str | bytes):
            found = Path(os.fsdecode(arguments[0])).name.partition(".")[0]
        elif event == "exec":
            found = Path(getattr(arguments[0], "co_filename", "")).stem
        elif event in RUNS and arguments[0] != "uname":  # the standard library's `platform` asks it
            events.append(f"{event} {arguments[0]}")
        if found in watched:
            events.append(f"{event} {found}")

    from postproc_export.cli import main

    class Finder:
        """Hears of `importlib.import_module` too, of which the audit event of the import statement does not tell."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            """Find nothing."""
            hook("import", (name,))

    sys.addaudithook(hook)
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    for command in asked["commands"]:
        events.clear()
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(command)
        seen.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "events": list(events)})
    Path("seen.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
