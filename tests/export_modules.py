"""PyTorch modules for the tests of `export`: one detector in every output form, and modules that cannot be exported."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Prediction:
    """A dataclass that torch.export does not know."""

    anomaly_map: Tensor
    features: Tensor
    pred_score: Tensor | None = None


class Scored(NamedTuple):
    """A named tuple."""

    pred_score: Tensor
    anomaly_map: Tensor


class Detector(torch.nn.Module):
    """Images [N,3,H,W] to a map, a convolution's, and its maximum; the weights are fixed."""

    form = "dict"

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 1, 3, padding=1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.linspace(-0.25, 0.75, 27).reshape(1, 3, 3, 3))
            self.convolution.bias.fill_(-0.5)
        self.noise = torch.nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Any:
        """Return score and map in this class's form."""
        anomaly_map = self.noise(self.convolution(image))
        score = anomaly_map.amax(dim=(2, 3))
        forms = {
            "tensor": lambda: anomaly_map,
            "tuple": lambda: (anomaly_map, score),
            "dict": lambda: {"embedding": image.mean(dim=1), "anomaly_map": anomaly_map, "pred_score": score},
            "nested": lambda: {"anomaly": {"anomaly_map": anomaly_map}, "pred_score": score, "nothing": None},
            "dataclass": lambda: Prediction(anomaly_map, image, score),
            "named tuple": lambda: Scored(score, anomaly_map),
            "score": lambda: score[:, 0],
        }
        return forms[self.form]()


def detector(form: str = "dict") -> Detector:
    """Return the detector in evaluation mode, with outputs of a form."""
    built = Detector().eval()
    built.form = form
    return built


def training() -> Detector:
    """Return the detector as it is built: in training mode, where it drops half of the map."""
    return Detector()


class Wide(Detector):
    """A module whose weights are worth a file of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 64, 3, padding=1)

    def forward(self, image: Tensor) -> Any:
        """Add the mean of many channels to the image."""
        return super().forward(image + self.wide(image).mean(dim=1, keepdim=True))


class SquareOnly(Detector):
    """A module that takes images of one size: height and width become Python numbers."""

    def forward(self, image: Tensor) -> Any:
        """Refuse every other size."""
        if tuple(image.shape[2:]) != (16, 16):
            raise ValueError("16 x 16 only")
        return super().forward(image)


class Computing(Detector):
    """A module that runs at every size, but makes a Python number of the height: the exporter refuses, and says why."""

    def forward(self, image: Tensor) -> Any:
        """Divide by the height."""
        return super().forward(image / len(range(image.shape[2])))


class Branching(Detector):
    """A module that takes another branch above height 16: the exporter keeps one, without an error."""

    def forward(self, image: Tensor) -> Any:
        """Double what is large."""
        return super().forward(image * (2.0 if image.shape[2] > 16 else 1.0))


class Ambiguous(Detector):
    """A module with two maps without names."""

    def forward(self, image: Tensor) -> Any:
        """Return them."""
        anomaly_map = self.convolution(image)
        return anomaly_map, anomaly_map * 2


class Undecided(torch.nn.Module):
    """A module that gives other things in PyTorch than in any export: every call adds one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        """Return a map that depends on how often it was called."""
        self.calls += 1
        return image.mean(dim=1, keepdim=True) + self.calls


class WithState(torch.nn.Module):
    """Sequences [N,L,3] to a score [N] and the state of an RNN, [2,N,4]; both are found by their rank."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.rnn = torch.nn.GRU(3, 4, num_layers=2, batch_first=True)

    def forward(self, sequence: Tensor) -> dict[str, Tensor]:
        """Return score and state."""
        values, state = self.rnn(sequence)
        return {"score": values.abs().amax(dim=(1, 2)), "state": state}


class OneScore(torch.nn.Module):
    """Images to one score for the batch, and a map for each."""

    def __init__(self, *, has_axis: bool) -> None:
        super().__init__()
        self.has_axis = has_axis

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        anomaly_map = images.mean(dim=1, keepdim=True)
        highest = anomaly_map.flatten().max(dim=0, keepdim=self.has_axis)[0]
        return highest, anomaly_map
