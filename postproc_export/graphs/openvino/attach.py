"""Attach a tail to an OpenVINO model, in place: operators behind the results, nothing else touched."""

from collections.abc import Mapping
from typing import Any

from graph_patterns.openvino.lowering import emit
from postproc_export.graphs.attached import (
    Attached,
    final_order,
    name_is_taken,
    new_name,
    new_names,
    refuse_attached,
    replaced_outputs,
)
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.openvino.adjusting import add_adjustable
from postproc_export.graphs.openvino.find import find_in_openvino_model
from postproc_export.graphs.openvino.names import (
    described,
    name_operator,
    refuse_ambiguous,
    refuse_duplicates,
    rename_tensors,
    used_names,
    value_name,
)
from postproc_export.outputs import OutputChoice, select_outputs
from postproc_export.runtimes.openvino import port_info
from postproc_export.stats import CalibrationStats
from postproc_export.tail import PREFIX, Tail, build_tail, calibrated_levels
from postproc_export.tail_options import TailOptions
from postproc_export.tail_steps import TailOutput
from postproc_export.version import __version__


def attach_to_openvino_model(
    model: Any,
    stats: CalibrationStats,
    options: TailOptions,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Attached:
    """Append the tail to an `openvino.Model`.

    Raises
    ------
    UnsupportedModelError
        If a tail is there already, or the outputs cannot be post-processed.
    UsageError, MetadataError
        If the statistics and options do not fit the model or each other.
    """
    _refuse_attached(model)
    ports = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
    selection = select_outputs(
        ports,
        image_output=image_output,
        pixel_output=pixel_output,
        calibrated=calibrated_levels(stats, options),
    )
    tail = build_tail(stats, options, selection, nan_test="l1", default_mask_dtype="uint8")
    results = {port.name: result for port, result in zip(ports, model.get_results(), strict=True)}
    return _Rewriter(model, tail, results).attach()


class _Rewriter:
    def __init__(self, model: Any, tail: Tail, results: Mapping[str, Any]) -> None:
        self._model = model
        self._tail = tail
        self._results = results
        self._tensor_names, self._friendly_names = used_names(model)

    def attach(self) -> Attached:
        refuse_ambiguous(self._model, (result.input_value(0).get_node() for result in self._results.values()))
        document: dict[str, Any] = {"results": [described(result) for result in self._results.values()]}
        renamed = self._renamings()
        rename_tensors(self._model, renamed)
        if renamed:
            document["renamed"] = renamed
        raw = {level: value_name(self._results[port.name].input_value(0)) for level, port in self._tail.raw.items()}
        self._replace_results()
        refuse_duplicates(self._model, new_names(self._tail))
        record = TailRecord(
            version=__version__,
            stats=self._tail.stats,
            options=self._tail.resolved_options,
            raw=raw,
            original=document,
            narrow=self._tail.narrow,
            found=self._tail.selection.found,
        )
        self._model.set_rt_info(record.dumps(), METADATA_KEY)
        return Attached(self._tail, record, renamed)

    def _renamings(self) -> dict[str, str]:
        replaced = replaced_outputs(self._tail)
        others = {name for port, result in self._results.items() if port not in replaced for name in _names(result)}
        inputs = {name for port in self._model.inputs for name in port.get_names()}
        renamed: dict[str, str] = {}
        for name in new_names(self._tail):
            if name in others:
                raise name_is_taken(name, by="another output")
            if name in inputs:
                raise name_is_taken(name, by="an input")
            if name in self._tensor_names:
                renamed[name] = new_name(name, self._tensor_names)
        return renamed

    def _replace_results(self) -> None:
        added = self._added_results()
        final = [
            added[item.name] if isinstance(item, TailOutput) else self._results[item]
            for item in final_order(self._tail, self._results)
        ]
        # A model without a result drops its operators, so none is taken out before the new ones are in.
        self._model.add_results(list(added.values()))
        for result in final:
            self._model.remove_result(result)
            self._model.add_results([result])
        for name in replaced_outputs(self._tail):
            if not self._tail.options.keep_raw:
                self._model.remove_result(self._results[name])

    def _added_results(self) -> dict[str, Any]:
        import openvino.opset13 as opset

        raw = {name: self._results[port.name].input_value(0) for name, port in self._tail.inputs.items()}
        used = self._friendly_names
        as_parameters = self._tail.options.as_parameters
        given = add_adjustable(self._model, self._tail.adjustable, as_parameters=as_parameters, used=used)
        emitted = emit(
            {output.name: output.expr for output in self._tail.outputs},
            inputs={**raw, **given},
            prefix=PREFIX,
            taken=frozenset(used),
        )
        added = {name: opset.result(output) for name, output in emitted.items()}
        for name, result in added.items():
            name_operator(result, f"{PREFIX}{name}/result", used)
        return added


def tail_constants(model: Any) -> dict[str, bytes]:
    """Return the bytes of every constant of the tail, by friendly name."""
    return {
        node.get_friendly_name(): node.get_data().tobytes()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(PREFIX)
    }


def _names(result: Any) -> set[str]:
    return set(result.input_value(0).get_names())


def _refuse_attached(model: Any) -> None:
    has_record = model.has_rt_info(METADATA_KEY) or model.has_rt_info(["framework", METADATA_KEY])
    found = find_in_openvino_model(model, where="the model")
    refuse_attached(found, entry=f"the rt_info entry '{METADATA_KEY}'" if has_record else None)
