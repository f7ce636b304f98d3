"""TensorRT: build, prove, run and time the engine of a student."""
