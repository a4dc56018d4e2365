"""Classes of one's own for ``--step own_tails:NAME``: ones that fit, and ones of every kind that does not."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from postproc_export.steps.modules import GaussianSmoothing

Raw = tuple[Tensor | None, Tensor | None]


class Tail(torch.nn.Module):
    """What the others have in common: the signature."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Any:
        """Return both as they are."""
        return pred_score, anomaly_map


class Weighted(Tail):
    """A map blurred by a fixed kernel, and a score with a share of its highest pixels; of a score alone, its half."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("kernel", torch.rand(1, 1, 3, 5, generator=generator))

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both, as far as they are there."""
        if anomaly_map is None:
            return pred_score * 0.5, None
        planes = anomaly_map.reshape(-1, 1, *anomaly_map.shape[-2:])
        padded = functional.pad(planes, (2, 2, 1, 1), mode="reflect")
        blurred = functional.conv2d(padded, self.get_buffer("kernel")).reshape(anomaly_map.shape)
        if pred_score is None:
            return None, blurred
        top = blurred.flatten(1).topk(5, dim=1).values.mean(dim=1)
        return 0.5 * pred_score + 0.25 * top.reshape(pred_score.shape), blurred


class Results(NamedTuple):
    """Results by name, the map first."""

    anomaly_map: Tensor | None
    pred_score: Tensor | None


@dataclass
class Fields:
    """Results as a dataclass."""

    anomaly_map: Tensor | None
    pred_score: Tensor | None


class OfTheMap(Tail):
    """A score made of the map alone, as a dict; the map as it is."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> dict[str, Tensor]:
        """Return the mean of the map in the place of the score."""
        assert anomaly_map is not None
        mean = anomaly_map.flatten(1).mean(dim=1)
        return {"anomaly_map": anomaly_map, "pred_score": mean if pred_score is None else mean[:, None]}


class Halved(Tail):
    """A map of half the size as a named tuple; the score squared."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Results:
        """Return both."""
        assert anomaly_map is not None and pred_score is not None  # noqa: PT018
        return Results(functional.avg_pool2d(anomaly_map, 2), pred_score * pred_score)


class Fixed(Tail):
    """A map of a fixed size, as a dataclass."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Fields:
        """Return both."""
        assert anomaly_map is not None
        return Fields(functional.interpolate(anomaly_map, (24, 20), mode="bilinear"), pred_score)


class InFloat32(Tail):
    """A class with weights, for hosts of any element type."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([0.375]))

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both, scaled."""
        assert anomaly_map is not None and pred_score is not None  # noqa: PT018
        return pred_score.float() * self.scale, anomaly_map.float() * self.scale


class Large(Tail):
    """A class with 4 MB of weights."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.rand(1000, 1024, generator=torch.Generator().manual_seed(3))
        self.register_buffer("weights", weights)

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the score with a share of the weights, which depends on it."""
        assert pred_score is not None
        return pred_score + (pred_score @ self.get_buffer("weights")[:1]).sum(dim=1, keepdim=True) * 1e-3, anomaly_map


class Branching(Tail):
    """A class whose graph has a branch, each with a value of its own."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return twice the score where the whole batch is above zero, else the score less one."""
        assert pred_score is not None
        above = (pred_score > 0).all()
        return torch.cond(above, lambda score: score * 2.0, lambda score: score - 1.0, (pred_score,)), anomaly_map


class Shipped(Tail):
    """A class that calls what the package ships."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = GaussianSmoothing(1.0)

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the map smoothed, and its square root."""
        score, smoothed = self.smooth(pred_score, anomaly_map)
        return score, smoothed.abs().sqrt()


def built() -> torch.nn.Module:
    """Build one in a function."""
    return Weighted()


class NeedsArguments(Tail):
    """A constructor with an argument."""

    def __init__(self, sigma: float) -> None:
        super().__init__()


class NoModule:
    """No `torch.nn.Module`."""


class OtherForward(torch.nn.Module):
    """A forward of other arguments."""

    def forward(self, predictions: Tensor) -> Tensor:
        """Return it."""
        return predictions


class Drawn(Tail):
    """Weights that are drawn anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


class Dropping(Tail):
    """A result that is drawn anew each time."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the score, and the map with pixels dropped."""
        return pred_score, functional.dropout(anomaly_map, 0.5, training=True)


class TrainedFurther(Tail):
    """A layer that its constructor puts into training mode, in which it gives other values."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5).train()

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the score, and the map as an evaluation gives it, doubled."""
        return pred_score, self.dropout(anomaly_map) * 2.0


class InPlace(Tail):
    """A result in the place of the input."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both, the map doubled where it stands."""
        assert anomaly_map is not None
        return pred_score, anomaly_map.mul_(2.0)


class Failing(Tail):
    """A forward that fails."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Fail."""
        message = "no kernel here"
        raise ValueError(message)


class Numbers(Tail):
    """A result that is no tensor."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Any:
        """Return a number."""
        return 0.5, anomaly_map


class Alone(Tail):
    """One tensor alone."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Any:
        """Return the map."""
        return anomaly_map


class Labelled(Tail):
    """A result of another name."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Any:
        """Return a label as well."""
        assert pred_score is not None
        return {"pred_score": pred_score, "anomaly_map": anomaly_map, "pred_label": pred_score > 0}


class OtherRank(Tail):
    """A map without its axes of one."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both."""
        assert anomaly_map is not None
        return pred_score, anomaly_map[:, 0]


class OtherType(Tail):
    """A map of truth values."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both."""
        assert anomaly_map is not None
        return pred_score, anomaly_map > 0


class OneForAll(Tail):
    """One score for the whole batch."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return both."""
        assert pred_score is not None
        return pred_score.amax(dim=0, keepdim=True), anomaly_map


class Forgetful(Tail):
    """A score that the model has and the class does not give."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the map."""
        return None, anomaly_map


class DataDependent(Tail):
    """A branch on a value, which goes one way for whatever the export is tried with."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the map, halved where its highest pixel is beyond all bounds."""
        assert anomaly_map is not None
        return pred_score, anomaly_map * (0.5 if anomaly_map.max().item() > 1000.0 else 1.5)


class Freezing(Tail):
    """A size that becomes a number, on which the values depend."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the map divided by the number of its columns."""
        assert anomaly_map is not None
        return pred_score, anomaly_map / sum(1.0 for _ in range(anomaly_map.shape[-1]))


class TwiceByFunction(torch.autograd.Function):
    """Twice a tensor, which TorchScript's exporter writes as an operator of another domain."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return it."""
        return tensor * 2.0

    @staticmethod
    def symbolic(graph: Any, tensor: Any) -> Any:
        """Return the operator."""
        return graph.op("example.own::Twice", tensor).setType(tensor.type())


class Foreign(Tail):
    """An operator that only one of the exporters gives as one of ONNX."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the score doubled."""
        return TwiceByFunction.apply(pred_score), anomaly_map


class SinceOpset18(Tail):
    """An operator that ONNX has since opset 18, and no exporter gives before."""

    def forward(self, pred_score: Tensor | None, anomaly_map: Tensor | None) -> Raw:
        """Return the map resampled with antialiasing."""
        assert anomaly_map is not None
        return pred_score, functional.interpolate(anomaly_map, (24, 20), mode="bilinear", antialias=True)


NOT_CALLABLE = 3
