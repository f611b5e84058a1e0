#!/usr/bin/env bash
# How success moves while stage 2 runs, and which schedule keeps it from dipping first: one stage-1 checkpoint,
# one seed, six schedules, scored after 25, 50, 100 and 300 steps on the five tasks' 100 episodes.
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 20 min after runs/five_tasks.sh, whose
# demonstrations, aligned student and manifest it uses. Expected: results/finetune_dip/. Continues where it was
# stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/quickstart}
OUT=${OUT:-$RUN/dip}
VITA=.venv/bin/vita-vla
export OMP_NUM_THREADS=1  # two schedules side by side are faster than one with two threads

schedule() {  # NAME FLAG...
  local name=$1
  shift
  local out="$OUT/$name" scored=()
  [ -e "$out/checkpoints/000300" ] || $VITA finetune --demos "$RUN/demos" --from "$RUN/align" --out "$out" --teacher "$RUN/teacher" \
    --steps 300 --save_freq=25 "$@"
  for step in 25 50 100 300; do
    scored+=("$name-$step=$out/checkpoints/$(printf %06d "$step")/pretrained_model")
  done
  $VITA eval "${scored[@]}" --run "$OUT" --manifest "$RUN/manifest.json" --videos 0 --workers 1
}

mkdir -p "$OUT"
two() {  # run both command lines side by side
  schedule $1 > "$OUT/${1%% *}.log" 2>&1 &
  local first=$!
  schedule $2 > "$OUT/${2%% *}.log" 2>&1 &
  wait "$first" && wait $!
}
two "plain --policy.align_weight=0" "ema --policy.align_weight=0 --policy.ema_decay=0.99"
two "keep_align_term --policy.align_weight=1" "slow_language --policy.align_weight=0 --policy.lr_language=1e-4"
two "keep_align_slow --policy.align_weight=1 --policy.lr_language=1e-4" "keep_align_strong --policy.align_weight=10"
.venv/bin/python scripts/publish.py "$OUT" results/finetune_dip --command "bash runs/finetune_dip.sh"
