"""The evaluation as one self-contained page, and as cards of the data and the models."""
