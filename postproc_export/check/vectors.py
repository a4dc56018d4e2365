"""Writing a kit: the tail of a file alone, and what it and the whole file have to make of values and images."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, Decider, RawFeeds, Shapes, axes_of, fits, tail_cases
from postproc_export.check.attached_files import load_attached, without_decisions
from postproc_export.check.chain import BatchRuns, ModelName
from postproc_export.check.inputs import SPECIAL, RealBatch, image_inputs
from postproc_export.check.judge import ALLOWANCE, Judgement
from postproc_export.check.kit import (
    MANIFEST,
    RAW,
    RAW_NAMES,
    SUITES,
    Arrays,
    Kit,
    Suite,
    outputs_as_file,
    tail_json,
    write_npz,
    write_set,
)
from postproc_export.check.reference import EagerDecisions, EagerTransform, RawFile, Reference, unnamed_code
from postproc_export.check.synthetic import SyntheticPlan
from postproc_export.check.tail import compare_tail, settings_of
from postproc_export.check.ways import Configuration
from postproc_export.check.whole import compare_raw, one_line
from postproc_export.comparison import TOLERANCES
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError, install, require
from postproc_export.files import check_model, model_files, publishing_into, refuse_foreign, refuse_inputs
from postproc_export.float32 import json_number
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.process import digest, temporary_folder
from postproc_export.run_options import VectorsOptions
from postproc_export.runtimes import Runner, as_float32, installed_runtimes
from postproc_export.stats import Level
from postproc_export.validation import called_like

NAMES: Final = (MANIFEST, *SUITES)
"""What is in the folder, the manifest first: it says that all is there."""

BUDGET: Final = 8_000_000
"""Bytes of arrays besides images and the values one by one, whose number is asked for; what is more is left out."""

OF_DECLARED: Final = 5_000_000  # of these for the tail with the declared shapes

_Batch: TypeAlias = tuple[str, Literal["synthetic", "inputs"], RealBatch]
"""What the whole file is fed in one run: in words, where it is from, and the arrays."""

SYNTHETIC: Final = "synthetic inputs"
DECLARED: Final = "declared shapes"
MOST_SETS: Final = 32  # of declared shapes; a batch of 1 would take one for each value
_ADJUSTED: Final = 500  # raw values per level and sensitivity


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VectorsResult(Outcome):
    """What was written.

    Parameters
    ----------
    source
        The attached file.
    output
        The folder that was written.
    digest
        What tells the kit from every other.
    sets
        How many sets there are in each suite.
    size
        Bytes of all files.
    notes
        What was left out, a sentence each.
    """

    source: Path
    output: Path
    digest: str
    sets: Mapping[str, int]
    size: int
    notes: tuple[str, ...]

    def headline(self) -> str:
        """Return what it was made of, and where."""
        return f"wrote a kit of {self.source} to {self.output}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield each suite with its sets, the size and the digest, and what was left out."""
        for name, count in self.sets.items():
            yield name, f"{count} test-data {'set' if count == 1 else 'sets'}"
        yield "size", f"{self.size / 1e6:.1f} MB"
        yield "digest", self.digest
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``vectors --json``: docs/json.md."""
        more = {"sets": dict(self.sets), "size": self.size, "digest": self.digest}
        return outcome_json(self.source, self.output, {}, self.notes, **more)


@called_like(VectorsOptions)
def write_vectors(**given: Any) -> VectorsResult:
    """Write a kit by which a machine that cannot be reached shows how an attached file decides there.

    Returns
    -------
    VectorsResult
        What was written, and what was left out.

    Raises
    ------
    UsageError, FileError, MetadataError, UnsupportedModelError
        If the file, the raw file or the images cannot be used, or the folder cannot be written.
    MissingDependencyError
        If images are given and no runtime for the file is installed, or the file is an IR and OpenVINO is not.
    """
    asked = VectorsOptions(**given)
    attached, folder = Path(asked.attached), Path(asked.output)
    check_model(attached)
    if asked.raw is not None:
        check_model(Path(asked.raw), noun="raw model")
    if asked.images is None and (asked.preprocessing is not None or asked.other_preprocessing):
        raise UsageError("a pre-processing without images", fix="leave it out, or give --images")
    refuse_foreign(folder, NAMES, start='{\n "kit_version"', noun="kit", command="vectors")
    read = [*model_files(attached), *(Path(each) for each in (asked.raw, asked.images) if each is not None)]
    refuse_inputs([folder / MANIFEST], read, fix="choose another folder")
    whole = load_attached(attached)
    with without_decisions(whole) as (model, entire), publishing_into(folder, NAMES) as staging:
        writer = _Writer(asked, model, entire, staging)
        writer.write_tails()
        writer.write_whole()
        kit = writer.finish()
        size = sum(each.stat().st_size for each in staging.rglob("*") if each.is_file())
    sets = {name: len(suite["sets"]) for name, suite in kit.document["suites"].items()}
    notes = tuple(writer.notes)
    return VectorsResult(source=attached, output=folder, digest=kit.digest, sets=sets, size=size, notes=notes)


class _Case:
    """What is fed to a tail alone in one run: raw values, and what is `given` to inputs that adjust it.

    `about` is what judging has to know besides.
    """

    def __init__(self, what: str, raw: RawFeeds, given: Mapping[str, Any] = {}, about: Mapping[str, Any] = {}) -> None:
        self.what, self.raw, self.given, self.about = what, raw, given, about


def _size(*groups: Arrays) -> int:
    """Return the bytes of arrays, each of which is written twice."""
    return 2 * sum(values.nbytes for group in groups for values in group.values())


class _Writer:
    """Writes the suites of a file into a folder, and what the manifest says of them."""

    def __init__(self, asked: VectorsOptions, model: AttachedModel, entire: AttachedModel | None, folder: Path) -> None:
        self.notes: list[str] = []
        self._asked, self._model, self._entire, self._folder = asked, model, entire, folder
        self._decider = Decider(model.tail)
        self._suites: dict[Suite, dict[str, Any]] = {}
        self._reference = Reference(model, "numpy")
        self._room = BUDGET
        self._fed: dict[str, str] = {}  # what the whole file was fed, as the environment of a report has it

    def finish(self) -> Kit:
        """Write the manifest."""
        files = [digest(path) for path in model_files(Path(self._asked.attached))]
        return Kit.write(
            self._folder,
            {
                "format": self._model.format,
                "model": files,
                "seed": self._asked.seed,
                "tail": tail_json(self._model.tail),
                "levels": {level: self._level(level) for level in self._model.levels},
                "suites": self._suites,
                "left_out": self.notes,
            },
        )

    def _level(self, level: Level) -> dict[str, Any]:
        """Return what a level decides by, raw units, and how far from the boundary other raw values may flip it."""
        stats = self._model.tail.stats.level(level)
        assert stats is not None, "a level that is post-processed is calibrated"
        return {
            "boundary": json_number(self._model.tail.boundary(level)),
            "span": json_number(stats.span),
            "band": TOLERANCES[ALLOWANCE](stats).atol,
        }

    def write_tails(self) -> None:
        """Write the tail alone: as declared, with open axes where some are fixed, and at other settings.

        Many a reader of test-data sets cannot feed an input that has a default, so these have a folder of their own.
        """
        declared = {level: axes_of(port) for level, port in self._model.raw.items()}
        shapes: dict[Suite, Shapes] = {"tail": declared}
        cases: dict[Suite, list[_Case]] = {"tail": [], "tail_open": [], "tail_adjusted": []}
        for case, of_case in self._cases():
            suite: Suite = "tail_adjusted" if case.about else "tail" if fits(case.raw, declared) else "tail_open"
            shapes.setdefault(suite, of_case)
            cases[suite].append(case)
        for suite, of_suite in cases.items():
            if of_suite:
                self._write_tail(suite, shapes[suite], of_suite)
        self.notes.append("an empty batch: check feeds one")
        layers = (self._model.layer("transform"), None if self._entire is None else self._entire.layer("decision"))
        for layer in (layer for layer in layers if layer is not None):
            named = ", ".join(spec.text for spec in layer.tails)
            self.notes.append(f"the custom steps alone ({named}): they are in the whole file; check runs them")

    def _cases(self) -> Iterator[tuple[_Case, Shapes]]:
        """Yield what is fed, with the shapes that a tail for it declares."""
        model, asked = self._model, self._asked
        for name, shapes, runs in tail_cases(model, count=asked.count, seed=asked.seed):
            if name == "one value per map":
                yield from ((_Case(name, raw), shapes) for raw in runs)
            elif name == DECLARED:  # those with a special value first, then those near the boundary
                yield from ((_Case(name, raw), shapes) for raw in sorted(runs, key=self._distance))
        if not model.tail.adjustable:
            return
        if model.format == "openvino" and not model.tail.options.as_parameters:
            names = ", ".join(model.tail.defaults)
            self.notes.append(f"other settings of {names}: they are variables of the IR, and no inputs")
            return
        for given, meant in settings_of(model):
            try:
                adjusted = model.at_sensitivity(meant)
                is_number = model.tail.options.adjustable == "sensitivity" or np.isnan(given)
                levels = zip(model.tail.adjustable, model.tail.defaults, strict=True)
                values = {name: given if is_number else adjusted.tail.boundary(level) for level, name in levels}
            except MetadataError:  # a boundary that is subnormal, which no file can have
                continue
            is_attached = all(model.tail.options.sensitivity(level) == meant for level in model.tail.adjustable)
            is_computed = model.tail.options.adjustable == "sensitivity" and meant < 1.0 and not is_attached
            about = {"sensitivity": meant, "is_computed": is_computed}
            _, shapes, runs = next(iter(tail_cases(adjusted, count=min(asked.count, _ADJUSTED), seed=asked.seed)))
            for raw in runs:
                yield _Case(f"adjusted to {given:g}", raw, values, about), shapes

    def _distance(self, raw: RawFeeds) -> float:
        """Return how far the nearest raw value lies from the boundary of its level, in spans; -1 for special ones."""
        found = []
        for level, values in raw.items():
            of_level: Level = level if self._decider.tail.names(level) else "image"
            stats, boundary = self._decider.tail.stats.level(of_level), self._decider.boundary(of_level)
            numbers = as_float32(values)
            bits = np.isin(numbers.view(np.uint32), SPECIAL.view(np.uint32))
            if bits.any():
                return -1.0
            if stats is not None and boundary is not None:
                found.append(float(np.abs(numbers.astype(np.float64) - boundary).min(initial=np.inf)) / stats.span)
        return min(found, default=0.0)

    def _write_tail(self, suite: Suite, shapes: Shapes, cases: Sequence[_Case]) -> None:
        folder = self._folder / suite
        folder.mkdir()
        names, sets = self._model.save_tail(folder, shapes), list[dict[str, Any]]()
        judgement, made = Judgement(self._decider, "numpy"), dict[str, NDArray[Any]]()
        room, taken, left = min(OF_DECLARED, self._room), 0, 0
        for case in cases:
            if left and case.what == DECLARED:
                left += 1
                continue
            reference = judgement.reference(case.about.get("sensitivity"))
            made = outputs_as_file(reference, reference.outputs(case.raw))
            arrays = self._fed_to_tail(names, case)
            if case.what == DECLARED:
                taken, room = taken + 1, room - _size(arrays, made)
                if taken > MOST_SETS or room < 0:
                    left = 1
                    continue
            name = f"test_data_set_{len(sets)}"
            write_set(folder / name, arrays, made)
            self._room -= _size(arrays, made) if case.what == DECLARED else 0
            judgement.add_tail(made, case.raw, case.about)
            sets.append({"name": name, "what": case.what, "inputs": list(arrays), **case.about})
        if left:
            count = sum(case.what == DECLARED for case in cases)
            self.notes.append(f"{left} of {count} sets of the declared shapes: a kit is to stay small")
        if not sets:
            shutil.rmtree(folder)
            return
        dtypes = {port.name: port.dtype for port in self._model.raw.values()}
        self._suites[suite] = {
            "model": "model.onnx" if self._model.format == "onnx" else "model.xml",
            "inputs": [{"name": name, "dtype": dtypes.get(name, "float32")} for name in names],
            "outputs": [{"name": name, "dtype": values.dtype.name} for name, values in made.items()],
            "judged_outputs": list(made),
            "rules": judgement.rules(),
            "sets": sets,
        }

    def _fed_to_tail(self, names: Iterable[str], case: _Case) -> Arrays:
        """Return what a tail with inputs of these names is fed; what adjusts it only where it has to be given."""
        levels, defaults = {port.name: level for level, port in self._model.raw.items()}, self._model.tail.defaults
        arrays: Arrays = {}
        for name in names:
            if name in levels:
                arrays[name] = case.raw[levels[name]]
            elif name in case.given or self._model.format == "openvino":
                arrays[name] = np.array(case.given.get(name, defaults[name]), np.float32)
        return arrays

    def write_whole(self) -> None:
        """Write the cases of the whole file, as far as a runtime for it is installed, or say why there are none."""
        runtime = self._model.form.runtimes[0]
        if runtime not in installed_runtimes():
            if self._asked.images is not None or self._asked.raw is not None:
                require(runtime, purpose="computing the raw values of the whole file")
            self.notes.append(f"the whole file: {runtime} is not installed ({install(runtime)})")
            return
        way = Configuration(runtime=runtime)
        with temporary_folder() as folder:
            entire, raw_file = self._entire or self._model, None
            try:
                attached = self._model.with_values(way.open(entire.path, threads=1))
            except UnsupportedModelError as error:
                if self._asked.images is not None or self._asked.raw is not None:
                    raise
                self.notes.append(f"the whole file: {one_line(error)}")
                return
            tapped = self._model.tapped(folder, self._model.taps)
            runners: dict[ModelName, Runner] = {"attached": attached}
            runners["tapped"] = self._model.parts_of(way.open(tapped, threads=1))
            if self._asked.raw is not None:
                raw_file = self._original(Path(self._asked.raw), way)
                runners["raw"] = raw_file.open(way, threads=1)
            self._write_batches(self._batches(way, attached, raw_file), runners, raw_file, entire)

    def _original(self, path: Path, way: Configuration) -> RawFile:
        if (unnamed := unnamed_code(self._model, ())) is not None:
            what = f"the class '{unnamed.name}' stands before the threshold, and its code is not run here"
            raise UsageError(what, fix="leave --raw out: the raw values are then those in front of the tail")
        raw_file = RawFile.of(path, self._model, EagerTransform.load(self._model, (), "numpy"))
        if not raw_file.can_run(way):
            raise UsageError(f"{way.runtime} does not read {path}", fix="give the original of the same format")
        return raw_file

    def _batches(self, way: Configuration, runner: Runner, raw_file: RawFile | None) -> Iterator[_Batch]:
        """Yield what the whole file is fed: synthetic inputs at which it runs, and the images that were given."""
        asked, stats = self._asked, self._model.record.stats
        with temporary_folder() as folder:
            plan = SyntheticPlan(self._model, raw_file, folder, seed=asked.seed, threads=1)
            plan.begin()
            for inputs, size in plan.fed([way]):
                shown = inputs.shapes(size)
                yield f"{SYNTHETIC} {shown}", "synthetic", plan.batch(inputs, size)
            self.notes += [f"{what}: {'; '.join(dict.fromkeys(why))}" for what, why in plan.said.items()]
        if asked.images is None:
            self.notes.append("real images (--images): none were given")
            return
        given = (asked.images, runner.inputs, stats, asked.preprocessing)
        real = image_inputs(*given, limit=asked.limit, other=asked.other_preprocessing)
        self._fed["inputs"] = real.description
        for batch in real.batches(runner.inputs[0].size(0) or 1):
            names = ("/".join(Path(name).parts[-2:]) for name in real.names[batch.start : batch.start + batch.valid])
            yield ", ".join(names), "inputs", batch

    def _write_batches(
        self,
        batches: Iterable[_Batch],
        runners: dict[ModelName, Runner],
        raw_file: RawFile | None,
        entire: AttachedModel,
    ) -> None:
        behind = None if self._entire is None else EagerDecisions(self._entire, self._model.tail)
        about: dict[str, Any] = {
            "is_gated": behind is not None and behind.is_gated,
            "points": {} if behind is None else {name: json_number(of) for name, of in behind.boundaries.items()},
        }
        judgement, sets = Judgement(self._decider, "numpy"), list[dict[str, Any]]()
        arrays: Arrays = {}
        made: Arrays = {}
        for what, kind, batch in batches:
            whole = RealBatch(batch.feeds, batch.size, batch.size)  # what fills it up is run as well
            runs = BatchRuns(whole, runners, self._reference, raw_file)
            self._refuse_other_decisions(runs, raw_file)
            raw = {level: as_float32(values) for level, values in runs.raw("raw" if raw_file else "tapped").items()}
            fed, out = self._inputs(entire, whole.feeds), self._outputs(entire, judgement, runs, raw, about)
            size = _size(fed, out)
            if kind == "synthetic" and size > self._room:
                shapes = what.removeprefix(f"{SYNTHETIC} ")
                self.notes.append(f"the whole file on {SYNTHETIC}: {shapes} would take {size / 1e6:.1f} MB")
                continue
            arrays, made, name = fed, out, f"test_data_set_{len(sets)}"
            self._room -= size if kind == "synthetic" else 0
            self._fed.setdefault(kind, f"{SYNTHETIC}, seed {self._asked.seed}")
            write_set(self._folder / "whole" / name, arrays, made)
            write_npz(self._folder / "whole" / name / RAW, {RAW_NAMES[level]: each for level, each in raw.items()})
            judgement.add_whole(made, raw, about, {})
            sets.append({"name": name, "what": what, "inputs": list(arrays)})
        if not sets:
            return
        raw_outputs: dict[str, str] = {}
        pairs = zip(entire.outputs, runners["attached"].outputs, strict=True)
        aliases = {port.name: sorted({other.name, *other.aliases} - {port.name}) for port, other in pairs}
        for port in entire.outputs:
            value = entire.view.output(port.name)
            raw_outputs |= {
                level: port.name for level in entire.raw if value is not None and entire.is_raw(level, value)
            }
        self._suites["whole"] = {
            **about,
            "inputs": [{"name": name, "dtype": values.dtype.name} for name, values in arrays.items()],
            "outputs": [
                {"name": name, "dtype": values.dtype.name, "aliases": aliases[name]} for name, values in made.items()
            ],
            "judged_outputs": [*self._model.output_names, *about["points"]],
            "raw_outputs": raw_outputs,
            "rules": judgement.rules(),
            "fed": self._fed,
            "sets": sets,
        }

    def _refuse_other_decisions(self, runs: BatchRuns, raw_file: RawFile | None) -> None:
        """Refuse a file that does not decide here as its record says, and an original that is another model."""
        path = self._asked.attached
        tail = compare_tail(
            self._reference, runs.expected("tapped"), runs.outputs("tapped"), runs.raw("tapped"), is_whole=True
        )
        if wrong := [f"{name}: {found.describe()}" for name, found in tail.items() if not found]:
            fix = f"postproc-export check {path}"
            raise UnsupportedModelError(f"{path} does not decide here as its record says", found=wrong[0], fix=fix)
        if raw_file is None:
            return
        bounds = raw_file.bounds(runs.runners["raw"])
        raw = compare_raw(self._model.tail, runs.raw("raw"), runs.raw("tapped"), bounds)
        if wrong := [f"{name}: {found.describe()}" for name, found in raw.items() if not found]:
            fix = f"give the file that {path} was made of with --raw, or leave --raw out"
            raise UnsupportedModelError(f"{raw_file.path} is not the original of {path}", found=wrong[0], fix=fix)

    def _inputs(self, entire: AttachedModel, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return what the file is fed, in its order, with what adjusts the tail where that has to be given."""
        made: Arrays = {}
        for port in entire.inputs:
            values = next((array for name, array in feeds.items() if port.answers_to(name)), None)
            made[port.name] = np.array(self._model.tail.defaults[port.name], np.float32) if values is None else values
        return made

    def _outputs(
        self, entire: AttachedModel, judgement: Judgement, runs: BatchRuns, raw: RawFeeds, about: Mapping[str, Any]
    ) -> Arrays:
        """Return what the file should give, in its order, and as it gave them the outputs that are not judged."""
        reference, dtypes = judgement.reference(), {part.name: part.dtype for part in self._model.tail.parts}
        expected = reference.outputs(raw)
        made = outputs_as_file(reference, judgement.gated(expected, expected) if about["is_gated"] else expected)
        made |= {
            name: judgement.point(float(boundary), expected, raw).astype(dtypes["pred_label"])
            for name, boundary in about["points"].items()
        }
        found = runs.outputs("attached")
        pairs = zip(entire.outputs, runs.runners["attached"].outputs, strict=True)
        return {port.name: made[port.name] if port.name in made else found[other.name] for port, other in pairs}
