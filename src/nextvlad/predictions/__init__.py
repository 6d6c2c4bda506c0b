"""Prediction files: what `nextvlad predict` writes, and what other systems wrote."""

from nextvlad.predictions.readers import detect, read_predictions
from nextvlad.predictions.row import Prediction
from nextvlad.predictions.writers import write_predictions, writer_for

__all__ = ["Prediction", "detect", "read_predictions", "write_predictions", "writer_for"]
