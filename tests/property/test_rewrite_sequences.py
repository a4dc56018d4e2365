"""Attach, update and detach, in any order and number, on random small hosts: always the original back."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import openvino
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from random_hosts import RandomHost, random_hosts
from raw_values import comparisons, level_stats, sensitivities

from graph_patterns.expr import UnsupportedOpsetError
from graph_patterns.onnx.edit import Soundness
from graph_patterns.onnx.file import load_skeleton_from_bytes
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.formats import onnx as on_onnx
from postproc_export.formats import openvino as on_openvino
from postproc_export.options import LABEL_DTYPES, TailOptions, UpdateOptions
from postproc_export.stats import CalibrationStats
from postproc_export.update import Changes, update_model

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"layout": "packed", "keep_raw": False},
    {"enable_normalization": False},
    {"enable_thresholding": False},
    {"levels": "image"},
    {"levels": "pixel", "enable_normalization": False},
    {"adjustable": "sensitivity", "comparison": "ge"},
    {"adjustable": "boundary"},
    {"made_for": "opencv"},
)
settled = st.fixed_dictionaries(
    {
        "image_sensitivity": sensitivities,
        "pixel_sensitivity": sensitivities,
        "comparison": comparisons,
        "label_dtype": st.sampled_from(LABEL_DTYPES),
        "mask_dtype": st.sampled_from([*LABEL_DTYPES, None]),
        "keep_raw": st.booleans(),
        "nan_guard": st.booleans(),
    }
)
options = st.builds(lambda drawn, form: TailOptions(**{**drawn, **form}), settled, st.sampled_from(FORMS))
stats = st.builds(CalibrationStats, image=level_stats(), pixel=level_stats())
changes = st.builds(
    Changes,
    stats=st.none() | stats,
    options=st.fixed_dictionaries(
        {},
        optional={
            "image_sensitivity": sensitivities,
            "comparison": comparisons,
            "keep_raw": st.booleans(),
            "label_dtype": st.sampled_from(LABEL_DTYPES),
            "layout": st.sampled_from(["separate", "packed"]),
            "enable_normalization": st.booleans(),
            "enable_thresholding": st.booleans(),
            "adjustable": st.sampled_from(["nothing", "sensitivity", "boundary"]),
            "made_for": st.sampled_from(["any", "opencv"]),
        },
    ),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), stats, options),
        st.tuples(st.just("update"), changes),
        st.tuples(st.just("detach")),
    ),
    max_size=7,
)


class OnnxFormat:
    """The steps on an ONNX model in memory."""

    def __init__(self) -> None:
        self._original: Soundness | None = None

    def attach(self, model: Any, *args: Any, **outputs: Any) -> None:
        """Attach."""
        on_onnx.OnnxFormat().attach(model, *args, outputs)

    def update(self, model: Any, wanted: Changes) -> bool:
        """Update."""
        return bool(update_model(on_onnx.OnnxFormat(), model, wanted, asked=UpdateOptions(Path("m"))))

    def detach(self, model: Any) -> Any:
        """Detach."""
        return on_onnx.OnnxFormat().take(model, "tail", where="the model")

    def described(self, model: Any) -> Any:
        """Return everything that a model is; it is as sound as the original."""
        serialised = model.SerializeToString(deterministic=True)
        soundness = Soundness(load_skeleton_from_bytes(serialised))
        self._original = self._original or soundness
        self._original.refuse_worse(soundness, where="the model")
        return serialised

    def copy(self, model: Any) -> Any:
        """Return a copy."""
        return onnx.ModelProto.FromString(model.SerializeToString())


class OpenVinoFormat:
    """The steps on an OpenVINO model in memory."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()

    def attach(self, model: Any, *args: Any, **outputs: Any) -> None:
        """Attach."""
        on_openvino.OpenVinoFormat().attach(model, *args, outputs)

    def update(self, model: Any, wanted: Changes) -> bool:
        """Update."""
        return bool(update_model(on_openvino.OpenVinoFormat(), model, wanted, asked=UpdateOptions(Path("m"))))

    def detach(self, model: Any) -> Any:
        """Detach."""
        return on_openvino.OpenVinoFormat().take(model, "tail", where="the model")

    def described(self, model: Any) -> Any:
        """Return the bytes of its files; it is legal, and every operator of a tail has a name of its own."""
        model.validate_nodes_and_infer_types()
        ours = Counter(node.get_friendly_name() for node in model.get_ops())
        assert not [name for name, count in ours.items() if count > max(1, self._names[name])]
        self._names = self._names or ours
        with TemporaryDirectory() as folder:
            path = Path(folder) / "m.xml"
            openvino.save_model(model, path, compress_to_fp16=False)
            return path.read_bytes(), path.with_suffix(".bin").read_bytes()

    def copy(self, model: Any) -> Any:
        """Return a copy."""
        return model.clone()


def play(form: Any, model: Any, outputs: dict[str, str], sequence: list[tuple[Any, ...]]) -> None:
    """Play the steps; whatever is legal at a step happens, whatever is not leaves the model as it was."""
    original = form.described(model)
    is_attached = False
    for step, *args in sequence:
        before = form.described(model)
        trial = form.copy(model)
        try:
            if step == "attach":
                form.attach(trial, *args, **outputs)
                is_attached = True
            elif step == "update":
                assert form.update(trial, *args) == is_attached
            else:
                assert bool(form.detach(trial)) == is_attached
                is_attached = False
                assert form.described(trial) == original
        except (UnsupportedModelError, MetadataError, UsageError, UnsupportedOpsetError) as error:
            refused: Exception | None = error
        else:
            refused, model = None, trial
        # Refused is a second tail, a boundary that is subnormal, options that contradict each other in an update, a
        # packed or an adjusted tail at an old opset, a name that another output bears, or one that several operators
        # bear; the model stays as it was.
        texts = ("is taken", "several operators are called", "is for an ONNX model")
        legal = isinstance(refused, (MetadataError, UnsupportedOpsetError)) or any(
            text in str(refused) for text in texts
        )
        assert refused is None or is_attached or legal
        assert not isinstance(refused, UsageError) or step == "update" or "is for an ONNX model" in str(refused)
        after = form.described(model)
        assert is_attached or after == original
        assert refused is None or after == before
    if is_attached:
        result = form.detach(model)
        assert result.is_original
    assert form.described(model) == original


def play_on_openvino(host: RandomHost, sequence: list[tuple[Any, ...]]) -> None:
    """Play the steps on what OpenVINO makes of a host."""
    play(OpenVinoFormat(), openvino.Core().read_model(host.model.SerializeToString()), host.outputs, sequence)


@seed(13)
@settings(max_examples=40, deadline=None)
@given(random_hosts(), steps)
def test_onnx_models_survive_any_sequence(host: RandomHost, sequence: list[tuple[Any, ...]]) -> None:
    """Every model on the way is as sound as the original, and detaching gives a proto-equal original."""
    play(OnnxFormat(), host.model, host.outputs, sequence)


@seed(13)
@settings(max_examples=40, deadline=None)
@given(random_hosts(is_for_openvino=True), steps)
def test_openvino_models_survive_any_sequence(host: RandomHost, sequence: list[tuple[Any, ...]]) -> None:
    """Every model on the way is legal, and detaching gives the same bytes."""
    play_on_openvino(host, sequence)


@pytest.mark.slow
@seed(14)
@settings(max_examples=2000, deadline=None)
@given(random_hosts(), steps)
def test_onnx_models_survive_many_sequences(host: RandomHost, sequence: list[tuple[Any, ...]]) -> None:
    """The same with 2,000 hosts."""
    play(OnnxFormat(), host.model, host.outputs, sequence)


@pytest.mark.slow
@seed(14)
@settings(max_examples=2000, deadline=None)
@given(random_hosts(is_for_openvino=True), steps)
def test_openvino_models_survive_many_sequences(host: RandomHost, sequence: list[tuple[Any, ...]]) -> None:
    """The same with 2,000 hosts."""
    play_on_openvino(host, sequence)
