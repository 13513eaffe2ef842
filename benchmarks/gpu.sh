#!/usr/bin/env bash
# What a GPU makes of a training step: tests, ratios, memory, profile. Needs a GPU and nothing else.
#
#     make gpu                    under 8 minutes; OUTPUT=folder, default output/gpu
#
# Everything is printed and kept in OUTPUT/report.md, for docs/scoring.md: with the card, the
# versions and the commit. A part that fails or takes too long is said so, and the next one runs;
# what does not fit into the 8 minutes on this card is named. The most telling parts come first.
# Ratios are of steps that take turns in one process; figures of two runs or cards do not compare.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-output/gpu}
report=$output/report.md
last=470 # seconds from the start (of which bash's SECONDS keeps count) at which all has to be over
failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore

fail() {
    echo "error: $*" >&2
    exit 1
}
say() { echo "$*" | tee -a "$report"; }

# part TITLE SECONDS COMMAND...: at most so many seconds, and no more than are left.
part() {
    local title=$1 seconds=$2 left=$((last - SECONDS)) status
    shift 2
    say ""
    say "### $title"
    say ""
    if [ "$left" -lt 20 ]; then
        say "Left out: the time was over."
        return
    fi
    seconds=$((seconds < left ? seconds : left))
    timeout --kill-after=5 "$seconds" "$@" 2> "$output/errors.txt" | tee -a "$report"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        failed=$((failed + 1))
        say ""
        say "This part ended with status $status (1: a limit was missed, or an error; 124 or 137:" \
            "more than $seconds s). Its last words:"
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

command -v "$python" > /dev/null ||
    fail "there is no $python: make it with 'make setup', or name one (PYTHON=python3 $0)"
count=$("$python" -c 'import torch; print(torch.cuda.device_count())') ||
    fail "$python cannot import torch: install GAL-D2 into it (make setup)"
[ "$count" -gt 0 ] ||
    fail "torch sees no GPU: run this where nvidia-smi lists one, with a torch for CUDA"
mkdir -p "$output"
: > "$report"
say "Commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)," \
    "$("$python" -c 'import torch; print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")')"

# Only the files that have such tests: to collect all others takes longer than these.
mapfile -t tests < <(grep -rl --include='test_*.py' 'mark\.cuda' tests | sort)
part "CUDA tests" 120 "$python" -m pytest -q -m cuda -p no:cacheprovider "${tests[@]}"
step "R50, 800 px, float16, and what takes longest" 60 --image 800 --batch 4 --dtype float16 --profile
for size in 640 320; do
    step "R50, $size px, float16" 40 --image "$size" --batch 4 --dtype float16
done
ddp 1
if [ "$count" -gt 1 ]; then
    ddp "$count"
fi
for size in 800 640 320; do
    step "R50, $size px, float32" 40 --image "$size" --batch 4
done
for dtype in float16 float32; do
    step "Swin-L, 640 px, batch 2, $dtype" 60 --image 640 --batch 2 --dtype "$dtype" \
        MODEL.TIMM.NAME swin_large_patch4_window12_384 MODEL.TIMM.PRETRAINED False
done
# It needs some seconds beyond its budget: to import, and to end what it has begun.
budget=$((last - SECONDS - 30))
part "Generating images: true architectures, random weights" 120 \
    "$python" benchmarks/generation_cost.py --measure --budget $((budget < 80 ? budget : 80))
say ""
say "Kept in $report, after $SECONDS seconds."
[ "$failed" -eq 0 ] || fail "$failed of the parts failed, were cut short, or missed a limit: see above"
