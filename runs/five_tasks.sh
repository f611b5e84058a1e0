#!/usr/bin/env bash
# Five Meta-World tasks in which seeing matters: teacher, align-only, only-finetune and two-stage (the
# quickstart itself), and three teachers that lack an input, all on one manifest of 100 episodes.
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 9 min for the quickstart and 10 min for the baselines.
# Expected: results/five_tasks/ and the keys a.* of results/summary.json. Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/quickstart}
VITA=.venv/bin/vita-vla

make --no-print-directory quickstart RUN="$RUN"

baseline() {  # LABEL FLAG...: a teacher that lacks an input, same recipe and budget
  local label=$1
  shift
  [ -e "$RUN/$label/checkpoints/last" ] || $VITA teacher --demos "$RUN/demos" --out "$RUN/$label" "$@"
}
# Side by side with one thread each: two threads of one run wait for each other half of the time.
export OMP_NUM_THREADS=1
baseline blind_teacher --policy.use_images=false > "$RUN/blind_teacher.log" 2>&1 &
blind=$!
baseline state_only --policy.use_images=false --policy.use_instruction=false > "$RUN/state_only.log" 2>&1 &
wait "$blind" && wait $!
unset OMP_NUM_THREADS
baseline no_instruction --policy.use_instruction=false
$VITA eval "$RUN/blind_teacher" "$RUN/state_only" "$RUN/no_instruction" --run "$RUN"

.venv/bin/python scripts/publish.py "$RUN" results/five_tasks --command "bash runs/five_tasks.sh" \
  a.teacher=teacher a.align_only=align a.only_finetune=only_finetune a.two_stage=finetune \
  a.blind_teacher=blind_teacher a.state_only=state_only a.no_instruction=no_instruction
.venv/bin/python scripts/publish.py "$RUN" --command "make quickstart" \
  a.quickstart_minutes=timing.json:total_seconds/60
.venv/bin/python scripts/readme_tables.py
