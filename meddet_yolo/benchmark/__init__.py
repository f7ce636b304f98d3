"""Latency and accuracy of models in every back end of the machine, side by side in one run."""

from meddet_yolo.benchmark.run import benchmark, time_candidates, timed_images

__all__ = ["benchmark", "time_candidates", "timed_images"]
