#!/usr/bin/env bash
# LIBERO on scripted demonstrations: teacher, only-finetune and two-stage on Object and on Spatial, evaluated on
# the official initial states (no demonstration begins there), the scripted expert beside them.
#
# 30 demonstrations per task and pictures of 96 px for recording, training and evaluation; the tiny teacher and
# the mini VLM. 10 tasks x STARTS episodes per policy and suite: 50 with the default of 5 per task, which two cores
# can render; on a machine with a GPU STARTS=20.
# Hardware: two CPU cores. Wall time per suite, with the other suite beside it (SUITES=... in two shells, each with
# OMP_NUM_THREADS=1): recording 20 to 45 min, training 85 min, evaluation 15 to 20 min. Needs the extra `libero` and
# the assets (docs/libero.md).
# Expected: results/libero/<suite>/ and the keys c.libero_* of results/summary.json.
# Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
VITA=${VITA:-.venv/bin/vita-vla}
PYTHON=${PYTHON:-.venv/bin/python}
SUITES=${SUITES:-libero_object libero_spatial}
EPISODES=${EPISODES:-30}   # demonstrations per task
STARTS=${STARTS:-5}        # evaluation episodes per task
SIZE=${SIZE:-96}           # pixels
WORK=${WORK:-work}
# Updates.
TEACHER_STEPS=${TEACHER_STEPS:-6000}
ALIGN_STEPS=${ALIGN_STEPS:-1000}
FINETUNE_STEPS=${FINETUNE_STEPS:-1500}
PUBLISH=${PUBLISH:-yes}

for suite in $SUITES; do
  run=$WORK/$suite
  stage() { [ -e "$run/$1/checkpoints/last" ] || $VITA "${@:2}" --demos "$run/demos" --out "$run/$1"; }
  $VITA demos record --suite "$suite" --episodes "$EPISODES" --size "$SIZE" --root "$run/demos" --workers 2
  stage teacher teacher --steps "$TEACHER_STEPS"
  stage align align --teacher "$run/teacher" --steps "$ALIGN_STEPS"
  stage finetune finetune --from "$run/align" --steps "$FINETUNE_STEPS"
  stage only_finetune finetune --teacher "$run/teacher" --only-finetune --steps "$FINETUNE_STEPS"
  $VITA eval "$run/teacher" "$run/finetune" "$run/only_finetune" expert --run "$run" \
    --suite "$suite" --episodes "$STARTS" --size "$SIZE" --quality light
  if [ "$PUBLISH" = yes ]; then
    $PYTHON scripts/publish.py "$run" "results/libero/$suite" --command "bash runs/libero_scripted.sh" \
      "c.${suite}_teacher=teacher" "c.${suite}_two_stage=finetune" "c.${suite}_only_finetune=only_finetune" \
      "c.${suite}_expert=expert" "c.${suite}_two_stage_minus_only_ft=finetune-only_finetune"
  fi
done
