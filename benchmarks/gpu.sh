#!/usr/bin/env bash
# What a GPU makes of a training step: tests, ratios, memory, profile. Needs a GPU and nothing else.
#
#     make gpu                    under 8 minutes; OUTPUT=folder, default output/gpu
#
# Everything is printed and kept in OUTPUT/report.md, for docs/scoring.md: with the card, the
# versions and the commit. A part that fails or takes too long is said so, and the next one runs.
# Ratios are of steps that take turns in one process; figures of two runs or cards do not compare.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-output/gpu}
mkdir -p "$output"
report=$output/report.md
: > "$report"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore

say() { echo "$*" | tee -a "$report"; }

# part TITLE SECONDS COMMAND...: status 1 means that a limit was missed, which the figures show.
part() {
    local title=$1 seconds=$2 status
    shift 2
    say ""
    say "### $title"
    say ""
    timeout "$seconds" "$@" 2> "$output/errors.txt" | tee -a "$report"
    status=${PIPESTATUS[0]}
    if [ "$status" -gt 1 ]; then
        say "This part failed (status $status; 124: more than $seconds s). Its last words:"
        tail -n 5 "$output/errors.txt" | tee -a "$report"
    fi
}

step() { # TITLE SECONDS, then arguments of `scoring.py step`
    local title=$1 seconds=$2
    shift 2
    part "$title" "$seconds" "$python" benchmarks/scoring.py step --device cuda --rounds 5 "$@"
}

ddp() { # PROCESSES
    part "DistributedDataParallel over NCCL, $1 of the GPUs, 640 px, float16" 60 \
        "$python" -m torch.distributed.run --standalone --nproc-per-node "$1" \
        benchmarks/scoring.py step --device cuda --rounds 3 --image 640 --batch 4 --dtype float16
}

count=$("$python" -c 'import torch; print(torch.cuda.device_count())') || exit 1
if [ "$count" -eq 0 ]; then
    echo "error: torch sees no GPU: run this where nvidia-smi lists one, with a torch for CUDA" >&2
    exit 1
fi
say "Commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)," \
    "$("$python" -c 'import torch; print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")')"

part "CUDA tests" 120 "$python" -m pytest -q -m cuda -p no:cacheprovider
step "R50, 800 px, float16, and what takes longest" 60 --image 800 --batch 4 --dtype float16 --profile
for size in 320 640 800; do
    step "R50, $size px, float32" 40 --image "$size" --batch 4
done
for size in 320 640; do
    step "R50, $size px, float16" 40 --image "$size" --batch 4 --dtype float16
done
for dtype in float16 float32; do
    step "Swin-L, 640 px, batch 2, $dtype" 60 --image 640 --batch 2 --dtype "$dtype" \
        MODEL.TIMM.NAME swin_large_patch4_window12_384 MODEL.TIMM.PRETRAINED False
done
ddp 1
if [ "$count" -gt 1 ]; then
    ddp "$count"
fi
part "Generating images: true architectures, random weights" 110 \
    "$python" benchmarks/generation_cost.py --measure --budget 70
say ""
say "Kept in $report."
