"""What the check has to know of an attached file, whatever its format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from graph_patterns.graph import GraphView, Value
from postproc_export.errors import UnsupportedModelError
from postproc_export.graphs.detached import OUTSIDE, Found, FoundTail, is_exported
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.graphs.state import state_of
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level
from postproc_export.transforms.record import LayerRecord, Where

Format: TypeAlias = Literal["onnx", "openvino"]
FOLDED: Final = "another tool has been over it since it was attached: the form of the tail is a folded one"

Shapes: TypeAlias = Mapping[Level, tuple[int | None, ...]]


class ModelFile(Protocol):
    """What one format has to know of its own files."""

    @property
    def format(self) -> Format:
        """The format."""

    @property
    def record(self) -> TailRecord:
        """The record that attaching left."""

    @property
    def tails(self) -> Mapping[Level, OwnTail]:
        """The tails that were found in the graph, in whatever form."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What became of the file since it was attached, and what was assumed of it; a sentence each."""

    @property
    def raw(self) -> Mapping[Level, PortInfo]:
        """The raw outputs as the original declared them, under the names that their values bear in this file."""

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that this file declares, in order."""

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs that this file declares, in order."""

    @property
    def misfits(self) -> tuple[str, ...]:
        """What the record says that does not fit the file."""

    @property
    def view(self) -> GraphView:
        """The graph, for the matcher."""

    @property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """How a tail in this format, at this opset, finds out that a map holds a NaN."""

    @property
    def original_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each output of the original, in order; a tensor of an IR may have several or none."""

    def original_output(self, level: Level) -> PortInfo:
        """Return a raw output under the names that it had in the original."""

    def is_raw(self, level: Level, value: Value) -> bool:
        """Whether a value of the graph is the raw value of a level."""

    def is_rounded(self, value: Value) -> bool:
        """Whether a node of the graph reads a constant that was compressed to fewer bits."""

    def value_name(self, value: Value) -> str:
        """Return the name by which `cut` knows a value of the graph."""

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> Any:
        """Return a model that computes outputs from some values alone: bytes of ONNX, or an `openvino.Model`.

        Parameters
        ----------
        names
            Outputs of the tail, or values inside it as `value_name` gives them, which are float32 then.
        inputs
            Name, element type and shape of each value that becomes an input; one that is not read is left out.

        Raises
        ------
        UnsupportedModelError
            If an output depends on more than these values.
        """

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Any:
        """Return this model with some values as additional float32 outputs; files go into `folder`.

        Parameters
        ----------
        folder
            An empty folder.
        taps
            Name of the output for each value, and what is known of the value.
        """

    def host(self, folder: Path) -> Any:
        """Return this model cut off in front of its tail: the raw values alone, in the order of `raw`, as outputs."""

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it; None where nothing does."""

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return what a layer reads, by its own names, each under the name that `cut` and `tapped` know."""

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        """Return what a layer makes, by output, each under the name that `cut` and the record of the tail know."""

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names of the outputs of the model before its first layer; None where it has no transform."""


def no_record(path: Path, found: Found) -> UnsupportedModelError:
    """Return the error for a file that attaching did not write, or that lost its record."""
    tails = found.tails.values()
    exported = [name for tail in tails if is_exported(tail) for name in tail.outputs]
    shown = f"no entry '{METADATA_KEY}' in its metadata, and no tail that is known"
    fix = "attach to the raw model with `postproc-export attach`, or use a copy whose metadata was not stripped"
    if exported:
        states = state_of(found.tails, None).stats
        stats = "" if all(states.level(level) is not None for level in found.tails) else " --stats FILE"
        shown = f"post-processing that was exported with the model, at {', '.join(exported)}"
        fix = f"let our tail take its place with `postproc-export update{stats}`, and check what that writes"
        fix = fix if found.is_whole else OUTSIDE
    elif tails:
        shown = f"no entry '{METADATA_KEY}' in its metadata"
        fix = "give the statistics that it was attached with (--stats), or use a copy whose metadata was not stripped"
    return UnsupportedModelError(
        f"{path} cannot be checked: it has no record of a tail",
        found=shown,
        needed="a file written by `postproc-export attach` or `postproc-export update`",
        fix=fix,
    )


def own_tails(tails: Mapping[Level, FoundTail]) -> dict[Level, OwnTail]:
    """Return the tails that are ours."""
    return {level: tail for level, tail in tails.items() if isinstance(tail, OwnTail)}


def read_values(tails: Mapping[Level, OwnTail]) -> dict[Level, Value]:
    """Return the raw value of each level that tails read, the guard's map among them."""
    values: dict[Level, list[Value]] = {"image": [], "pixel": []}
    for level, tail in tails.items():
        values["pixel" if tail.from_map else level].append(tail.raw)
    values["pixel"] += [tail.guard_maps for tail in tails.values() if tail.guard_maps is not None]
    return {level: found[0] for level, found in values.items() if found}


def folded(tails: Mapping[Level, OwnTail]) -> list[str]:
    """Return a sentence where the tail is not in the form that attaching gives it."""
    return [] if all(tail.is_as_emitted for tail in tails.values()) else [FOLDED]
