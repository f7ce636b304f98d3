"""Distillation methods, a file or folder each."""
