"""What an attached file decides of images."""

from postproc_export.prediction.predictor import Prediction, Predictor, predict

__all__ = ["Prediction", "Predictor", "predict"]
