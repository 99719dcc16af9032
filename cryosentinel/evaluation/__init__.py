"""Predictions to numbers: per-chip score histograms, metrics, the label-noise audit."""
