#!/usr/bin/env bash
# MT50: one multi-task teacher and student on all 50 Meta-World tasks, with only-finetune and three teachers that
# lack an input beside them, on one manifest; rates for all tasks and by difficulty.
#
# SIZE=gpu: all 50 tasks, 100 demonstrations each, 20 evaluation episodes each, 128 px. One GPU and 16 cores.
# SIZE=cpu (default where there is no GPU): of each difficulty's tasks in alphabetical order every fourth from the
# first on, 14 in all; 100 demonstrations and 10 evaluation episodes each, 96 px. Two CPU cores, about two
# hours by the sum of its steps (not timed as a whole).
# Episodes end at Meta-World's own limit of 500 steps. Continues where it was stopped.
# Both losses have the threshold of 1 of the smooth-L1 in the paper's code.
# Expected: results/mt50/ and the keys c.mt50_* of results/summary.json, whose rows in the README say how many tasks
# they are of. SIZE=gpu was not run yet: it takes the place of the subset's, whose text in docs/benchmarks.md must then
# be written anew.
set -euo pipefail
cd "$(dirname "$0")/.."
VITA=.venv/bin/vita-vla
SIZE=${SIZE:-$(.venv/bin/python -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")')}
RUN=${RUN:-work/mt50_$SIZE}
if [ "$SIZE" = gpu ]; then
  TASKS=mt50 DEMOS=100 PIXELS=128 EPISODES=20 TEACHER=40000 BASELINE=40000 BLINDEST=40000 ALIGN=6000 FINETUNE=10000 WORKERS=$(nproc)
else
  TASKS=button-press-topdown,coffee-button,door-open,faucet-close,handle-pull-side,plate-slide-back-side,reach
  TASKS+=,basketball,coffee-push,soccer,assembly,push-back,disassemble,stick-push
  DEMOS=100 PIXELS=96 EPISODES=10 TEACHER=12000 BASELINE=8000 BLINDEST=4000 ALIGN=3000 FINETUNE=6000 WORKERS=2
fi
train() {  # LABEL VERB FLAG...
  local label=$1
  shift
  [ -e "$RUN/$label/checkpoints/last" ] || $VITA "$1" --out "$RUN/$label" --policy.smooth_l1_beta=1 "${@:2}"
}
side_by_side() {  # two trainings at once, one thread each, where there is no GPU to share
  local first=$1 second=$2
  if [ "$SIZE" = gpu ]; then $first && $second; return; fi
  OMP_NUM_THREADS=1 $first > "$RUN/$first.log" 2>&1 &
  local running=$! failed=
  OMP_NUM_THREADS=1 $second > "$RUN/$second.log" 2>&1 || failed=$second
  wait "$running" || failed=$first
  [ -z "$failed" ] || { tail -n 5 "$RUN/$failed.log" >&2; echo "error: $failed, see $RUN/$failed.log" >&2; exit 1; }
}
a_teacher() { train "$1" teacher --demos "$RUN/demos" --steps "$2" "${@:3}"; }
teacher() { a_teacher teacher $TEACHER; }
# On CPUs the teachers that lack an input have fewer updates than the teacher, to save time, and state_only half of
# theirs: a longer run may raise their rates. On a GPU all have the teacher's.
no_instruction() { a_teacher no_instruction $BASELINE --policy.use_instruction=false; }
blind() { a_teacher blind_teacher $BASELINE --policy.use_images=false; }
state_only() {
  a_teacher state_only "$BLINDEST" --policy.use_images=false --policy.use_instruction=false
}
# Students see every frame more than once: what teacher and image encoder make of it is computed once.
features() {
  [ -d "$RUN/taught" ] || $VITA teacher features --demos "$RUN/demos" --teacher "$RUN/teacher" --out "$RUN/taught"
  [ -d "$RUN/vision" ] || $VITA vlm features --demos "$RUN/taught" --out "$RUN/vision"
}
a_student() { train "$@" --demos "$RUN/taught" --policy.vision_features="$RUN/vision"; }
align() { a_student align align --teacher "$RUN/teacher" --steps $ALIGN; }
# The paper's stage 2, without the alignment term that keeps a short one from dipping: this one is long, and the
# teacher is worth leaving behind.
finetune() { a_student finetune finetune --from "$RUN/align" --steps $FINETUNE --policy.align_weight=0; }
two_stage() { align && finetune; }
only_finetune() { a_student only_finetune finetune --only-finetune --teacher "$RUN/teacher" --steps $FINETUNE; }

$VITA demos record --tasks $TASKS --episodes $DEMOS --root "$RUN/demos" --size $PIXELS --seed 20000 --workers "$WORKERS"
side_by_side teacher no_instruction
features
side_by_side two_stage only_finetune
side_by_side blind state_only
$VITA eval "$RUN/teacher" "$RUN/align" "$RUN/only_finetune" "$RUN/finetune" "$RUN/no_instruction" "$RUN/blind_teacher" \
  "$RUN/state_only" expert --run "$RUN" --tasks $TASKS --episodes $EPISODES --episode-length 500 --size $PIXELS --workers "$WORKERS"
$VITA report "$RUN"

NUMBERS=()
for pair in teacher=teacher two_stage=finetune only_finetune=only_finetune align_only=align expert=expert \
  blind_teacher=blind_teacher \
  state_only=state_only no_instruction=no_instruction; do
  NUMBERS+=("c.mt50_${pair%%=*}=${pair##*=}")
done
for group in easy medium hard very_hard; do
  for pair in teacher=teacher two_stage=finetune only_finetune=only_finetune; do
    NUMBERS+=("c.mt50_${pair%%=*}_$group=${pair##*=}@$group")
  done
done
.venv/bin/python scripts/publish.py "$RUN" results/mt50 --command "SIZE=$SIZE bash runs/metaworld_mt50.sh" "${NUMBERS[@]}"
.venv/bin/python scripts/readme_tables.py
