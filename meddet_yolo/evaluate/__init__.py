"""Measuring detectors and laying them side by side."""
