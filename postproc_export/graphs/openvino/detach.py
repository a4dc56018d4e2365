"""Take a tail off an OpenVINO model, in place, and give the original's results and names back."""

from collections.abc import Mapping
from typing import Any, Final

from graph_patterns.openvino.lowering import copied
from graph_patterns.openvino.removal import remove
from graph_patterns.openvino.view import OpenVinoView
from postproc_export.graphs.detached import (
    Detached,
    FoundTail,
    adjusted_values,
    is_exported,
    notes_of,
    raw_name,
    refuse_damaged,
    refuse_no_outputs,
    refuse_partial,
    restored_tails,
    touched,
    with_what_is_left,
)
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.original import decoded_outputs, recorded_names
from postproc_export.graphs.openvino.adjusting import remove_adjustable
from postproc_export.graphs.openvino.find import (
    add_names,
    find_in_openvino_model,
    raw_values,
    recorded_results,
    result_names,
    take_names,
    tensors_of,
)
from postproc_export.graphs.openvino.names import new_result, rename_tensors, used_names
from postproc_export.graphs.reading.own_tail import SCORE_OUTPUT, OwnTail
from postproc_export.stats import Level

CONVERTED: Final = (
    "the model was converted to OpenVINO after attaching: the names and the order of its outputs are those of the "
    "original, the rest is what the conversion made of it"
)


def detach_from_openvino_model(model: Any, *, where: str = "the model") -> Detached:
    """Remove the tail from an `openvino.Model`.

    Returns
    -------
    Detached
        Falsy, with reasons, where there is no tail; the model is as it was then.

    Raises
    ------
    SharedValueError
        If an operator outside the tail reads one of its values.
    MetadataError, UnsupportedModelError
        If the record is not legal, or the tail is not the one that it describes.
    """
    found = find_in_openvino_model(model, where=where)
    refuse_damaged(found, where=where)
    refuse_partial(found)
    if not found.tails:
        return Detached(misses=found.misses)
    rewriter = _Rewriter(model, found.tails, where)
    if found.record is None:
        detached = rewriter.rebuild(found.misfits)
    else:
        detached = (rewriter.restore_converted if found.is_converted else rewriter.restore)(found.record)
    return with_what_is_left(detached, OpenVinoView(model))


class _Rewriter:
    def __init__(self, model: Any, tails: Mapping[Level, FoundTail], where: str) -> None:
        self._model = model
        self._tails = tails
        self._where = where
        names = {name for tail in tails.values() for name in tail.outputs}
        self._gone = [result for result in model.get_results() if not names.isdisjoint(result_names(result))]

    def restore(self, record: TailRecord) -> Detached:
        """Give back the results and names that the record keeps."""
        raw = raw_values(self._model, record, is_converted=False)
        described = recorded_results(record.original, where=self._where)
        kept = {_key(result): result for result in self._remaining()}
        operators = (node for node in self._model.get_ops() if node.get_type_name() != "Result")
        nodes = {node.get_friendly_name(): node for node in operators}
        final, made, notes = [], [], touched(self._tails)
        for name, source, port in described:
            result = kept.pop((name, source, port), None)
            if result is None and f"{source}:{port}" in record.raw.values():
                result = new_result(nodes[source].output(port), name)
                made.append(result)
            if result is None:
                notes.append(f"the output '{name}' of the original is not in the model any more")
            else:
                final.append(result)
        notes += [f"the output '{name}', which the original did not have, stays" for name, *_ in kept]
        self._replace(made, [*final, *kept.values()])
        wanted = recorded_names(record.original, where=self._where)
        back = self._rename(wanted)
        notes += [f"'{old}' is not called '{new}' again" for old, new in wanted.items() if old not in back]
        return Detached(
            tails=self._tails,
            renamed=back,
            notes=tuple(notes),
            is_original=not notes,
            raw_outputs=self._indices(raw),
        )

    def restore_converted(self, record: TailRecord) -> Detached:
        """Give back the names and the order of an ONNX model's outputs in what OpenVINO made of it."""
        back = recorded_names(record.original, where=self._where)
        moved = {old: new for new, old in back.items()}
        wanted = [item.name for item in decoded_outputs(record.original, where=self._where)]
        tensors = tensors_of(self._model)
        results = {name: item for item in self._remaining() for name in result_names(item)}
        final, made, notes = [], [], [CONVERTED]
        for name in wanted:
            current = moved.get(name, name)
            if current in results:
                final.append(results[current])
            elif current in tensors and current in record.raw.values():
                made.append(new_result(tensors[current], f"{name}/result"))
                final.append(made[-1])
            else:
                notes.append(f"the output '{name}' of the original is not in the model any more")
        raw = raw_values(self._model, record, is_converted=True)
        self._replace(made, final)
        renamed = self._rename(back)
        return Detached(tails=self._tails, renamed=renamed, notes=tuple(notes), raw_outputs=self._indices(raw))

    def rebuild(self, misfits: tuple[str, ...]) -> Detached:
        """Name and order the raw outputs from the tail's own, where no record that fits says how they were."""
        made: dict[Level, Any] = {}
        wanted: dict[Level, set[str]] = {}
        renamed: dict[str, str] = {}
        present = [result.input_value(0) for result in self._remaining()]
        for tail in restored_tails(self._tails):
            raw: Any = tail.raw
            score = SCORE_OUTPUT[tail.level]
            names = {} if is_exported(tail) else {old: raw_name(tail, old) for old in raw.get_names()}
            renamed |= {old: new for old, new in names.items() if old != new}
            if isinstance(tail, OwnTail) and raw in present:
                continue
            made[tail.level] = new_result(_own_output(raw, score), f"{score}/sink_port_0")
            if is_exported(tail):
                wanted[tail.level] = {score}
        final: list[Any] = []
        remaining = {result.get_name() for result in self._remaining()}
        for result in self._model.get_results():
            if result.get_name() in remaining:
                final.append(result)
            else:
                names_here = result_names(result)
                final += [item for level, item in made.items() if self._tails[level].outputs[0] in names_here]
        self._replace(list(made.values()), final)
        for level, names_to_add in wanted.items():
            take_names(self._model, names_to_add)  # a conversion names tensors after variables
            add_names(made[level], names_to_add)
        renamed = self._rename(renamed)
        sources = {
            level: made[level].input_value(0) if level in made else tail.raw
            for level, tail in self._tails.items()
            if not tail.from_map
        }
        notes = (*(f"the record was left aside: {misfit}" for misfit in misfits), *notes_of(self._tails))
        return Detached(tails=self._tails, renamed=renamed, notes=notes, raw_outputs=self._indices(sources))

    def _remaining(self) -> list[Any]:
        """Return the results that are not given up; 2025 makes an operator of `==` between two of them."""
        gone = {result.get_name() for result in self._gone}
        return [result for result in self._model.get_results() if result.get_name() not in gone]

    def _indices(self, raw: Mapping[Level, Any]) -> dict[Level, str | int]:
        """Return the index of the result of each raw value."""
        results = self._model.get_results()
        return {
            level: index
            for level, value in raw.items()
            for index, result in enumerate(results)
            if result.input_value(0) == value
        }

    def _replace(self, made: list[Any], final: list[Any]) -> None:
        refuse_no_outputs(final, where=self._where)
        remove(
            self._model,
            [value for tail in self._tails.values() for value in tail.values],
            results=self._gone,
            instead=made,
        )
        for result in final:  # the order of results is the order in which they were added
            self._model.remove_result(result)
            self._model.add_results([result])
        remove_adjustable(self._model, adjusted_values(self._tails))
        drop_record(self._model)

    def _rename(self, back: Mapping[str, str]) -> dict[str, str]:
        tensors, _ = used_names(self._model)
        back = {new: old for new, old in back.items() if new in tensors and old not in tensors}
        rename_tensors(self._model, back)
        return back


def drop_record(model: Any) -> None:
    """Remove the record, wherever it stands in the rt_info."""
    info = model.get_rt_info()
    if model.has_rt_info([METADATA_KEY]):
        del info[METADATA_KEY]
    if model.has_rt_info(["framework", METADATA_KEY]):
        others = [key for key in info["framework"] if key != METADATA_KEY]
        kept = {key: str(model.get_rt_info(["framework", key]).value) for key in others}
        del info["framework"]
        for key, value in kept.items():
            model.set_rt_info(value, ["framework", key])


def _own_output(raw: Any, name: str) -> Any:
    """Return an output for a result: an input of the model gets an operator between, as its name is not an output's."""
    if raw.get_node().get_type_name() != "Parameter":
        return raw
    copy = copied(raw, axes=f"{name}/same")
    copy.set_friendly_name(name)
    return copy.output(0)


def _key(result: Any) -> tuple[str, str, int]:
    source = result.input_value(0)
    return result.get_friendly_name(), source.get_node().get_friendly_name(), source.get_index()
