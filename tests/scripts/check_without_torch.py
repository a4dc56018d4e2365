"""Run the command line several times where torch cannot be imported; print what each call came to, as JSON."""

import contextlib
import io
import json
import sys

sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to make an import fail

from postproc_export.cli import main  # noqa: E402  # only now

for line in sys.stdin:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(json.loads(line))
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "torch")
    print(json.dumps({"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue(), "torch": loaded}))
