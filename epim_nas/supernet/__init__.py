"""Accuracy: sensitivity, the weight-sharing supernet, training, recalibration, evaluation."""
