"""Judging what another machine computed of a kit: by the reference on what was fed, and by the rules of the check."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import Decider, RawFeeds, parts_of
from postproc_export.check.findings import Check
from postproc_export.check.kit import AGAIN, MANIFEST, RAW_NAMES, SUITES, Arrays, Expected, Kit, Suite, read_manifest
from postproc_export.check.reference import GATED, TailReference, usable_arithmetic
from postproc_export.check.report import ParityReport
from postproc_export.check.tail import LABELS, CheckTally, compare_tail, unknown
from postproc_export.check.whole import compare_raw, one_line
from postproc_export.comparison import TOLERANCES, Difference, LabelDifference, compare_labels
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.float32 import half_ulp
from postproc_export.installation import environment
from postproc_export.run_options import Arithmetic, JudgeOptions
from postproc_export.runtimes import as_float32
from postproc_export.stats import Level
from postproc_export.tail import PACKED_OUTPUT, TailOutput
from postproc_export.validation import called_like

Outputs: TypeAlias = Mapping[str, NDArray[Any]]

ALLOWANCE: Final = "exported"  # the same operators in another implementation, which nobody here has seen
_WAY: Final = "elsewhere"
_NAMED: Final = 3  # sets


class Judgement:
    """Outputs of one way of running, set by set, compared with the reference."""

    def __init__(self, decider: Decider, arithmetic: Arithmetic, way: str = _WAY, max_flips: int = 0) -> None:
        self.decider, self.arithmetic, self._way, self._max_flips = decider, arithmetic, way, max_flips
        self._references: dict[float | None, TailReference] = {}
        self.tallies: dict[str, CheckTally] = {}
        self.place = ""  # of the set that is added
        self._failing: dict[tuple[str, str], list[str]] = {}  # the places of sets, by tally and output

    def reference(self, sensitivity: float | None = None) -> TailReference:
        """Return the reference, as attached or as if it were attached with a sensitivity."""
        if sensitivity not in self._references:
            decider = self.decider if sensitivity is None else self.decider.at(sensitivity)
            self._references[sensitivity] = TailReference(decider, self.arithmetic)
        return self._references[sensitivity]

    def add_tail(self, outputs: Arrays, raw: RawFeeds, about: Mapping[str, Any]) -> None:
        """Add what a tail alone made of raw values; `about` is what the manifest says of the set."""
        sensitivity = about.get("sensitivity")
        reference, name = self.reference(sensitivity), "tail" if sensitivity is None else f"adjusted/{sensitivity:g}"
        allowance = "adjusted" if about.get("is_computed") else None
        tally = self._tally(name)
        if (parts := self._parts(tally, outputs)) is not None:
            found = compare_tail(reference, reference.outputs(raw), parts, raw, allowance=allowance)
            self._add(tally, found if sensitivity is None else {name: found[name] for name in LABELS if name in found})

    def add_whole(self, outputs: Arrays, raw: RawFeeds, about: Mapping[str, Any], own: RawFeeds) -> None:
        """Add what the whole file made of inputs, of which `raw` are the raw values where the kit was written.

        `own` are those of the machine itself, as far as it gave any: by them its tail is judged exactly.
        """
        tally = self._tally("whole/kit", self._max_flips)
        if (parts := self._parts(tally, outputs)) is None:
            return
        self._add(tally, self._decided(outputs, parts, raw, about, allowance=ALLOWANCE))
        if own:
            self._add(self._tally("whole/raw"), compare_raw(self.decider.tail, raw, own, {}))
        if own.keys() == raw.keys():
            self._add(self._tally("whole/tapped"), self._decided(outputs, parts, own, about, allowance=None))

    def _add(self, tally: CheckTally, found: Mapping[str, Difference]) -> None:
        tally.add(found)
        for name in (name for name, difference in found.items() if not difference):
            self._failing.setdefault((tally.name, name), []).append(self.place)

    def checks(self) -> Iterator[Check]:
        """Yield one check per tally and output; one that failed names the first sets in which it did."""
        for tally in self.tallies.values():
            for check in tally.checks():
                places = [] if check else self._failing.get((tally.name, check.output), [])
                more = f" and {len(places) - _NAMED} more sets" if len(places) > _NAMED else ""
                where = f"; in {', '.join(places[:_NAMED])}{more}" if any(places) else ""
                yield replace(check, message=f"{check.message}{where}")

    def _decided(
        self, outputs: Arrays, parts: Arrays, raw: RawFeeds, about: Mapping[str, Any], *, allowance: str | None
    ) -> dict[str, Difference]:
        """Compare the whole file with the reference on raw values, and what stands behind its decision."""
        reference = self.reference()
        expected = reference.outputs(raw)
        points = {
            name: self._point(float(boundary), expected, outputs.get(name), raw, allowance=allowance)
            for name, boundary in about["points"].items()
        }
        if about["is_gated"]:
            expected = self.gated(expected, parts)
        return {**compare_tail(reference, expected, parts, raw, allowance=allowance, is_whole=True), **points}

    def _point(
        self, boundary: float, expected: Outputs, actual: Any, raw: RawFeeds, *, allowance: str | None
    ) -> LabelDifference:
        stats, half = self.decider.tail.stats.image, self.decider.tail.narrow.get("image")
        assert stats is not None, "an operating point is one of the image level"
        band = 0.0 if allowance is None else TOLERANCES[allowance](stats).atol
        further = 0.0 if allowance is None or half is None else half_ulp(boundary, half)
        return compare_labels(
            self.point(boundary, expected, raw),
            actual,
            raw=self.reference().decided_on(self._label, raw),
            boundary=boundary,
            excused=self.reference().excused(self._label, raw),
            band=band + further,
            dtype=self._label.dtype,
        )

    @property
    def _label(self) -> TailOutput:
        return next(part for part in self.decider.tail.parts if part.name == "pred_label")

    def point(self, boundary: float, expected: Outputs, raw: RawFeeds) -> NDArray[np.bool_]:
        """Return the labels of an operating point; an image that the guard makes NaN is anomalous there, too."""
        values, score = self.reference().decided_on(self._label, raw), expected["pred_score"]
        with np.errstate(invalid="ignore"):  # a signalling NaN
            anomalous = ~(values < np.float32(boundary)) | np.isnan(score).reshape(values.shape)
        return np.asarray(anomalous.reshape(score.shape))

    def gated(self, expected: Outputs, parts: Outputs) -> dict[str, NDArray[Any]]:
        """Return what is expected where a mask is empty unless the label of `parts` says anomalous."""
        mask, label = expected[GATED], parts["pred_label"].astype(bool)
        return {**expected, GATED: np.asarray(mask & label.reshape(-1, *[1] * (mask.ndim - 1)))}

    def rules(self) -> dict[str, Any]:
        """Return by which rule each output is judged, of what was added so far."""
        made: dict[str, Any] = {}
        for tally in self.tallies.values():
            for name, found in tally.found.items():
                if isinstance(found, LabelDifference):
                    made.setdefault(name, {"equal": True})
                else:
                    nan = "NaN, or 1 and above" if self.decider.tail.options.enable_normalization else "NaN"
                    made.setdefault(name, {"within": found.tolerance.atol, "where_nan_is_expected": nan})
        return made

    def _tally(self, name: str, max_flips: int = 0) -> CheckTally:
        return self.tallies.setdefault(name, CheckTally(name, self._way, max_flips=max_flips))

    def _parts(self, tally: CheckTally, outputs: Arrays) -> Arrays | None:
        """Return the parts of the tail apart; None for a packed output that has none, a failure of all."""
        tail = self.decider.tail
        try:
            return parts_of(outputs[PACKED_OUTPUT], tail.parts) if tail.options.is_packed else outputs
        except UnsupportedModelError as error:
            self._add(tally, {name: unknown(name, one_line(error)) for name in self.decider.names})
            return None


@called_like(JudgeOptions)
def judge_outputs(**given: Any) -> ParityReport:
    """Judge what another runtime, language or device computed of a kit that `write_vectors` wrote.

    Returns
    -------
    ParityReport
        Truthy where everything that was computed passed, and something was. It lists what was not computed, too.

    Raises
    ------
    FileError, MetadataError, CalibrationError
        If the kit is damaged, or outputs are missing, left over, damaged, or of another type, shape or kit.
    MissingDependencyError
        If the reference is to be PyTorch, which is not installed.

    Notes
    -----
    The tail alone is judged exactly, by the reference on what was fed: labels and masks equal, scores within the
    rounding of their form. Of the whole file the raw values there are not known. Its scores may differ from those of
    the machine that wrote the kit by the band of another implementation, and so may labels where the raw value lies
    within it. Where the outputs have raw values, too, its tail is judged exactly by these.
    """
    asked = JudgeOptions(**given)
    folder, kit = Path(asked.outputs), Kit.load(Path(asked.kit))
    arithmetic = usable_arithmetic(asked.reference)
    not_checked = [*_refuse_other(folder, kit), *kit.document["left_out"]]
    where = asked.where or _WAY
    judgement = Judgement(kit.decider, arithmetic, where.replace("/", "_"), asked.max_flips)
    judged: list[str] = []
    for name in SUITES:
        suite = kit.suite(name)
        if suite is None or not (folder / name).is_dir():
            not_checked += [] if suite is None else [f"{_NOUNS[name]}: there is no folder {name} in {folder}"]
            continue
        judged.append(name)
        _judge_suite(judgement, kit, name, folder / name)
    if not judged:
        found = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "an empty folder"
        needed = " or ".join(str(folder / name) for name in SUITES if kit.suite(name))
        fix = "write the outputs of a set to a folder of the same name as in the kit: tail/test_data_set_0/outputs.npz"
        raise FileError(f"there are no outputs in {folder}", found=found, needed=needed, fix=fix)
    described = environment(seed=kit.document["seed"], threads=None)
    described["reference"] = f"{arithmetic} {described['packages'][arithmetic]}"
    described["kit"] = kit.digest
    if "whole" in judged:
        described |= kit.document["suites"]["whole"]["fed"]
    checks = list(judgement.checks())
    return ParityReport(
        subject=str(folder),
        checks=tuple(checks if asked.where is None else (replace(check, runtime=where) for check in checks)),
        not_checked=tuple(dict.fromkeys(not_checked)),
        environment=described,
        given={"kit": str(kit.folder)},
    )


def _refuse_other(folder: Path, kit: Kit) -> Iterator[str]:
    """Refuse outputs of another kit, and the kit itself or a copy; yield what nothing tells."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise FileError(
            f"cannot read the outputs {folder}", found=found, needed="a folder of outputs", fix="check the path"
        )
    if copied := next((path for pattern in ("*/*/input*", "*/model.*") for path in folder.glob(pattern)), None):
        fix = "write what was computed to a folder of its own: what the kit expects would be judged as computed"
        raise FileError(f"{folder} is a kit or a copy of one, and no folder of outputs", found=str(copied), fix=fix)
    if not (folder / MANIFEST).exists():
        yield f"whether the outputs are of this kit: there is no copy of its {MANIFEST} beside them"
    elif (found := read_manifest(folder / MANIFEST)["digest"]) != kit.digest:
        raise FileError(
            f"the outputs {folder} are of another kit", found=found, needed=kit.digest, fix="give the kit they are of"
        )


def _judge_suite(judgement: Judgement, kit: Kit, name: Suite, folder: Path) -> None:
    suite, control = kit.document["suites"][name], Judgement(judgement.decider, judgement.arithmetic)
    known = {about["name"] for about in suite["sets"]}
    if extra := sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in known):
        needed = f"test_data_set_0 to {len(known) - 1}"
        raise FileError(f"{folder / extra[0]} is no set of the kit", needed=needed, fix="take it away")
    for about in suite["sets"]:
        made, raw = kit.outputs(name, about["name"]), kit.raw(name, about["name"])
        _refuse_contradiction(control, kit.folder / name / about["name"], suite, made, raw, about)
        judged = {output: made[output] for output in suite["judged_outputs"]}
        beside = {RAW_NAMES[level]: as_float32(values) for level, values in raw.items()} if name == "whole" else {}
        own_names: Mapping[Level, str] = suite.get("raw_outputs", {})
        aliases = {alias: output["name"] for output in suite["outputs"] for alias in output.get("aliases", ())}
        found = Expected(judged, list(made), {**beside, **{out: made[out] for out in own_names.values()}}, aliases)
        outputs = found.read(folder / about["name"])
        judgement.place = f"{name}/{about['name']}"
        if name != "whole":
            judgement.add_tail(outputs, raw, about)
            continue
        own = {level: outputs.get(key, outputs.get(own_names.get(level, ""))) for level, key in RAW_NAMES.items()}
        judgement.add_whole(outputs, raw, suite, {level: each for level, each in own.items() if each is not None})


def _refuse_contradiction(
    control: Judgement, folder: Path, suite: Mapping[str, Any], made: Arrays, raw: RawFeeds, about: Mapping[str, Any]
) -> None:
    """Refuse a set that the manifest does not fit: what the kit itself expects has to pass, and all of it be judged."""
    tail = control.decider.tail
    judged = {*([PACKED_OUTPUT] if tail.options.is_packed else control.decider.names), *suite.get("points", ())}
    wrong = [] if judged == set(suite["judged_outputs"]) else [f"judged are {', '.join(suite['judged_outputs'])}"]
    try:
        if not wrong and "points" in suite:
            control.add_whole(made, raw, suite, {})
        elif not wrong:
            control.add_tail(made, raw, about)
        wrong += [f"{check.output}: {check.message}" for check in control.checks() if not check]
    except (LookupError, TypeError, ValueError) as error:  # arrays of other names, types or shapes
        wrong.append(f"{type(error).__name__}: {one_line(error)}")
    if wrong:
        raise MetadataError(f"{folder} is not what {MANIFEST} says", found=wrong[0], fix=AGAIN)


_NOUNS: Final[Mapping[Suite, str]] = {
    "tail": "the tail alone",
    "tail_open": "the tail alone with open axes",
    "tail_adjusted": "the tail alone at other settings",
    "whole": "the whole file",
}
