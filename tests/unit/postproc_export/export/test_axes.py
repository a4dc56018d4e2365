"""`export.exporter`: the example's shape, and which of its axes stay open."""

import pytest

from postproc_export.errors import UsageError
from postproc_export.export.exporter import parse_axes, parse_shape, trace_shape
from postproc_export.export.verify import other_sizes

SHAPE = (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("text", "shape"), [("1,3,64,96", SHAPE), (" 1, 3 ,64,96", SHAPE), ("1x3x64x96", SHAPE), ("5", (5,))]
)
def test_a_shape_is_a_list_of_sizes(text: str, shape: tuple[int, ...]) -> None:
    """Commas or an x between, blanks allowed."""
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "1,3,,64", "1,3,0,64", "1,3,-1,64", "1,3,1e3", "batch,3,64,64", "1,3,²"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    """Anything but positive integers, with an example in the message."""
    with pytest.raises(UsageError, match=r"is no shape(.|\n)*1,3,256,256"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("asked", "axes"),
    [
        pytest.param("batch,height,width", {"batch": 0, "height": 2, "width": 3}, id="named"),
        pytest.param(["width", "batch"], {"width": 3, "batch": 0}, id="list"),
        pytest.param("height=1, width=2", {"height": 1, "width": 2}, id="another-layout"),
        pytest.param("channels=1", {"channels": 1}, id="another-name"),
        pytest.param("", {}, id="none"),
    ],
)
def test_axes_are_named(asked: str | list[str], axes: dict[str, int]) -> None:
    """Batch is the first axis, height and width are the last two; an index says otherwise."""
    assert parse_axes(asked, SHAPE) == axes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("depth", "--dynamic depth: which axis that is is not known(.|\n)*depth=INDEX"),
        ("batch=", "names no axis"),
        ("batch=-1", "names no axis"),
        ("2", "names no axis"),
        ("batch=4", "the input has 4 axes"),
        ("batch,batch", "name batch is asked to be dynamic twice"),
        ("height,rows=2", "axis 2 is asked to be dynamic twice"),
    ],
)
def test_axes_that_are_not_clear_are_refused(asked: str, message: str) -> None:
    """Unknown names, indices that are not there, and repetitions."""
    with pytest.raises(UsageError, match=message):
        parse_axes(asked, SHAPE)


def test_a_dynamic_axis_of_size_one_is_traced_at_two() -> None:
    """Exporters take a size of 1 for a constant; sizes of static axes stay."""
    assert trace_shape((1, 1, 64, 1), parse_axes("batch,height", (1, 1, 64, 1))) == (2, 1, 64, 1)


@pytest.mark.parametrize("name", ["batch", "height"])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_other_sizes_are_others(name: str, size: int) -> None:
    """No candidate is the size of the export itself, but a batch of 1, which is always tried."""
    sizes = list(other_sizes(name, max(size, 2)))
    assert max(size, 2) not in sizes
    assert all(each > 0 for each in sizes)
    assert (1 in sizes) or name != "batch"
