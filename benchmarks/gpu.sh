#!/usr/bin/env bash
# Everything that needs a GPU but no training: the GPU tests, whether TensorRT-RTX runs here, and the engine benchmarks.
#
#   benchmarks/gpu.sh OUT [DATA.yaml [MODEL.pt ...]]
#
# With a data set the benchmark measures mAP and int8, too. A step that is done leaves OUT/done/STEP and is not repeated, so
# the command can be given again until all are done; a step that fails or runs over its time does not stop the others.
# Their times add up to less than 25 minutes. MEDDET_DRY_RUN=1 tries every step on a machine without a GPU.
set -uo pipefail
if [ $# -lt 1 ]; then
  echo "usage: benchmarks/gpu.sh OUT [DATA.yaml [MODEL.pt ...]]" >&2
  exit 2
fi
mkdir -p "$1/done" || exit 2
out=$(cd "$1" && pwd) || exit 2
data=${2:+$(realpath "$2")}
models=()
for model in "${@:3}"; do models+=("$(realpath "$model")"); done
cd "$(dirname "$0")/.." || exit 2
export YOLO_OFFLINE=true
dry=${MEDDET_DRY_RUN:-}
if [ -z "$dry" ]; then
  python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA GPU: this script needs one")' || exit 1
fi
failed=()

# step NAME SECONDS COMMAND...: run once, with a log, within a time.
step() {
  local name=$1 limit=$2 mark="$out/done/${dry:+dry-}$1"
  shift 2
  if [ -e "$mark" ]; then
    echo "$name: done before"
    return
  fi
  local start=$SECONDS
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  if [ "$code" -eq 0 ]; then
    touch "$mark"
    echo "$name: done in $((SECONDS - start)) s"
  else
    failed+=("$name")
    local why="exit code $code"
    [ "$code" -eq 124 ] && why="not done within $limit s"
    echo "$name: FAILED ($why), see $out/$name.log"
    tail -n 3 "$out/$name.log" | sed 's/^/    /'
  fi
}

if [ -n "$dry" ]; then
  size=64 quick=(--iterations 20 --seconds 0.2 --rounds 2) backends=(onnxruntime openvino rtx) precision=(fp32) stock=(--no-stock)
  calls=(iterations=20 seconds=0.2 device=cpu) kinds=pytorch,onnxruntime,rtx precisions=fp32 batches=1
else
  size=512 quick=(--iterations 500 --seconds 5) backends=(tensorrt rtx) precision=(fp16) stock=()
  calls=(iterations=500 seconds=5) kinds=pytorch,tensorrt,rtx precisions=fp32,fp16 batches=1
fi
[ ${#models[@]} -eq 0 ] && models=(meddet-n.yaml yolo26n.yaml)
[ -n "$dry" ] && models=(meddet-n.yaml)
listed=$(IFS=,; echo "${models[*]}")
with_data=()
if [ -n "$data" ]; then
  with_data=("data=$data")
  [ -z "$dry" ] && precisions=fp32,fp16,int8
fi

[ -n "$dry" ] || step machine 30 nvidia-smi -q
step tests 360 python -m pytest -q -m gpu -p no:cacheprovider tests
step rtx 120 python benchmarks/rtx_runs.py --imgsz "$size"
step latency 360 python benchmarks/engine_latency.py --imgsz "$size" "${quick[@]}" --backends "${backends[@]}" \
  --precision "${precision[@]}" ${stock[@]+"${stock[@]}"} --files "$out/engines" --out "$out" --name engine_latency_gpu
step benchmark 420 meddet benchmark "model=[$listed]" ${with_data[@]+"${with_data[@]}"} "imgsz=$size" "batch=[$batches]" \
  "backends=[$kinds]" "precision=[$precisions]" "${calls[@]}" "out=$out/benchmark"
if [ -z "$dry" ]; then
  step distill 180 python benchmarks/distill_step.py --device 0 --imgsz 512 --batch 32 --rounds 20 \
    --teachers yolo11s yolo11m yolo11l
fi

[ -e "$out/rtx.log" ] && tail -n 1 "$out/rtx.log"
[ -e "$out/engine_latency_gpu.md" ] && sed -n '/Ratios/,$p' "$out/engine_latency_gpu.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "not done: ${failed[*]}; give the command again to go on" >&2
  exit 1
fi
echo "all done: $out"
