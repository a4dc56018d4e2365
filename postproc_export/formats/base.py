"""What ONNX and OpenVINO have in common: the plan of a layer, and what attaching and detaching return."""

from __future__ import annotations

import base64
import binascii
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from graph_patterns.expr import Expr, free_name
from graph_patterns.match import GraphView, Mismatch, Site, Value
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.options import LabelDtype, TailOptions
from postproc_export.ports import RAW_NAMES, RESULT_NAMES, OutputChoice
from postproc_export.reading.anomalib import find_anomalib_tail
from postproc_export.reading.report import settle
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT, FoundTail, find_own_tail
from postproc_export.record import METADATA_KEY, LayerRecord, TailRecord, TailSpec, Where
from postproc_export.runtimes import Axis, PortInfo
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import OUTPUT_NAMES, Tail, TailOutput

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """One output of a layer.

    Parameters
    ----------
    name
        Its name in the graph.
    expr
        What it is; None where a graph that was exported computes it.
    dtype, shape
        Element type and declared shape.
    replaces
        The output of the model whose place it takes; None where it comes last.
    """

    name: str
    expr: Expr | None
    dtype: LabelDtype
    shape: tuple[Axis, ...] | None
    replaces: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a layer adds.

    Parameters
    ----------
    where
        Before the tail or behind it.
    tails
        What it is made of, their parameters as they are recorded.
    outputs
        What it gives.
    inputs
        The model's output or input for each `Input` that the expressions read.
    """

    where: Where
    tails: tuple[TailSpec, ...]
    outputs: tuple[LayerOutput, ...]
    inputs: Mapping[str, PortInfo]


# --- What the record in a model keeps of the original, as text: its outputs as ONNX ports, and names that had to
# move.

NEEDED_IMPORT: Final = "import_was_missing"  # the original's own nodes are of the default domain, without an import


def encoded_port(item: onnx.ValueInfoProto) -> str:
    """Return a port as the record keeps it: base64 of its bytes."""
    return base64.b64encode(item.SerializeToString(deterministic=True)).decode("ascii")


def read_record(model: onnx.ModelProto, *, where: str) -> TailRecord | None:
    """Return the record of a model; None where it has none.

    Raises
    ------
    MetadataError
        If it is not legal, or there are several.
    """
    texts = [item.value for item in model.metadata_props if item.key == METADATA_KEY]
    if len(texts) > 1:
        raise illegal("text", f"{len(texts)} entries of that name", where=where)
    return TailRecord.loads(texts[0], where=where) if texts else None


def decoded_outputs(original: Mapping[str, Any], *, where: str) -> list[onnx.ValueInfoProto]:
    """Return the outputs of the original that a record of an ONNX model keeps.

    Raises
    ------
    MetadataError
        Unless there is at least one, each with a name of its own.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from graph_patterns.onnx.file import check_text

    try:
        serialised = [base64.b64decode(text, validate=True) for text in _texts(original["outputs"])]
        outputs = [onnx.ValueInfoProto.FromString(item) for item in serialised]
        check_text(onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString())
    except (KeyError, TypeError, binascii.Error, ValueError, DecodeError) as error:
        raise illegal("outputs", str(error), where=where) from error
    names = [item.name for item in outputs]
    if not names or "" in names or len(set(names)) < len(names):
        raise illegal("outputs", f"{', '.join(map(repr, names)) or 'none'}", where=where)
    return outputs


def recorded_names(original: Mapping[str, Any], *, where: str) -> dict[str, str]:
    """Return the renamings that a record keeps, the way back: {name in the file: name in the original}.

    Raises
    ------
    MetadataError
        Unless each is one that attaching makes: of a name to that name with a suffix, and no two to the same one.
    """
    renamed = original.get("renamed", {})
    legal = isinstance(renamed, dict) and all(isinstance(new, str) for new in renamed.values())
    if not legal or not all(new.startswith((f"{old}_raw", f"{old}_before_")) for old, new in renamed.items()):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    back = {new: old for old, new in renamed.items()}
    if len(back) < len(renamed) or "" in renamed or not back.keys().isdisjoint(renamed):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    return back


def added_import(original: Mapping[str, Any], *, where: str) -> int | None:
    """Return the version of the default operator set whose import attaching added; None where it added none."""
    version = original.get("added_opset_import")
    if version is not None and type(version) is not int:
        raise illegal("added import", reprlib.repr(version), where=where)
    return version


def oldest_opset_of(ir_version: int) -> int:
    """Return the oldest opset that was released with an IR version: any reader of that version knows it."""
    import onnx

    from graph_patterns.onnx.emit import OLDEST_OPSET

    released: dict[int, int] = {}
    for _, ir, opset, *_ in onnx.helper.VERSION_TABLE:
        released.setdefault(ir, opset)
    return max(OLDEST_OPSET, released.get(ir_version, max(released.values())))


def uses_default_domain(model: onnx.ModelProto, *, apart: Collection[str] = ()) -> bool:
    """Whether a node is of the default domain: not those that compute some values, nor those of functions.

    Notes
    -----
    A function imports for itself.
    """
    from postproc_export.formats.onnx_file import subgraphs

    training = (graph for info in model.training_info for graph in (info.initialization, info.algorithm))
    nodes = (node for graph in (model.graph, *training) for scope in subgraphs(graph) for node in scope.node)
    return any(node.domain in ("", "ai.onnx") and not any(name in apart for name in node.output) for node in nodes)


def import_doubts(
    model: onnx.ModelProto, original: Mapping[str, Any], *, where: str, apart: Collection[str] = ()
) -> list[str]:
    """Return why the import that a record says was added cannot have been; the nodes of some values do not count."""
    version = added_import(original, where=where)
    if version is None:
        return []
    found = any((item.domain, item.version) == ("", version) for item in model.opset_import)
    if not found or version != oldest_opset_of(model.ir_version):
        return [f"attaching adds no import of operator set {version} to such a model"]
    if uses_default_domain(model, apart=apart) and not original.get(NEEDED_IMPORT):
        return [f"the import of operator set {version} stays: nodes of the model need it"]
    return []


def drop_added_import(model: onnx.ModelProto, original: Mapping[str, Any], *, where: str) -> list[str]:
    """Remove the import that attaching added, or say why it stays."""
    version, doubts = added_import(original, where=where), import_doubts(model, original, where=where)
    if version is not None and not doubts:
        index = [(item.domain, item.version) for item in model.opset_import].index(("", version))
        del model.opset_import[index]
    return doubts


def illegal(what: str, found: str, *, where: str) -> MetadataError:
    """Return the error for a record that keeps of the original what nobody could have written there."""
    return MetadataError(
        f"{where}: the record '{METADATA_KEY}' has no legal {what}",
        found=found[:200],
        needed="what attaching wrote of the original",
        fix="attach to the original again",
    )


def _texts(items: object) -> list[str]:
    if not isinstance(items, list):
        raise TypeError(f"{type(items).__name__}, not a list")
    return items


# --- What detaching has in common in ONNX and OpenVINO: the levels to remove, the names to give back, the result.

TOUCHED: Final = "another tool has been over the file since it was attached: what else it changed stays"
MAYBE_SHIFTED: Final = (
    "the conversion may have folded the model's last multiplication or addition into the tail, and it goes with it: "
    "the raw value may differ from the model's own by a constant factor and a constant; it ranks the same and can be "
    "calibrated"
)

OUTSIDE: Final = (
    "export the model again with its raw outputs alone; where pred_label and pred_mask are no post-processing but the "
    "model's own, export them under other names"
)
UNDO: Final = "undo what was changed at the end of the graph, or attach to the original again"

STRIPPED: Final = (
    "the record of the original is gone: the order and the declared shapes of the outputs are taken from the tail's"
)


@dataclass(frozen=True, slots=True)
class FoundTails:
    """The tails of a model, why other levels have none, and the record where there is one.

    Parameters
    ----------
    tails, misses
        By level.
    record
        The record of the model.
    is_converted
        Whether that is the record of an ONNX model, from which this one was converted.
    misfits
        What the record says that does not fit the model: it is not to be acted on then.
    doubts
        What another tool may have taken away that the record tells of; without one the record lies.
    outputs
        The names of all outputs.
    """

    tails: Mapping[Level, FoundTail]
    misses: Mapping[Level, Mismatch]
    record: TailRecord | None
    is_converted: bool = False
    misfits: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    outputs: frozenset[str] = frozenset()

    @property
    def unexplained(self) -> dict[str, str]:
        """Labels that no tail explains, and why: another rule's, which would stay where the rest is taken off."""
        if self.record is not None:
            return {}
        explained = {name for tail in self.tails.values() for name in tail.outputs}
        levels = {LABEL_OUTPUT[level]: level for level in LEVELS}
        return {
            name: str(self.misses.get(levels[name]) or self.tails[levels[name]].other_rule)
            for name in RESULT_NAMES
            if name in self.outputs - explained
        }

    @property
    def is_whole(self) -> bool:
        """Whether all post-processing that the file shows or tells of is known, and can be taken off or changed."""
        damaged = self.record is not None and (self.misfits or self.record.levels & self.misses.keys())
        return bool(self.tails) and not self.unexplained and not damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """What was taken out of a model in memory; falsy where nothing was found.

    Parameters
    ----------
    tails
        What was removed, by level.
    misses
        Why nothing was found, by level.
    renamed
        Names that values got back: {name in the file: name in the original}.
    notes
        What could not be restored, and what a user should know.
    is_original
        Whether a record gave the original back as it was.
    raw_outputs
        The output with each level's raw value, by name in ONNX, by index in OpenVINO.
    own
        The custom steps that went with it.
    """

    tails: Mapping[Level, FoundTail] = field(default_factory=dict)
    misses: Mapping[Level, Mismatch] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_original: bool = False
    raw_outputs: Mapping[Level, str | int] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    outputs: frozenset[str] = frozenset()  # of a model without post-processing, by name

    def __bool__(self) -> bool:
        return bool(self.tails)


def find_tails(
    view: GraphView, *, raw: Collection[Value] = (), record: TailRecord | None = None
) -> tuple[dict[Level, FoundTail], dict[Level, Mismatch]]:
    """Find the tails of all levels, or say per level why there is none.

    Parameters
    ----------
    view
        The graph.
    raw
        The raw values that a record names, where the graph has them all.
    record
        What the file says of a tail of ours: then Anomalib's is not looked for.
    """
    tails: dict[Level, FoundTail] = {}
    misses: dict[Level, Mismatch] = {}
    options = None if record is None else record.options
    for level in LEVELS:
        own = find_own_tail(view, level, raw=raw, options=options)
        found = find_anomalib_tail(view, level) if isinstance(own, Mismatch) and record is None else own
        if not isinstance(found, Mismatch):
            tails[level] = found
        else:
            misses[level] = nearest_miss((found, own) if isinstance(own, Mismatch) else (found,))
    _drop_doubtful(tails, misses)
    tails |= settle(tails)
    return tails, misses


def refuse_partial(found: FoundTails) -> None:
    """Refuse a model with post-processing of which a part alone is known.

    Raises
    ------
    UnsupportedModelError
        If it is, naming what would stay.
    """
    if not found.tails or not found.unexplained:
        return
    known = sorted({name for tail in found.tails.values() for name in tail.outputs})
    raise UnsupportedModelError(
        "the post-processing is not known as a whole, and is left as it is",
        found="; ".join(f"'{name}' is by another rule: {why}" for name, why in found.unexplained.items())
        + f"; known: {', '.join(known)}",
        needed="labels by Anomalib's rule or ours, so that nothing of it stays behind",
        fix=OUTSIDE,
    )


def refuse_damaged(found: FoundTails, *, where: str) -> None:
    """Refuse a model whose record names a level that has no such tail, or does not fit it.

    Raises
    ------
    UnsupportedModelError, MetadataError
        If it does.
    """
    record, misses = found.record, found.misses
    for level in () if record is None else sorted(record.levels & misses.keys()):
        raise UnsupportedModelError(
            f"the {level} level's tail is not as it was attached",
            found=str(misses[level]),
            needed="the tail that the model's record describes",
            fix=UNDO,
        )
    if record is not None and found.misfits:
        raise MetadataError(
            f"{where}: the record '{METADATA_KEY}' does not fit the model",
            found="; ".join(found.misfits),
            needed="a record of this very model",
            fix="attach to the original again",
        )


def refuse_no_outputs(outputs: Collection[object], *, where: str) -> None:
    """Refuse to make a model without outputs, whatever the cause.

    Raises
    ------
    UnsupportedModelError
        If there are none.
    """
    if not outputs:
        raise UnsupportedModelError(
            f"{where}: without its post-processing the model would have no outputs",
            found="none of the outputs that the original had",
            needed="at least one",
            fix="attach to the original again",
        )


def level_misfits(record: TailRecord, tails: Mapping[Level, FoundTail]) -> Iterator[str]:
    """Yield where a record and the tails of a model do not agree on what is decided from which value."""
    for level, tail in tails.items():
        if level not in record.levels:
            yield f"it has no statistics and raw value for the {level} level, which the model decides"
        elif level == "image" and tail.from_map == ("image" in record.raw):
            source = "the map" if tail.from_map else "a score"
            yield f"the image score comes from {source} in the model, and not so in the record"
        elif tail.is_ours:
            yield from (f"{what} of the {level} level are not as the record has them" for what in _unlike(record, tail))


def _unlike(record: TailRecord, tail: FoundTail) -> Iterator[str]:
    """Yield the parts of a tail that its record's options do not ask for."""
    options = record.options
    if tail.is_normalised != options.enable_normalization:
        yield "the scores"
    dtype = options.label_dtype if tail.level == "image" else options.mask_dtype
    is_other = not tail.is_packed and dtype is not None and tail.label_dtype != dtype
    if tail.decides != options.enable_thresholding or (tail.decides and is_other):
        yield "the labels"
    if tail.adjustable not in ("nothing", options.adjustable):
        yield "the inputs"


def renaming_misfits(record: TailRecord, tails: Mapping[Level, FoundTail], back: Mapping[str, str]) -> Iterator[str]:
    """Yield the names that a record gives back, though the tail has not taken them."""
    taken = {name for tail in tails.values() for name in tail.outputs} | record.inputs
    yield from (f"the tail has not taken the name '{old}'" for old in back.values() if old not in taken)


def raw_misfits(record: TailRecord, back: Mapping[str, str], outputs: Collection[str]) -> Iterator[str]:
    """Yield the raw values of a record that were no output of the original."""
    for level, raw in record.raw.items():
        if back.get(raw, raw) not in outputs:
            yield f"the {level} level's raw value '{raw}' was no output of the original"


def recorded_raw(record: TailRecord, tail: FoundTail) -> str | None:
    """Return the raw value that a record names for a tail: of the map where the score is its maximum."""
    return record.raw.get("pixel" if tail.from_map else tail.level)


def _drop_doubtful(tails: dict[Level, FoundTail], misses: dict[Level, Mismatch]) -> None:
    """Leave a clipped, scaled score without a label alone, unless the map ends in the same way: models do that too."""
    if len(tails) == len(LEVELS):
        return
    for level, tail in list(tails.items()):
        if not tail.is_ours and tail.reading.is_folded and len(tail.outputs) == 1:
            reason = "a clipped and scaled value without a label may be the model's own"
            misses[level] = Mismatch(reason, tail.outputs[0], depth=len(tail.values))
            del tails[level]


def nearest_miss(misses: Iterable[Mismatch]) -> Mismatch:
    """Return the miss that went deepest."""
    return max(misses, key=lambda miss: miss.depth)


def nothing_found(source: Path, misses: Mapping[Level, Mismatch], outputs: Collection[str]) -> str:
    """Say that a model has no post-processing: that it is a raw one, or how far the nearest pattern came."""
    if misses.keys() and all(miss.reason.startswith("no output ") for miss in misses.values()):
        found = f"found: raw outputs {', '.join(sorted(outputs))}"
        return f"{source.name} has no post-processing; {found}; fix: postproc-export attach {source} --stats FILE"
    return f"no post-processing found: {nearest_miss(misses.values())}"


def with_what_is_left(detached: Detached, view: GraphView) -> Detached:
    """Return the result with a note where the model below has post-processing of its own, as its original had."""
    left, _ = find_tails(view)
    shown = " and ".join(name for tail in left.values() for name in tail.outputs)
    note = (f"below it the model has post-processing of its own at {shown}: detach once more to take that off",)
    return replace(detached, notes=(*detached.notes, *note)) if left else detached


def is_exported(tail: FoundTail) -> bool:
    """Whether a tail was exported with the model, and never attached to a file."""
    return tail.kind != "attached"


def raw_name(tail: FoundTail, name: str) -> str:
    """Return the name for a raw value that becomes an output, where no record tells the original's.

    Notes
    -----
    What was exported with a model, Anomalib's post-processing and our eager module, gives the names that raw models
    have. Ours, attached, moved a value only out of the way of its own outputs, to ``<name>_raw``; every other value
    still has its name.
    """
    if is_exported(tail):
        return RAW_NAMES[tail.level]
    stem = next((stem for stem in OUTPUT_NAMES if name == f"{stem}_raw" or name.startswith(f"{stem}_raw_")), None)
    return RAW_NAMES[tail.level] if stem == RAW_NAMES[tail.level] else name


def restored_tails(tails: Mapping[Level, FoundTail]) -> Iterator[FoundTail]:
    """Yield the tails whose raw value has to become an output again."""
    for level, tail in tails.items():
        gives_raw = tail.is_ours or SCORE_OUTPUT[level] in tail.outputs
        if gives_raw and not tail.from_map:
            yield tail


def adjusted_values(tails: Mapping[Level, FoundTail]) -> list[Value]:
    """Return the inputs by which tails are adjusted at run time: they go with them."""
    own = [tail for tail in tails.values() if tail.is_ours]
    return [tail.adjusted for tail in own if tail.adjusted is not None]


def touched(tails: Mapping[Level, FoundTail]) -> list[str]:
    """Return a note where the tail is not as attaching left it."""
    return [TOUCHED] if any(tail.is_ours and not tail.is_as_emitted for tail in tails.values()) else []


def notes_of(tails: Mapping[Level, FoundTail]) -> tuple[str, ...]:
    """Return what a user should know of a model whose tail was removed without a record."""
    notes = [] if all(is_exported(tail) for tail in tails.values()) else [STRIPPED]
    folded = [tail for tail in tails.values() if not tail.is_ours and tail.reading.is_folded]
    notes += [f"{SCORE_OUTPUT[tail.level]}: {MAYBE_SHIFTED}" for tail in folded]
    return tuple(notes)


# --- What attaching has in common in ONNX and OpenVINO: the order of the outputs, names that are taken, the result.


@dataclass(frozen=True, slots=True)
class Attached:
    """What was done to a model in memory: the tail, the record in it, and the new names of values that had to move."""

    tail: Tail
    record: TailRecord
    renamed: Mapping[str, str]


def new_names(tail: Tail) -> list[str]:
    """Return the names that the tail brings along: of its outputs, and of the inputs that adjust it."""
    return [*(output.name for output in tail.outputs), *(item.name for item in tail.adjustable)]


def replaced_outputs(tail: Tail) -> list[str]:
    """Return the raw outputs that the tail's outputs take the place of."""
    return [port.name for level, port in tail.raw.items() if tail.names(level)]


def final_order(tail: Tail, outputs: Iterable[str]) -> list[TailOutput | str]:
    """Return the final outputs: ours, and the model's own ones under the names that they had.

    Notes
    -----
    Each level's outputs come first, the raw one in its level's place where that is not calibrated; then every other
    output of the model; then the raw ones that were replaced, where they are kept.
    """
    replaced = replaced_outputs(tail)
    order: list[TailOutput | str] = []
    for level in LEVELS:
        order += [output for output in tail.outputs if output.level == level]  # a packed one counts as the map's
        if level in tail.raw and tail.raw[level].name not in replaced:
            order.append(tail.raw[level].name)
    order += [name for name in outputs if name not in order and name not in replaced]
    return order + (replaced if tail.options.keep_raw else [])


def moved_name(name: str, where: Where, used: set[str]) -> str:
    """Return an unused name for a value that a layer takes the name of, and add it to `used`."""
    return free_name(f"{name}_before_{where}", used)


def new_name(name: str, used: set[str]) -> str:
    """Return a name for a value that has to give its own up, unused in every scope, and add it to `used`."""
    return free_name(f"{name}_raw", used)


def refuse_attached(found: FoundTails, *, entry: str | None) -> None:
    """Refuse a model that has post-processing: a tail of ours, labels or masks, or a record.

    Parameters
    ----------
    found
        What the model has.
    entry
        Where the record stands; None where the model has none.

    Raises
    ------
    UnsupportedModelError
        If it has, with a fix that works on this very file.
    """
    labels = [name for name in RESULT_NAMES if name in found.outputs]
    own = [name for tail in found.tails.values() if tail.is_ours for name in tail.outputs]
    if entry is None and not labels and not own:
        return
    shown = f"outputs {', '.join(labels)}" if labels else f"a tail at {' and '.join(own)}" if own else entry
    known = "change it with `postproc-export update`, or remove it first with `postproc-export detach`"
    without = f"attach to the original again, or remove {entry}: it describes no tail that is there"
    raise UnsupportedModelError(
        "the model has post-processing already",
        found=shown if found.is_whole else f"{shown}; `update` and `detach` do not know it as a whole",
        needed="a model with raw outputs",
        fix=known if found.is_whole else OUTSIDE if labels else UNDO if found.record is not None else without,
    )


def name_is_taken(name: str, *, by: str) -> UnsupportedModelError:
    """Return the error for a name of ours that cannot be freed."""
    fixes = {
        "another output": "say with --image-output or --pixel-output that this output is the raw one, or rename it",
        "an input": "rename the input: its name is part of the model's interface",
        "an overridable initializer": "rename the initializer: its name is part of the model's interface",
        "a variable": "rename the variable: its name is part of the model's interface",
    }
    return UnsupportedModelError(f"the name '{name}' is taken", found=f"{by} of that name", fix=fixes[by])


# --- A format: everything that is done to models and files, but for how they are checked.

Result = TypeVar("Result")
Outputs = dict[str, OutputChoice]  # "image_output" and "pixel_output": which outputs are the raw ones


class Format(ABC):
    """A model format; its models in memory are changed in place. `formats.format_of` gives that of a file."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, path: Path, *, purpose: str) -> Any:
        """Read a model; large weights are left out of it where the format allows that."""

    @abstractmethod
    def rewrite(
        self,
        source: Path,
        target: Path,
        edit: Callable[[Any], Result],
        *,
        in_place: bool = False,
        link_weights: bool = False,
        is_checked: bool = True,
    ) -> Result:
        """Edit the model of a file and write it to another, whole or not at all; not where `edit`'s result is falsy.

        Parameters
        ----------
        source, target
            The files; other files of a model stand beside each.
        edit
            Changes the model in place; large weights may be placeholders in it.
        in_place
            Allow the target to be the source.
        link_weights
            Hard-link external data instead of copying it, in a format that has any.
        is_checked
            Refuse a model that is less sound than the source; False for a file that nobody else gets to see.
        """

    @abstractmethod
    def edited(
        self, path: Path, folder: Path, edit: Callable[[Any], Result], *, purpose: str, is_checked: bool = True
    ) -> tuple[Result, Any]:
        """Edit a copy of a model that is to be run: a file in the folder, or a model in memory, is what can be run."""

    @abstractmethod
    def outputs(self, model: Any) -> list[PortInfo]:
        """Return the outputs of a model."""

    @abstractmethod
    def inputs(self, model: Any) -> list[PortInfo]:
        """Return the inputs of a model that have to be fed."""

    @abstractmethod
    def view(self, model: Any) -> GraphView:
        """Return the graph, for the matcher."""

    @abstractmethod
    def value_name(self, value: Any) -> str:
        """Return how a record names a value of the graph."""

    @abstractmethod
    def record(self, model: Any, *, where: str) -> tuple[TailRecord | None, bool]:
        """Return the tail's record, and whether it is that of an ONNX model from which this one was converted."""

    @abstractmethod
    def put(self, model: Any, plan: Plan, *, make: Callable[..., Any] | None = None) -> LayerRecord:
        """Append a layer; `make` returns what computes its outputs, None lowers the expressions of the plan."""

    @abstractmethod
    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""

    @abstractmethod
    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""

    @abstractmethod
    def was_converted(self, model: Any, layer: Where) -> bool:
        """Whether the record of a layer is that of an ONNX model, from which this one was converted."""

    @abstractmethod
    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""

    @abstractmethod
    def find(self, model: Any, *, where: str) -> FoundTails:
        """Find the tail, ours or Anomalib's, with the help of its record where there is one."""

    @abstractmethod
    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""

    @abstractmethod
    def edit(self, model: Any, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""
