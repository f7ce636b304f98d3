#!/usr/bin/env bash
# Everything that only a GPU can show, in one resumable command: benchmarks/gpu.sh DATA.yaml OUT [EPOCHS]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: benchmarks/gpu.sh DATA.yaml OUT [EPOCHS]" >&2
  exit 2
fi
data=$1 out=$2 epochs=${3:-100}
cd "$(dirname "$0")/.."
python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA GPU: this script needs one")'
export YOLO_OFFLINE=true
python -m pytest -q -m gpu tests
python benchmarks/distill_step.py --device 0 --imgsz 512 --batch 32 --rounds 50 --teachers yolo11s yolo11m yolo11l
python benchmarks/spider_distillation.py --data "$data" --out "$out" --device 0 --imgsz 512 \
  --train-teacher yolo11m.yaml yolo11l.yaml --teacher-epochs "$epochs"
python benchmarks/spider_distillation.py --data "$data" --out "$out" --device 0 --imgsz 512 --epochs "$epochs" \
  --seeds 0 1 2 --teachers "$out/teacher-yolo11m/weights/best.pt" "$out/teacher-yolo11l/weights/best.pt"
