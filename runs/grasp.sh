#!/usr/bin/env bash
# The hard set: two tasks that need a firm grip on a small puck (pick-place, push), with a larger budget than the
# quickstart's: 200 demonstrations per task instead of 60, pictures of 128 px instead of 96 (the mini VLM still
# sees 96), 5000 teacher steps, 600 align and 1000 finetune steps. No setting of the networks differs.
#
# Hardware: two CPU cores with AMX, no GPU. Wall time: about 50 min with one thread, which leaves the other core
# free. Continues where it was stopped.
# Expected: results/grasp/ and the keys a.grasp_* of results/summary.json.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-work/grasp}
VITA=.venv/bin/vita-vla
TASKS=pick-place,push
trained() { [ -e "$RUN/$1/checkpoints/last" ]; }

$VITA demos record --tasks $TASKS --episodes 200 --root "$RUN/demos" --size 128 --seed 20000
trained teacher || $VITA teacher --demos "$RUN/demos" --out "$RUN/teacher" --steps 5000
trained align || $VITA align --demos "$RUN/demos" --teacher "$RUN/teacher" --out "$RUN/align" --steps 600
trained finetune || $VITA finetune --demos "$RUN/demos" --from "$RUN/align" --out "$RUN/finetune" --steps 1000
$VITA eval "$RUN/teacher" "$RUN/align" "$RUN/finetune" --run "$RUN" --tasks $TASKS --episodes 50
$VITA report "$RUN"
.venv/bin/python scripts/publish.py "$RUN" results/grasp --command "bash runs/grasp.sh" \
  a.grasp_teacher=teacher a.grasp_two_stage=finetune
.venv/bin/python scripts/readme_tables.py
