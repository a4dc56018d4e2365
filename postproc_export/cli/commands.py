"""The commands, as one application; what their modules import is loaded for the command that runs."""

from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from postproc_export import __version__
from postproc_export.cli.console import write
from postproc_export.cli.options import OPTIONS
from postproc_export.cli.overview import ABOUT, HELP_FLAGS, HOMES, NAME, laid_out


class Help:
    """How the help is printed, as `overview.laid_out` says."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print a panel, such as that of the options."""
        if not panel.entries:
            return
        entries = []
        for entry in panel.entries:
            labels = entry.display_labels_with_metavar if panel.format == "parameter" else entry.display_labels
            text = "".join(segment.text for segment in console.render(entry.description or ""))
            notes = [f"[choices: {', '.join(entry.choices)}]"] if entry.choices else []
            notes += [f"[default: {entry.default}]"] if entry.default is not None else []
            notes += ["[required]"] if entry.required else []
            entries.append((", ".join(labels), " ".join([*text.split(), *notes])))
        text = laid_out(panel.title, entries, console.width)
        console.print(text, "", sep="\n", markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the usage."""
        console.print(f"Usage: {str(usage).strip()}", "", sep="\n", markup=False, emoji=False, highlight=False)


app: Final = App(
    name=NAME,
    help=ABOUT,
    version=f"{NAME} {__version__}",
    version_flags=["--version"],
    help_flags=HELP_FLAGS,
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


for _place, (_name, _home) in enumerate(HOMES.items()):  # what the module imports is loaded for a command that runs
    app.command(f"{__package__}.{_home}:{_name}", name=_name, sort_key=_place)
