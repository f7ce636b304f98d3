"""Model, distillation and data set configuration files shipped with the package."""

from pathlib import Path

MODELS_DIR = Path(__file__).parent / "models"
