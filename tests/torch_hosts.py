"""PyTorch twins of the detectors in `hosts`, as factories for ``--torch torch_hosts:NAME``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import hosts
import torch

Form = Callable[[torch.Tensor, torch.Tensor], Any]


class Detector(torch.nn.Module):
    """A map by a 1x1 convolution, its maximum as the score, and what `form` makes of both."""

    def __init__(
        self, form: Form, weights: tuple[float, ...] = hosts.CHANNEL_WEIGHTS, bias: float = hosts.BIAS
    ) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.tensor(weights)[None, :, None, None])
            self.convolution.bias.copy_(torch.tensor([bias]))
        self.form = form
        self.eval()

    def forward(self, image: torch.Tensor) -> Any:
        """Return what `form` makes of a score [N, 1] and a map [N, 1, H, W]."""
        anomaly_map = self.convolution(image)
        return self.form(anomaly_map.amax(dim=(2, 3)), anomaly_map)


class Named(NamedTuple):
    """Outputs as a named tuple; None stands for what is not there."""

    anomaly_map: torch.Tensor
    pred_label: None
    pred_score: torch.Tensor


@dataclass
class Fields:
    """Outputs as a dataclass."""

    anomaly_map: torch.Tensor
    pred_score: torch.Tensor


class Attributes:
    """Outputs as attributes of an object."""

    def __init__(self, score: torch.Tensor, anomaly_map: torch.Tensor) -> None:
        self.kind = "detector"
        self.pred_score, self.anomaly_map = score, anomaly_map


FORMS: dict[str, Form] = {
    "tuple": lambda score, anomaly_map: (score, anomaly_map),
    "turned": lambda score, anomaly_map: [anomaly_map, score],
    "flat": lambda score, anomaly_map: (score[:, 0], anomaly_map[:, 0]),
    "mapping": lambda score, anomaly_map: {"anomaly_map": anomaly_map, "other": score, "pred_score": score},
    "nested": lambda score, anomaly_map: {"found": (score, anomaly_map), "kind": "detector"},
    "named": lambda score, anomaly_map: Named(anomaly_map, None, score),
    "fields": lambda score, anomaly_map: Fields(anomaly_map, score),
    "attributes": Attributes,
}


def detector() -> torch.nn.Module:
    """Return the twin of `hosts.score_and_map`."""
    return Detector(FORMS["tuple"])


def in_training() -> torch.nn.Module:
    """Return it as a training loop left it."""
    return detector().train()


def map_alone() -> torch.nn.Module:
    """Return it without the score."""
    return Detector(lambda score, anomaly_map: anomaly_map)


def decided() -> torch.nn.Module:
    """Return it with a label, as a post-processed model has it."""
    return Detector(lambda score, anomaly_map: {"pred_score": score, "pred_label": score > 0})


def ambiguous() -> torch.nn.Module:
    """Return it with two scores that nothing tells apart."""
    return Detector(lambda score, anomaly_map: {"one": score, "two": score, "map": anomaly_map})


def smaller() -> torch.nn.Module:
    """Return it with a map of half the size."""
    return Detector(lambda score, anomaly_map: (score, anomaly_map[..., ::2, ::2]))


def one_for_all() -> torch.nn.Module:
    """Return it with one score for the whole batch."""
    return Detector(lambda score, anomaly_map: (score.amax(dim=0, keepdim=True), anomaly_map))


def failing() -> torch.nn.Module:
    """Return a module that takes other inputs."""
    return torch.nn.Linear(5, 1)


def broken() -> torch.nn.Module:
    """Fail."""
    message = "the weights are not here"
    raise RuntimeError(message)


def no_module() -> str:
    """Return something else."""
    return "a detector"


AS_IT_IS = detector()
