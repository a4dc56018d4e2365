"""Which outputs are selected as raw score and raw map, and which are refused."""

from itertools import product

import pytest

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.ports import Axis, channel_axis, list_ports, select_outputs
from postproc_export.runtimes import PortInfo

SCORE = PortInfo("pred_score", "float32", ("N", 1))
MAP = PortInfo("anomaly_map", "float32", ("N", 1, "H", "W"))


def port(name: str, *shape: int | str | None, dtype: str = "float32") -> PortInfo:
    """Return a port of a known rank."""
    return PortInfo(name, dtype, shape)


def test_the_known_names_are_found_whatever_else_is_there() -> None:
    """`pred_score` and `anomaly_map` win over other outputs of the same rank."""
    others = [port("features", "N", 1), port("attention", "N", 1, 7, 7)]
    selection = select_outputs([*others, MAP, SCORE])
    assert (selection.image, selection.pixel) == (SCORE, MAP)
    assert selection.describe() == "image score: pred_score (by name), anomaly map: anomaly_map (by name)"


@pytest.mark.parametrize(
    "score", [port("s"), port("s", "N"), port("s", None, 1), port("s", 8, 1)], ids=["[]", "[N]", "[?,1]", "[8,1]"]
)
@pytest.mark.parametrize(
    "anomaly_map", [port("m", None, "H", "W"), port("m", None, 1, None, None)], ids=["[?,H,W]", "[?,1,?,?]"]
)
def test_one_score_and_one_map_are_found_by_rank(score: PortInfo, anomaly_map: PortInfo) -> None:
    """Where no name is known, one output alone of a score's or map's shape is it."""
    selection = select_outputs([port("embedding", "N", 128), anomaly_map, score])
    assert (selection.image, selection.image_found) == (score, "rank")
    assert (selection.pixel, selection.pixel_found) == (anomaly_map, "rank")


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_only_floating_point_outputs_are_found_by_rank(dtype: str) -> None:
    """Labels and masks beside the raw outputs do not make them ambiguous."""
    ports = [
        port("s", "N"),
        port("label", "N", dtype=dtype),
        port("m", "N", 8, 8),
        port("mask", "N", 8, 8, dtype=dtype),
    ]
    selection = select_outputs(ports)
    assert (selection.image, selection.pixel) == (ports[0], ports[2])


@pytest.mark.parametrize("ports", [[SCORE], [MAP]], ids=["score", "map"])
def test_one_level_is_enough(ports: list[PortInfo]) -> None:
    """A model with a score or a map alone is fine; the other level is absent."""
    selection = select_outputs(ports)
    assert [selection.image, selection.pixel].count(None) == 1


@pytest.mark.parametrize("option", ["b", 1, "1"], ids=["name", "index", "index-as-text"])
def test_an_option_decides_by_name_or_index(option: str | int) -> None:
    """An option wins over names and rank, and takes a name, an int or its decimal text."""
    ports = [SCORE, port("b", "N", 1)]
    selection = select_outputs(ports, image_output=option)
    assert (selection.image, selection.image_found) == (ports[1], "option")


def test_a_name_of_digits_wins_over_an_index() -> None:
    """Old exporters number their values: output '1' at index 0 is meant by '1'."""
    ports = [port("1", "N"), port("0", "N")]
    assert select_outputs(ports, image_output="1").image is ports[0]


def test_none_leaves_a_level_out() -> None:
    """`none` keeps a level from being found, by name and by rank."""
    assert select_outputs([SCORE, MAP], image_output="none").image is None
    assert select_outputs([SCORE, port("m", "N", 8, 8)], pixel_output="none").pixel is None


def test_an_alias_counts_as_name() -> None:
    """A tensor with several names is found by each of them."""
    score = PortInfo("output", "float32", (None, 1), aliases=("output", "pred_score", "zeta"))
    assert select_outputs([score]).image_found == "name"
    assert select_outputs([score], image_output="zeta").image is score


def test_an_ambiguous_score_is_refused_with_all_outputs() -> None:
    """The message lists every output with dtype and shape and says which option decides."""
    ports = [port("a", "N", 1), port("b", "N", dtype="float16"), MAP]
    with pytest.raises(UnsupportedModelError, match=r"2 outputs could be the image score: a, b") as caught:
        select_outputs(ports)
    assert caught.value.found == "0: a: float32 [N, 1]; 1: b: float16 [N]; 2: anomaly_map: float32 [N, 1, H, W]"
    assert "--image-output" in str(caught.value.fix)


def test_an_ambiguous_map_is_refused() -> None:
    """Two maps need `--pixel-output`."""
    with pytest.raises(UnsupportedModelError, match=r"2 outputs could be the anomaly map: a, b(.|\n)*--pixel-output"):
        select_outputs([SCORE, port("a", "N", 4, 4), port("b", "N", 1, 8, 8)])


def test_a_model_without_raw_outputs_is_refused() -> None:
    """Embeddings and feature maps are neither score nor map."""
    with pytest.raises(
        UnsupportedModelError, match=r"no output .* can be an image score(.|\n)*0: e: float32 \[N, 128\]"
    ):
        select_outputs([port("e", "N", 128), port("f", "N", 64, 8, 8)])


@pytest.mark.parametrize("option", ["nope", 2, "2", -1, "", True], ids=repr)
def test_an_unknown_output_is_refused_with_the_names(option: str | int) -> None:
    """A name or index that is not there lists what is."""
    with pytest.raises(UsageError, match=r"no such output(.|\n)*0: pred_score(.|\n)*1: anomaly_map"):
        select_outputs([SCORE, MAP], image_output=option)


def test_one_output_cannot_be_both_levels() -> None:
    """The same output for score and map is a mistake of the caller's."""
    with pytest.raises(UsageError, match="'pred_score' cannot be both"):
        select_outputs([SCORE, MAP], image_output="pred_score", pixel_output=0)


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        pytest.param(port("pred_score", "N", 2), "it has 2 values per image", id="two-values"),
        pytest.param(port("pred_score", "N", 0), "it has no value per image", id="no-value"),
        pytest.param(port("pred_score", "N", 1, 3), "it has 3 values per image", id="rank-3"),
        pytest.param(port("pred_score", "N", 1, "C"), "it has 3 axes", id="rank-3-open"),
        pytest.param(port("pred_score", "N", dtype="int64"), "not floating-point", id="integers"),
    ],
)
def test_a_score_of_another_form_is_refused_by_name(score: PortInfo, reason: str) -> None:
    """A score needs one floating-point value per image; where it has several, a step takes one of them."""
    with pytest.raises(UnsupportedModelError, match=f"output 'pred_score' cannot be the image score: .*{reason}"):
        select_outputs([score, MAP])


@pytest.mark.parametrize(
    ("anomaly_map", "reason"),
    [
        pytest.param(port("anomaly_map", "N", 3, 8, 8), "it has 3 channels", id="channels"),
        pytest.param(port("anomaly_map", "N", 9, 8, 3), "it has 3 channels, on its last axis", id="channels-last"),
        pytest.param(port("anomaly_map", "N", 9, 8, None), "its channels are on its last axis", id="open-last"),
        pytest.param(
            port("anomaly_map", "N", 64, 14, 7), "on its second axis, of 64, or on its last, of 7", id="either"
        ),
        pytest.param(port("anomaly_map", "N", 64), "it has 2 axes", id="flat"),
        pytest.param(port("anomaly_map", "N", 1, 1, 8, 8), "it has 5 axes", id="rank-5"),
        pytest.param(PortInfo("anomaly_map", "float32", None), "rank is not known", id="rank-unknown"),
        pytest.param(port("anomaly_map", "N", 8, 8, dtype="bool"), "not floating-point", id="bool"),
    ],
)
def test_a_map_of_another_form_is_refused_by_name(anomaly_map: PortInfo, reason: str) -> None:
    """A map has three axes, or four with one channel."""
    with pytest.raises(UnsupportedModelError, match=f"output 'anomaly_map' cannot be the anomaly map: .*{reason}"):
        select_outputs([SCORE, anomaly_map])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, "H", "W"), 1),
        (("H", "W", 1), 3),
        ((224, 224, 1), 3),
        ((2, "H", "W"), 1),
        (("H", "W", 2), 3),
        ((2, 224, 320), 1),
        ((240, 320, 2), 3),
        (("junk", 14, 20), 1),
        ((None, 3, 4), 1),
        ((14, 20, None), 3),
        ((1, 9, 1), 1),
        ((None, None, None), None),
        (("h", "w", "c"), None),
        ((64, 14, 7), None),
        ((64, 14, 14), None),
        ((64, 64, 48), None),
        ((2, 2, 1), None),
        ((3, 224, 1), None),
        ((2, 224, 4), None),
        ((4, 4, 4), None),
    ],
)
def test_the_channel_axis_is_told_by_sizes_alone(shape: tuple[Axis, ...], axis: int | None) -> None:
    """One entry, at most four, or open where the other is a height or a width; neither names nor squares."""
    assert channel_axis(("N", *shape)) == axis


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("open_axes", list(product([False, True], repeat=3)))
def test_channels_are_never_taken_for_rows(is_last: bool, open_axes: tuple[bool, ...]) -> None:
    """Of maps of up to four channels, and more pixels on each side: the right axis, or none."""
    for channels, height, width in product(range(1, 5), range(5, 12), range(5, 12)):
        sizes = (height, width, channels) if is_last else (channels, height, width)
        shape = [None if is_open else size for is_open, size in zip(open_axes, sizes, strict=True)]
        assert channel_axis([None, *shape]) in (None, 3 if is_last else 1)


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        (port("probs", "N", 2), r"for 'probs' as the image score, choose one with --step channel:index=1 \(it has 2 "),
        (port("probs", "N", 2, 64, 64), r"for 'probs' as the anomaly map, choose one with --step channel:index=1 \("),
        (port("m", "N", 64, 14, 7), r"--step channel:index=1,axis=last for .* or --step channel:index=1,axis=second"),
        (port("m", "N", 9, 8, None), r"--step channel:index=0,axis=last"),
        (
            port("ids", "N", 2, dtype="int64"),
            "its raw score or map among its outputs; none of these has floating-point",
        ),
        (port("none", "N", 0), "say which it is with --image-output NAME"),
    ],
)
def test_a_model_of_several_values_is_refused_with_the_step_that_takes_one(output: PortInfo, fix: str) -> None:
    """As far as there is one."""
    with pytest.raises(UnsupportedModelError, match=rf"no output(.|\n)*fix:     .*{fix}"):
        select_outputs([output])


def test_a_score_may_have_further_axes_of_one() -> None:
    """By name or option; such an output alone is a map of one pixel, whose maximum is the same."""
    score = port("pred_score", "N", 1, 1, 1)
    assert select_outputs([score, MAP]).image is score
    assert select_outputs([port("s", "N", 1, 1, 1)], image_output="s").pixel is None
    assert select_outputs([port("s", "N", 1, 1, 1)]).image is None


def test_axes_of_unknown_size_are_trusted_by_name_only() -> None:
    """Exporters leave junk symbols on axes of size 1: a name settles it, the rank alone does not."""
    score, anomaly_map = port("pred_score", "N", "junk"), port("anomaly_map", "N", "junk", "H", "W")
    selection = select_outputs([score, anomaly_map])
    assert (selection.image, selection.pixel) == (score, anomaly_map)
    with pytest.raises(UnsupportedModelError, match="no output"):
        select_outputs([port("s", "N", "junk"), port("m", "N", "junk", "H", "W")])


@pytest.mark.parametrize(
    ("score", "anomaly_map"),
    [(port("s", 4, 1), port("m", 8, 1, 8, 8)), (port("s"), port("m", 2, 8, 8))],
    ids=["4-8", "scalar-2"],
)
def test_static_batch_sizes_that_differ_are_refused(score: PortInfo, anomaly_map: PortInfo) -> None:
    """Score and map have to be of the same images; a scalar is one image."""
    with pytest.raises(UnsupportedModelError, match=r"'s' is for \d images and output 'm' for \d"):
        select_outputs([score, anomaly_map])


@pytest.mark.parametrize(
    ("score", "anomaly_map"),
    [(port("s"), port("m", 1, 8, 8)), (port("s"), port("m", "N", 8, 8)), (port("s", "A"), port("m", 2, 8, 8))],
    ids=["scalar-1", "scalar-N", "A-2"],
)
def test_batch_sizes_that_may_agree_are_accepted(score: PortInfo, anomaly_map: PortInfo) -> None:
    """A dynamic axis may have any size."""
    assert select_outputs([score, anomaly_map]).pixel is anomaly_map


def test_the_same_value_listed_twice_is_refused() -> None:
    """One value under two outputs would get two tails."""
    with pytest.raises(UnsupportedModelError, match="'pred_score' is listed twice"):
        select_outputs([SCORE, MAP, SCORE])
    alias = PortInfo("other", "float32", ("N", 1), aliases=("other", "pred_score"))
    with pytest.raises(UnsupportedModelError, match="'pred_score' is listed twice"):
        select_outputs([SCORE, alias])


def test_a_list_of_ports_reads_well() -> None:
    """Unknown ranks and axes are shown as such, and an empty list says so."""
    assert (
        list_ports([PortInfo("x", "float32", None), port("y", None, 1)])
        == "0: x: float32, rank unknown; 1: y: float32 [?, 1]"
    )
    assert list_ports([]) == "no outputs"
