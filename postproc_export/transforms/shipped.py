"""The shipped transforms: their parameters, raw values to raw values as expressions, how far runtimes may differ."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from graph_patterns import transforms as steps
from graph_patterns.expr import Expr, Ints, reshape, shape_of
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.transforms.spec import TailSpec
from postproc_export.transforms.step import ROUNDING, Transform, Values, number, refuse_unknown, whole
from postproc_export.transforms.thresholds import Thresholds

if TYPE_CHECKING:
    from postproc_export.transforms.modules import TailTransform


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Smoothing of the map with Anomalib's kernel."""

    sigma: float
    name: ClassVar[str] = "gaussian"

    @property
    def parameters(self) -> dict[str, Any]:
        """Sigma in pixels."""
        return {"sigma": self.sigma}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read ``sigma``, pixels, in (0, 100]; default 4, Anomalib's."""
        refuse_unknown(cls.name, given, ("sigma",))
        return cls(number(cls.name, "sigma", given.get("sigma", 4.0), low=0.05, high=100.0))

    def apply(self, values: Values) -> Values:
        """Smooth the map; a static one has to exceed the kernel's radius in both directions."""
        maps, port, rank = values.need_map(self.name)
        radius = steps.gaussian_radius(self.sigma)
        sizes = port.size(-2), port.size(-1)
        if any(size is not None and size <= radius for size in sizes):
            raise UnsupportedModelError(
                f"the tail '{self.name}' mirrors {radius} pixels at each edge, and the map does not have them",
                found=port.describe(),
                needed=f"height and width of {radius + 1} or more",
                fix=f"a smaller sigma than {self.sigma:g}",
            )
        is_static = None not in sizes
        return replace(values, map=steps.smoothed(maps, sigma=self.sigma, rank=rank, is_static=is_static))

    def module(self) -> "TailTransform":
        """Return `GaussianSmoothing`."""
        from postproc_export.transforms.modules import GaussianSmoothing

        return GaussianSmoothing(self.sigma)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Two passes of n products and sums in each implementation, with weights that sum to 1."""
        taps = 2 * steps.gaussian_radius(self.sigma) + 1
        return largest, 4 * (taps + 1) * ROUNDING * largest


@dataclass(frozen=True, slots=True)
class TopK:
    """The score as the mean of the highest pixels."""

    k: int
    name: ClassVar[str] = "top-k"

    @property
    def parameters(self) -> dict[str, Any]:
        """How many pixels."""
        return {"k": self.k}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read ``k``, a number of pixels of at least 1."""
        refuse_unknown(cls.name, given, ("k",))
        return cls(whole(cls.name, "k", given.get("k")))

    def apply(self, values: Values) -> Values:
        """Put the mean in the place of the score, in its shape; a static map has to have `k` pixels."""
        maps, port, rank = values.need_map(self.name)
        height, width = port.size(-2), port.size(-1)
        is_static = height is not None and width is not None
        if height is not None and width is not None and self.k > height * width:
            raise UnsupportedModelError(
                f"the tail '{self.name}' takes {self.k} pixels, and the map has fewer",
                found=port.describe(),
                needed=f"k of at most {height * width}",
            )
        mean = steps.top_mean(maps, k=self.k, rank=rank, is_static=is_static)
        if values.score is not None:
            return replace(values, score=reshape(mean, shape_of(values.score)))
        shape = None if port.shape is None else port.shape[:1]
        return replace(values, score=mean, score_port=PortInfo("pred_score", "float32", shape))

    def module(self) -> "TailTransform":
        """Return `TopKMean`."""
        from postproc_export.transforms.modules import TopKMean

        return TopKMean(self.k)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Sums of k values in each implementation, and a division."""
        return largest, 2 * (min(self.k, size[0] * size[1]) + 1) * ROUNDING * largest


@dataclass(frozen=True, slots=True)
class Resize:
    """The map in the size of the model's input, or in a fixed one."""

    height: int | None = None
    width: int | None = None
    name: ClassVar[str] = "resize"

    @property
    def parameters(self) -> dict[str, Any]:
        """The fixed size; nothing where it is the input's."""
        return {} if self.height is None else {"height": self.height, "width": self.width}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read ``height`` and ``width``, pixels; neither for the size of the model's input."""
        refuse_unknown(cls.name, given, ("height", "width"))
        if len(given) == 1:
            raise UsageError(f"the tail '{cls.name}' has one of height and width", needed="both, or neither")
        return cls(*(whole(cls.name, key, given[key]) for key in ("height", "width"))) if given else cls()

    def apply(self, values: Values) -> Values:
        """Resize the map."""
        maps, port, rank = values.need_map(self.name)
        sizes, axes = self._sizes(values)
        assert port.shape is not None, "a map of unknown rank is refused when it is selected"
        made = PortInfo(port.name, port.dtype, (*port.shape[:-2], *axes))
        return replace(values, map=steps.resized(maps, sizes, rank=rank), map_port=made)

    def _sizes(self, values: Values) -> tuple[Expr, tuple[Axis, Axis]]:
        if self.height is not None and self.width is not None:
            return Ints((self.height, self.width), "size"), (self.height, self.width)
        port = values.image_port
        if values.image is None or port is None or port.shape is None:
            raise UnsupportedModelError(
                f"the tail '{self.name}' needs one input of images [N, C, H, W]",
                found="no such input, or several",
                fix="give the size: resize:height=256,width=256",
            )
        if port.size(3) in (1, 3, 4) and port.size(1) not in (1, 3, 4):
            raise UnsupportedModelError(
                f"the tail '{self.name}': the input '{port.name}' has its channels last",
                found=port.describe(),
                needed="[N, C, H, W]",
                fix="give the size: resize:height=256,width=256",
            )
        height, width = port.shape[2], port.shape[3]
        if isinstance(height, int) and isinstance(width, int):
            return Ints((height, width), "size"), (height, width)
        return steps.sizes_of(values.image, (2, 3)), (height, width)

    def module(self) -> "TailTransform":
        """Return `Resized`; without a fixed size it is to be set before it is called."""
        from postproc_export.transforms.modules import Resized

        return Resized(None if self.height is None or self.width is None else (self.height, self.width))

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """A place on either axis is off by some roundings of the axis' length, times the steepest slope there is."""
        return largest, (16 + 8 * sum(size)) * ROUNDING * largest


TRANSFORMS: Final[Mapping[str, type[Transform]]] = {item.name: item for item in (Gaussian, TopK, Resize, Thresholds)}


def resolve(spec: TailSpec) -> Transform:
    """Return the shipped transform of a name, its parameters checked.

    Raises
    ------
    UsageError, FileError
        If a parameter is missing, unknown or not legal.
    """
    return TRANSFORMS[spec.name].parse(spec.parameters)
