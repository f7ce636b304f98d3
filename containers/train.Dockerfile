# Training, distilling and exporting on NVIDIA GPUs. From the root of the repository:
#   docker build -f containers/train.Dockerfile -t meddet-train .
#   docker run --rm --gpus all --ipc=host -v "$PWD":/data meddet-train train model=meddet-n.yaml teachers=[a.pt] data=d.yaml
# PyTorch's wheels bring the CUDA libraries; the base image gives the driver's interface and what pycuda builds against.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/meddet
ENV PATH=/opt/meddet/bin:$PATH PIP_NO_CACHE_DIR=1 YOLO_CONFIG_DIR=/tmp/ultralytics YOLO_AUTOINSTALL=false

COPY pyproject.toml README.md LICENSE /src/
COPY meddet_yolo /src/meddet_yolo
COPY cfg /src/cfg
COPY trt /src/trt
RUN pip install "/src[trt,medical,ddp]"

WORKDIR /data
ENTRYPOINT ["meddet"]
CMD ["help"]
