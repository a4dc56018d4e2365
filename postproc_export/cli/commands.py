"""The commands, as one application; what their modules import is loaded for the command that runs."""

from importlib.util import find_spec
from inspect import cleandoc
from textwrap import wrap
from types import CodeType
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from postproc_export import __version__
from postproc_export.cli.console import write
from postproc_export.cli.options import OPTIONS

_HOMES: Final = {
    "demo": "export",
    "calibrate": "calibrate",
    "attach": "attach",
    "export": "export",
    "check": "check",
    "vectors": "check",
    "judge": "check",
    "predict": "predict",
    "inspect": "attach",
    "stats": "calibrate",
    "report": "report",
    "update": "attach",
    "detach": "attach",
    "doctor": "attach",
}
"""The module of this folder that each command stands in, in the order of the help."""

_NARROWEST, _WIDEST = 20, 120  # columns of the text


class Help:
    """How the help is printed: each name in full, however narrow the terminal, and its text below."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print a panel, such as that of the options."""
        if not panel.entries:
            return
        lines = [f"{panel.title}:"]
        for entry in panel.entries:
            labels = entry.display_labels_with_metavar if panel.format == "parameter" else entry.display_labels
            lines.append(f"  {', '.join(labels)}")
            text = "".join(segment.text for segment in console.render(entry.description or ""))
            notes = [f"[choices: {', '.join(entry.choices)}]"] if entry.choices else []
            notes += [f"[default: {entry.default}]"] if entry.default is not None else []
            notes += ["[required]"] if entry.required else []
            width = max(_NARROWEST, min(console.width, _WIDEST) - 6)
            lines += [
                f"      {line}" for line in wrap(" ".join([*text.split(), *notes]), width, break_on_hyphens=False)
            ]
        console.print("\n".join(lines), "", sep="\n", markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the usage."""
        console.print(f"Usage: {str(usage).strip()}", "", sep="\n", markup=False, emoji=False, highlight=False)


app: Final = App(
    name="postproc-export",
    help="Calibrate, attach and check the post-processing of exported anomaly-detection models.",
    version=f"postproc-export {__version__}",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    help_format="plaintext",
    help_formatter=Help(),
    group_parameters=OPTIONS,
    default_parameter=Parameter(negative=(), consume_multiple=False, allow_repeating=True, show_default=False),
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell that shall read the script.")], /
) -> int:
    """Print a script that completes commands and options in a shell; docs/installation.md says where to put it.

    Example: postproc-export --completion bash
    """
    write(app.generate_completion(shell=shell))
    return 0


app.command(completion, name="--completion")


def _add_commands() -> None:
    """Add every command with its docstring, read from the compiled module: running that takes long to import."""
    for place, (name, home) in enumerate(_HOMES.items()):
        module = f"{__package__}.{home}"
        spec: Any = find_spec(module)
        functions = [each for each in spec.loader.get_code(module).co_consts if isinstance(each, CodeType)]
        (text,) = (each.co_consts[0] for each in functions if each.co_name == name)
        app.command(f"{module}:{name}", name=name, help=cleandoc(text), sort_key=place)


_add_commands()
