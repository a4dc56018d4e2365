"""What every model format does alike: plan, put, record, read and take off a layer, find and detach a tail."""

from __future__ import annotations

import base64
import binascii
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

from graph_patterns.expr import Expr, free_name
from graph_patterns.match import GraphView, Mismatch, Site, Value
from postproc_export import __version__
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.files import check_suffix
from postproc_export.float32 import Half
from postproc_export.model_info import MODEL_INFO, WRITTEN, model_info, refuse_other_outputs, refuse_settings
from postproc_export.options import FileOptions, LabelDtype, TailOptions, refuse_unused
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.ports import Axis, OutputChoice, PortInfo, Selection, select_outputs
from postproc_export.reading.found import (
    FoundLayer,
    FoundTails,
    Tails,
    find_tails,
    level_misfits,
    nothing_found,
    refuse_attached,
    refuse_damaged,
    refuse_partial,
    touched,
)
from postproc_export.record import (
    METADATA_KEY,
    AttachResult,
    LayerRecord,
    TailRecord,
    TailSpec,
    Where,
    load_record,
    refuse_misfit,
)
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import RAW_INPUTS, Tail, calibrated_levels

if TYPE_CHECKING:
    import onnx

    from postproc_export.runtimes import RuntimeName


_MOVED: Final[Mapping[Where, str]] = {"transform": "_before_transform", "tail": "_raw", "decision": "_before_decision"}
"""What is added to the name of a value that has to give its own up to an output of the layer."""


class LayerOutput(NamedTuple):
    """One output of a layer."""

    name: str
    expr: Expr | None  # None where a graph that was exported computes it
    dtype: LabelDtype | Half
    shape: tuple[Axis, ...] | None
    replaces: str | None  # the output of the model whose place it takes; None where it comes last
    like: str | None = None  # the output of the model from which it takes its declared axes, if that has any


class Plan(NamedTuple):
    """Everything that a layer adds to a model: custom steps, the tail, or decisions behind it."""

    where: Where
    outputs: tuple[LayerOutput, ...]
    inputs: Mapping[str, PortInfo]  # the model's output or input for each `Input` that the expressions read
    tails: tuple[TailSpec, ...] = ()  # the custom steps that it is made of, as they are recorded
    tail: Tail | None = None
    final: tuple[LayerOutput | str, ...] = ()  # all outputs of the model; none: each in the place of what it replaces

    @property
    def adjustable(self) -> dict[str, float]:
        """The inputs by which it is adjusted at run time, each with its default."""
        return {} if self.tail is None else self.tail.defaults

    @property
    def names(self) -> list[str]:
        """The names that it brings along: of its outputs, and of the inputs that adjust it."""
        return [*(output.name for output in self.outputs), *self.adjustable]

    @property
    def replaced(self) -> set[str]:
        """The outputs of the model that its own outputs take the place of."""
        if self.tail is None:
            return {output.replaces for output in self.outputs if output.replaces is not None}
        return set(_replaced_by(self.tail))

    @property
    def exprs(self) -> dict[str, Expr]:
        """What it computes, by output."""
        return {output.name: output.expr for output in self.outputs if output.expr is not None}

    def order(self, outputs: Iterable[str]) -> list[LayerOutput | str]:
        """Return all final outputs: its own, and the model's under the names that they had."""
        if self.final:
            return list(self.final)
        places = {output.replaces: output for output in self.outputs if output.replaces is not None}
        return [*(places.get(name, name) for name in outputs), *(o for o in self.outputs if o.replaces is None)]

    def renamings(self, values: Collection[str], used: set[str], taken: Mapping[str, str]) -> dict[str, str]:
        """Return new names for the values that bear a name of the layer, and add them to `used`, all names there are.

        `taken` has names that cannot be freed, each with what bears it: then UnsupportedModelError is raised.
        """
        for name in self.names:
            if name in taken:
                raise name_is_taken(name, by=taken[name])
        return {name: free_name(f"{name}{_MOVED[self.where]}", used) for name in self.names if name in values}

    def record(self, *, read: Mapping[str, str], made: Mapping[str, str], original: Mapping[str, Any]) -> LayerRecord:
        """Return the record of the layer: what it reads and made, and what taking it off restores."""
        if self.tail is None:
            return LayerRecord(
                where=self.where, version=__version__, tails=self.tails, read=read, made=made, original=original
            )
        return TailRecord(
            version=__version__,
            stats=self.tail.stats,
            options=self.tail.resolved_options,
            raw={level: read[RAW_INPUTS[level]] for level in self.tail.raw},
            original=original,
            narrow=self.tail.narrow,
            found=self.tail.selection.found,
        )


def plan_tail(tail: Tail, outputs: Iterable[str]) -> Plan:
    """Return the plan of a tail for a model with some outputs.

    Each level's outputs come first, the raw one in its level's place where that is not calibrated; then every other
    output of the model; then the raw ones that were replaced, where they are kept.
    """
    replaced = _replaced_by(tail)
    made: list[LayerOutput] = []
    final: list[LayerOutput | str] = []
    for level in LEVELS:
        for output in tail.outputs:
            if output.level == level:  # a packed one counts as the map's
                like = (tail.raw.get(level) or tail.raw["pixel"]).name
                made.append(LayerOutput(output.name, output.expr, output.dtype, output.shape, None, like))
                final.append(made[-1])
        if level in tail.raw and tail.raw[level].name not in replaced:
            final.append(tail.raw[level].name)
    final += [name for name in outputs if name not in final and name not in replaced]
    final += replaced if tail.options.keep_raw else []
    return Plan(where="tail", outputs=tuple(made), inputs=tail.inputs, tail=tail, final=tuple(final))


def _replaced_by(tail: Tail) -> list[str]:
    return [port.name for level, port in tail.raw.items() if tail.names(level)]


_RENAME: Final = {
    "another output": "say with --image-output or --pixel-output that this output is the raw one, or rename it",
    "an input": "rename the input: its name is part of the model's interface",
    "an overridable initializer": "rename the initializer: its name is part of the model's interface",
    "a variable": "rename the variable: its name is part of the model's interface",
}


def name_is_taken(name: str, *, by: str) -> UnsupportedModelError:
    """Return the error for a name of ours that cannot be freed."""
    return UnsupportedModelError(f"the name '{name}' is taken", found=f"{by} of that name", fix=_RENAME[by])


def encoded_port(item: onnx.ValueInfoProto) -> str:
    """Return a port as the record keeps it: base64 of its bytes."""
    return base64.b64encode(item.SerializeToString(deterministic=True)).decode("ascii")


def decoded_outputs(original: Mapping[str, Any], *, where: str) -> list[onnx.ValueInfoProto]:
    """Return the outputs of the original that a record of an ONNX model keeps.

    Raises MetadataError unless there is at least one, each with a name of its own.
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


def _texts(items: object) -> list[str]:
    if not isinstance(items, list):
        raise TypeError(f"{type(items).__name__}, not a list")
    return items


def recorded_names(original: Mapping[str, Any], *, where: str) -> dict[str, str]:
    """Return the renamings that a record keeps, the way back: {name in the file: name in the original}.

    Raises MetadataError unless each is one that attaching makes: of a name to that name with a suffix, and no two to
    the same one.
    """
    renamed = original.get("renamed", {})
    legal = isinstance(renamed, dict) and all(isinstance(new, str) for new in renamed.values())
    if not legal or not all(new.startswith((f"{old}_raw", f"{old}_before_")) for old, new in renamed.items()):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    back = {new: old for old, new in renamed.items()}
    if len(back) < len(renamed) or "" in renamed or not back.keys().isdisjoint(renamed):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    return back


def illegal(what: str, found: str, *, where: str) -> MetadataError:
    """Return the error for a record that keeps of the original what nobody could have written there."""
    return MetadataError(
        f"{where}: the record '{METADATA_KEY}' has no legal {what}",
        found=found[:200],
        needed="what attaching wrote of the original",
        fix="attach to the original again",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DetachResult(Outcome):
    """What was removed, and where the model without it was written; falsy where nothing was there to remove.

    Parameters
    ----------
    source
        The model that was read; for an IR the .xml.
    output
        The model that was written; None where there was nothing to remove, and so nothing was written.
    tails
        What was removed, by level.
    own
        The custom steps that went with it.
    misses
        Why nothing was found, by level.
    renamed
        Names that values got back: {name in the source: name in the output}.
    notes
        What could not be restored, and what a user should know.
    is_original
        Whether the model that was attached to came back as it was, by the file's own record.
    raw_outputs
        The raw output of each level: its name in an ONNX model, its index in an IR.
    record
        The record of what was removed.
    outputs
        The names of the outputs of a model without post-processing.
    """

    source: Path = Path()
    output: Path | None = None
    tails: Tails = field(default_factory=dict)
    own: tuple[str, ...] = ()
    misses: Mapping[Level, Mismatch] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_original: bool = False
    raw_outputs: Mapping[Level, str | int] = field(default_factory=dict)
    record: LayerRecord | None = None
    outputs: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tails) or self.record is not None

    def headline(self) -> str:
        """Return which model it is, or that it has no post-processing."""
        if not self:
            return nothing_found(self.source, self.misses, self.outputs).line
        return f"removed post-processing from {self.source}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was written, what was removed, and what a user should know."""
        if not self:
            return
        yield "written", str(self.output)
        for level, tail in self.tails.items():
            kind, count = "the tail" if tail.is_ours else "Anomalib's post-processing", len(set(tail.values))
            removed = f"{kind}, {count} operator{'s' if count > 1 else ''}"
            yield level, f"{' and '.join(tail.outputs)}: {removed}"
        yield from (("with", text) for text in self.own)
        yield from (("renamed", f"'{old}' is now '{new}'") for old, new in self.renamed.items())
        if self.is_original:
            yield "original", "its outputs, names and order are back as the file's record has them"
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``detach --json``: docs/json.md. The levels are what was removed."""
        from postproc_export.reading.report import report_level

        record = self.record if isinstance(self.record, TailRecord) else None
        removed = {
            level: report_level(level, self.tails[level], record=record, is_rounded=False).to_json()
            if level in self.tails
            else None
            for level in LEVELS
        }
        return outcome_json(
            self.source,
            self.output,
            removed,
            self.notes if self else [self.headline()],
            found=bool(self),
            original=self.is_original,
            steps=list(self.own),
            renamed=dict(self.renamed),
        )


Result = TypeVar("Result")
Edit: TypeAlias = Callable[[Any], Result]  # changes a model in place; large weights may be placeholders in it
PLAIN: Final = FileOptions()
Judge: TypeAlias = Callable[[Any, Mapping[Level, PortInfo]], tuple[str, ...]]
"""Tells of a model without a tail, and the outputs that were chosen for one, whether the statistics belong to it."""
Outputs = dict[str, OutputChoice]  # "image_output" and "pixel_output": which outputs are the raw ones


class Format(ABC):
    """A model format: all that is done to its models, in memory, where they are changed in place, and in files.

    `format_of` gives that of a file. `where` names the file in errors.
    """

    name: ClassVar[str]
    entry: ClassVar[str]  # what it calls the place of a record
    needs_raw: ClassVar[bool]  # whether a record is of no use without the raw values that it names
    runtimes: ClassVar[tuple[RuntimeName, ...]]  # what runs its files: its own runtime first, then what converts them
    mask_dtype: ClassVar[LabelDtype]  # of `pred_mask` where none is asked for
    separator: ClassVar[str]  # what stands between `model_info` and a key of it, where entries have one name

    # What a format has to say of a file and of a model.

    @abstractmethod
    def load(self, path: Path, *, purpose: str) -> Any:
        """Read a model; large weights are left out of it where the format allows that."""

    @abstractmethod
    def rewrite(
        self, source: Path, target: Path, edit: Edit[Result], options: FileOptions = PLAIN, *, is_checked: bool = True
    ) -> Result:
        """Edit the model of a file and write it to another, whole or not at all.

        Nothing is written where `edit` returns something falsy. `is_checked` refuses one less sound than the source.
        """

    @abstractmethod
    def edited(
        self, path: Path, folder: Path, edit: Edit[Result], *, purpose: str, is_checked: bool = True
    ) -> tuple[Result, Any]:
        """Edit a copy of a model and return it for running: a file in the folder, or a model in memory."""

    @abstractmethod
    def outputs(self, model: Any) -> list[PortInfo]:
        """Return the outputs of a model."""

    @abstractmethod
    def inputs(self, model: Any) -> list[PortInfo]:
        """Return the inputs of a model that have to be fed."""

    def uncomputed(self, model: Any) -> list[str]:
        """Return the outputs that nothing computes, in a format that lets a model have any."""
        return []

    @abstractmethod
    def digest(self, source: Any, *, inputs: Collection[str] = ()) -> str | None:
        """Return the content digest of a file or of a model in memory; None where weights are not at hand.

        What this package added is left aside, as are the values of `inputs` that adjust it at run time.
        """

    @abstractmethod
    def runnable(self, model: Any) -> Any:
        """Return a copy of a model in memory as `open_runner` takes it."""

    @abstractmethod
    def view(self, model: Any) -> GraphView:
        """Return the graph, for the matcher."""

    @abstractmethod
    def value_name(self, value: Any) -> str:
        """Return how a record names a value of the graph."""

    @abstractmethod
    def show(self, model: Any, values: Mapping[str, str]) -> None:
        """Give values, as `value_name` names them, as further float32 outputs, each under the name of its key."""

    @abstractmethod
    def edit(self, model: Any, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""

    @abstractmethod
    def put(self, model: Any, plan: Plan, *, make: Callable[..., Any] | None = None) -> LayerRecord:
        """Append a layer and record it; `make` returns what computes its outputs, None lowers its expressions."""

    @abstractmethod
    def recorded(self, model: Any, layer: Where, *, where: str) -> str | None:
        """Return the record of a layer as it stands in the model; None where it has none."""

    @abstractmethod
    def model_info(self, model: Any) -> dict[str, str]:
        """Return what stands in the model for OpenVINO Model API to read."""

    @abstractmethod
    def _set_model_info(self, model: Any, settings: Mapping[str, str]) -> None:
        """Write what Model API reads into a model that has nothing of it."""

    @abstractmethod
    def _drop_model_info(self, model: Any, keys: Collection[str]) -> None:
        """Remove what Model API reads, by these keys."""

    def model_info_entries(self) -> set[str]:
        """Return the names of the entries that attaching writes for Model API."""
        return {f"{MODEL_INFO}{self.separator}{key}" for key in WRITTEN}

    def was_converted(self, model: Any, layer: Where) -> bool:
        """Whether the record of a layer is that of an ONNX model, from which this one was converted."""
        return False

    @abstractmethod
    def build_tail(self, model: Any, stats: CalibrationStats, options: TailOptions, selection: Selection) -> Tail:
        """Return the tail for a model, in a form that the format can express."""

    # What `find` and `take` leave to a format.

    @abstractmethod
    def _given(self, model: Any) -> Iterable[tuple[str, str]]:
        """Return each name of an output, and the value that it is, as a record names it."""

    def _name_outputs(self, model: Any) -> Callable[[], None]:
        """Name the outputs of a model that leaves them without names; return what takes the names away again."""
        return lambda: None

    @abstractmethod
    def _values(self, model: Any, record: LayerRecord) -> Mapping[str, Value]:
        """Return the values that the model has, by the names that a record gives them."""

    @abstractmethod
    def _names(self, model: Any) -> Collection[str]:
        """Return the names that may be given back: all that stand for a value."""

    @abstractmethod
    def _between(self, model: Any, record: LayerRecord) -> list[Value]:
        """Return what the nodes of custom steps or decisions compute: those of its prefix, from made to read."""

    @abstractmethod
    def _original(self, model: Any, record: LayerRecord, *, where: str) -> Mapping[str, str]:
        """Return the outputs of the original: for each value of this model, as the record names it, its name there.

        Raises MetadataError if the record has no legal ones. The names that it keeps have to be legal.
        """

    @abstractmethod
    def _misfits(self, model: Any, record: TailRecord, tails: Tails, *, where: str) -> Iterator[str]:
        """Yield what a record says of the original that cannot be true of this model."""

    @abstractmethod
    def _take(self, model: Any, found: FoundLayer, *, where: str) -> DetachResult:
        """Remove a layer, and give back what its record keeps; what another tool changed stays so, and is told."""

    # What all formats do in the same way.

    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none. Raises MetadataError if it is not legal."""
        text = self.recorded(model, layer, where=where)
        if text is None:
            return None
        record = load_record(text, layer, where=where)
        if layer != "tail":  # a tail is found without its record, too: `find` tells what is wrong with that
            recorded_names(record.original, where=where)
            self._original(model, record, where=where)
        return record

    def record(self, model: Any, *, where: str) -> TailRecord | None:
        """Return the tail's record; None where there is none."""
        record = self.read(model, "tail", where=where)
        assert record is None or isinstance(record, TailRecord), "the tail has a record of its own"
        return record

    def refuse_attached(self, model: Any) -> None:
        """Raise UnsupportedModelError if a model is post-processed already."""
        has_record = self.recorded(model, "tail", where="the model") is not None
        found = self.find(model, where="the model")
        refuse_attached(found, entry=f"the {self.entry} '{METADATA_KEY}'" if has_record else None)

    def attach(
        self,
        model: Any,
        stats: CalibrationStats,
        options: TailOptions,
        outputs: Outputs | None = None,
        *,
        given: Collection[str] = (),
        judge: Judge = lambda *_: (),
    ) -> AttachResult:
        """Append the tail, if `judge` does not refuse the statistics.

        `given` are the names of the options that a user gave, each of which has to have an effect.

        Raises UnsupportedModelError if there is one already or the outputs cannot be post-processed, and UsageError or
        MetadataError if statistics and options do not fit the model or each other.
        """
        self.refuse_attached(model)
        ports = self.outputs(model)
        selection = select_outputs(ports, calibrated=calibrated_levels(stats, options), **(outputs or {}))
        tail = self.build_tail(model, stats, options, selection)
        given = [name for name in given if name != "mask_dtype" or options.mask_dtype != self.mask_dtype]
        refuse_unused(options, given, levels=[level for level in LEVELS if tail.names(level)])
        plan, settings = plan_tail(tail, [port.name for port in ports]), dict[str, str]()
        if options.model_info:
            refuse_settings(self.model_info(model))
            refuse_other_outputs([item if isinstance(item, str) else item.name for item in plan.final])
            settings, notes = model_info(stats, options, self.inputs(model))
            tail = tail._replace(notes=(*tail.notes, *notes))
        remarks = judge(model, tail.raw)
        record = self.put(model, plan)
        self._set_model_info(model, settings)
        assert isinstance(record, TailRecord), "the tail has a record of its own"
        return AttachResult(tail, record, remarks=remarks)

    def find(self, model: Any, *, where: str) -> FoundTails:
        """Find the tails of a model, ours or Anomalib's, with the help of its record where that fits."""
        record = self.record(model, where=where)
        unname = self._name_outputs(model) if record is None else lambda: None
        values = {} if record is None else self._values(model, record)
        raw = {} if record is None else {level: values[name] for level, name in record.raw.items() if name in values}
        fits = record is not None and raw.keys() == record.raw.keys()
        is_usable = fits or not self.needs_raw
        tails, misses = find_tails(
            self.view(model), raw=tuple(raw.values()) if fits else (), record=record if is_usable else None
        )
        if not tails:  # the file is as it was
            unname()
        found = FoundTails(
            tails=tails,
            misses=misses,
            values=tuple(value for tail in tails.values() for value in tail.values),
            outputs=frozenset(name for name, _ in self._given(model) if name),
        )
        if record is not None and not is_usable:
            lost = ", ".join(f"'{name}'" for level, name in record.raw.items() if level not in raw)
            return replace(found, misfits=(f"it names raw values that are not in the model: {lost}",))
        found = replace(found, record=record, is_converted=self.was_converted(model, "tail"))
        if record is None or not tails or record.levels & misses.keys():  # a level that is gone is told as such
            return found
        found = replace(found, misfits=tuple(self._tail_misfits(model, record, tails, where=where)))
        if found.misfits or found.is_converted or touched(tails):
            return found
        return replace(found, doubts=tuple(self._doubts(model, record, found.values, where=where)))

    def _found(self, model: Any, layer: Where, *, where: str) -> FoundLayer:
        """Find custom steps or decisions, which nothing but their record tells of."""
        record, is_converted = self.read(model, layer, where=where), self.was_converted(model, layer)
        if record is None or is_converted:
            return FoundLayer(where=layer, record=record, is_converted=is_converted)
        values, ours = self._values(model, record), tuple(self._between(model, record))
        made = {self.value_name(value) for value in ours}
        misfits = (
            *(f"the value '{name}' is not there" for name in record.read.values() if name not in values),
            *(f"the layer has not taken the name '{old}'" for old in record.renamed if old not in record.made),
            *(f"the output '{name}' is not the layer's" for name, value in record.made.items() if value not in made),
            *self._doubts(model, record, ours, where=where),
        )
        return FoundLayer(where=layer, record=record, values=ours, misfits=misfits)

    def _tail_misfits(self, model: Any, record: TailRecord, tails: Tails, *, where: str) -> Iterator[str]:
        yield from level_misfits(record, tails)
        try:
            back = recorded_names(record.original, where=where)
            original = self._original(model, record, where=where)
        except MetadataError as error:
            yield f"{error.what.removeprefix(f'{where}: ')} ({error.found})"
            return
        taken = {name for tail in tails.values() for name in tail.outputs} | record.inputs
        yield from (f"the tail has not taken the name '{old}'" for old in back.values() if old not in taken)
        for level, raw in record.raw.items():
            if raw not in original:
                yield f"the {level} level's raw value '{raw}' was no output of the original"
        yield from self._misfits(model, record, tails, where=where)

    def _doubts(self, model: Any, record: LayerRecord, values: Collection[Value], *, where: str) -> Iterator[str]:
        """Yield what a record tells of and the model without the values of the layer does not have."""
        names = self._names(model)
        yield from (f"the value '{name}' is not in the model" for name in record.back if name not in names)
        left = self._values(model, record).keys() - {self.value_name(value) for value in values}
        if record.where == "tail":  # it leaves outputs there or reads them; a step may replace what it does not read
            left &= {value for _, value in self._given(model)} | record.sources
        for value, name in self._original(model, record, where=where).items():
            if value not in left:
                yield f"the output '{name}' of the original is not in the model"

    def take(self, model: Any, layer: Where, *, where: str) -> DetachResult:
        """Remove a layer, and give outputs and names back; the model is as it was where there is none.

        Raises SharedValueError if something outside the layer reads one of its values, MetadataError or
        UnsupportedModelError if its record is not legal or is not that of this layer, and UnsupportedModelError if a
        model with custom steps was converted since.
        """
        found = self.find(model, where=where) if layer == "tail" else self._found(model, layer, where=where)
        if isinstance(found, FoundTails):
            refuse_damaged(found, where=where)
            refuse_partial(found)
            if not found.tails:
                return DetachResult(misses=found.misses, outputs=found.outputs)
        elif found.record is None:
            return DetachResult()
        elif found.is_converted:
            raise UnsupportedModelError(
                f"{where} was converted to OpenVINO with custom steps: they cannot be told from the rest",
                found=", ".join(spec.text for spec in found.record.tails),
                fix="take the ONNX file for this, and convert what comes out",
            )
        else:
            refuse_misfit(layer, found.misfits, where=where)
        detached = self._take(model, found, where=where)
        if isinstance(found.record, TailRecord) and found.record.options.model_info:
            self._drop_model_info(model, WRITTEN)
        left, _ = find_tails(self.view(model)) if layer == "tail" else ({}, {})
        if not left:
            return detached
        shown = " and ".join(name for tail in left.values() for name in tail.outputs)
        note = f"below it the model has post-processing of its own at {shown}: detach once more to take that off"
        return replace(detached, notes=(*detached.notes, note))


_CLASSES: Final = {
    ".onnx": ("postproc_export.formats.onnx", "OnnxFormat"),
    ".xml": ("postproc_export.formats.openvino", "OpenVinoFormat"),
}


def format_of(path: Path) -> Format:
    """Return the format of a model file, by its suffix; a UsageError if it is that of no format."""
    check_suffix(path)
    module, name = _CLASSES[path.suffix]
    made: Format = getattr(import_module(module), name)()
    return made
