"""The mathematics of the detector: nmODE², the heads and the blocks; tensors in, tensors out."""
