#!/usr/bin/env bash
# LIBERO on scripted demonstrations: teacher, only-finetune and two-stage on one suite, evaluated on the official
# initial states (no demonstration begins there).
#
# Hardware: a GPU that renders, or two CPU cores with EPISODES=30 STARTS=5 SIZE=128. Recording costs 7 to 10 CPU
# seconds per episode at quality light. Not run to its end yet: no result of it is published.
# Needs the extra `libero` and the assets (docs/libero.md). Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
SUITE=${SUITE:-libero_object}
EPISODES=${EPISODES:-30}   # demonstrations per task
STARTS=${STARTS:-20}       # evaluation episodes per task
SIZE=${SIZE:-128}
RUN=${RUN:-work/$SUITE}
VITA=.venv/bin/vita-vla
stage() { [ -e "$RUN/$1/checkpoints/last" ] || $VITA "${@:2}" --out "$RUN/$1"; }

$VITA demos record --suite "$SUITE" --episodes "$EPISODES" --size "$SIZE" --root "$RUN/demos"
stage teacher teacher --demos "$RUN/demos"
stage align align --demos "$RUN/demos" --teacher "$RUN/teacher"
stage finetune finetune --demos "$RUN/demos" --from "$RUN/align"
stage only_finetune finetune --demos "$RUN/demos" --teacher "$RUN/teacher" --only-finetune
$VITA eval expert "$RUN/teacher" "$RUN/finetune" "$RUN/only_finetune" --run "$RUN" \
  --suite "$SUITE" --episodes "$STARTS" --size "$SIZE"
