# Running an exported student on a CPU: no PyTorch, no Ultralytics. From the root of the repository:
#   docker build -f containers/runner.Dockerfile -t meddet-runner .
#   docker run --rm --network=none -v "$PWD":/data:ro meddet-runner student.onnx image.png
# For an engine, `--build-arg RUNTIME="tensorrt pycuda"` on an image that has CUDA: docs/containers.md.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG RUNTIME="onnxruntime"

ENV PIP_NO_CACHE_DIR=1
RUN pip install numpy opencv-python-headless ${RUNTIME}
COPY pyproject.toml README.md LICENSE /src/
COPY meddet_yolo /src/meddet_yolo
COPY cfg /src/cfg
COPY trt /src/trt
RUN pip install --no-deps /src && rm -r /src

RUN useradd --create-home runner
USER runner
WORKDIR /data
ENTRYPOINT ["python", "-m", "meddet_yolo.trt.runner"]
