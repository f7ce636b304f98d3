#!/usr/bin/env bash
# The comparison on real data at full size, which takes a GPU for hours: benchmarks/gpu_training.sh DATA.yaml OUT [EPOCHS]
# Every training resumes, so it can be started again until it is done.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: benchmarks/gpu_training.sh DATA.yaml OUT [EPOCHS]" >&2
  exit 2
fi
data=$1 out=$2 epochs=${3:-100}
cd "$(dirname "$0")/.."
python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA GPU: this script needs one")'
export YOLO_OFFLINE=true
python benchmarks/spider_distillation.py --data "$data" --out "$out" --device 0 --imgsz 512 \
  --train-teacher yolo11m.yaml yolo11l.yaml --teacher-epochs "$epochs"
python benchmarks/spider_distillation.py --data "$data" --out "$out" --device 0 --imgsz 512 --epochs "$epochs" \
  --seeds 0 1 2 --teachers "$out/teacher-yolo11m/weights/best.pt" "$out/teacher-yolo11l/weights/best.pt"
