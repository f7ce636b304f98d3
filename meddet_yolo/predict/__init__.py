"""Prediction on images, DICOM and NIfTI: sources, predictor and results."""
