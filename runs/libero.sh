#!/usr/bin/env bash
# The paper's recipe on the hub's human demonstrations of LIBERO (lerobot/libero, 1693 episodes of the four
# suites): teacher with seven steps of history, alignment, finetuning and only-finetune with the preset
# `paper-libero`, evaluated under LeRobot's protocol on the official initial states, 50 episodes per task.
#
# Differs from the paper: it pretrains on LIBERO-90, which this dataset does not hold, and finetunes suite by
# suite, here one model learns all four; its teacher learned 40 epochs in batches of 512, here 9 epochs in batches
# of 64; it goes on from the checkpoints of the 6th of 40 and the 3rd of 20 epochs, here the runs are that long
# (6 and 3 epochs) and the learning rate ends there; finetune in pure bfloat16, as fits one GPU. Protocol `lerobot`
# because the data has LeRobot's conventions. VLM=mini also keeps the mini VLM's own learning rates and align_weight.
#
# Hardware: the flags below are those that `vita-vla plan` finds for VITA-1.5-7B on one H200 (align 94 GiB, finetune
# 111 GiB); for another GPU ask it again and set ALIGN_FLAGS and FINETUNE_FLAGS. 100 GiB of memory would hold the
# frames; with less, WORKERS processes read them from disk. Wall time, estimated from the H200's data sheet, not
# measured, and without reading data: align 40 hours, each finetune 34, the teacher not known.
# Several GPUs: LAUNCH="torchrun --nproc-per-node=8" (or accelerate launch ...), and an eighth of --policy.accumulation
# and of finetune's --batch-size, which count per process.
# Expected: results/libero/hub_<suite> and the keys c.libero_hub_<suite>_*. NOT RUN yet with the hub's data or a GPU;
# a small dataset with its columns goes through in the tests. Needs the extra `libero` and the assets (docs/libero.md).
# Continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
VITA=${VITA:-.venv/bin/vita-vla}
HF=${HF:-.venv/bin/hf}
PYTHON=${PYTHON:-.venv/bin/python}
RUN=${RUN:-work/libero}
DEMOS=${DEMOS:-$RUN/demos}
VLM=${VLM:-work/vita15}          # docs/vita15.md; or a folder or a hub id of another VLM, or mini
TEACHER=${TEACHER:-base}         # size of the teacher
HISTORY=${HISTORY:-7}
DEVICE=${DEVICE:-cuda}
LAUNCH=${LAUNCH:-}
WORKERS=${WORKERS:-8}            # processes that read frames, where these do not fit in memory
STARTS=${STARTS:-50}             # evaluation episodes per task
SUITES=${SUITES:-libero_spatial libero_object libero_goal libero_10}
PUBLISH=${PUBLISH:-yes}
# Updates: 273465 frames; 256 and 128 samples per update; 6 and 3 epochs (docs/presets.md).
TEACHER_STEPS=${TEACHER_STEPS:-40000}
TEACHER_FLAGS=${TEACHER_FLAGS:---batch-size 64}
ALIGN_STEPS=${ALIGN_STEPS:-6400}
ALIGN_ACCUMULATION=${ALIGN_ACCUMULATION:-16}
ALIGN_FLAGS=${ALIGN_FLAGS:---batch-size 16 --policy.vlm_dtype=bfloat16}
FINETUNE_STEPS=${FINETUNE_STEPS:-6400}
FINETUNE_FLAGS=${FINETUNE_FLAGS:---batch-size 128 --policy.vlm_dtype=bfloat16 --policy.gradient_checkpointing=true}

[ -e "$DEMOS/meta/info.json" ] || $HF download lerobot/libero --repo-type dataset --local-dir "$DEMOS"
$VITA demos check "$DEMOS"
# What its numbers mean: pictures turned by 180 degrees, axis-angle, 20 Hz although it says 10 frames per second.
$VITA demos declare "$DEMOS" --as lerobot/libero

stage() {  # NAME VERB FLAG...
  [ ! -e "$RUN/$1/checkpoints/last" ] || return 0
  local verb=("${@:2}" --demos "$DEMOS" --out "$RUN/$1" --device "$DEVICE" --online "--num_workers=$WORKERS")
  if [ -z "$LAUNCH" ]; then
    $VITA "${verb[@]}"
    return
  fi
  # What the verb would run, in several processes.
  local line
  line=$($VITA "${verb[@]}" --dry-run | sed -n 's/^.*lerobot-train //p')
  eval "$LAUNCH $(dirname "$VITA")/lerobot-train $line"
}
paper=(--vlm "$VLM" --policy.preset=paper-libero "--policy.n_obs_steps=$HISTORY" --seed 42)
# Words of *_FLAGS are flags; the teacher executes as the students' preset says, and its history grows as in Seer's
# evaluation. --steps counts batches, of which an update takes --policy.accumulation.
stage teacher teacher --preset "$TEACHER" --steps "$TEACHER_STEPS" "--policy.n_obs_steps=$HISTORY" $TEACHER_FLAGS \
  --policy.auxiliary_weight=0 --policy.history=grow --policy.n_action_steps=1 --policy.temporal_ensemble_coeff=0.01
stage align align --teacher "$RUN/teacher" "${paper[@]}" --steps $((ALIGN_STEPS * ALIGN_ACCUMULATION)) \
  "--policy.accumulation=$ALIGN_ACCUMULATION" $ALIGN_FLAGS
stage finetune finetune --from "$RUN/align" --seed 42 --steps "$FINETUNE_STEPS" --policy.accumulation=1 $FINETUNE_FLAGS
stage only_finetune finetune --teacher "$RUN/teacher" --only-finetune "${paper[@]}" --steps "$FINETUNE_STEPS" \
  $FINETUNE_FLAGS
for suite in $SUITES; do
  $VITA eval "$RUN/teacher" "$RUN/finetune" "$RUN/only_finetune" --run "$RUN/$suite" \
    --suite "$suite" --episodes "$STARTS" --device "$DEVICE"
  $VITA report "$RUN/$suite"
  if [ "$PUBLISH" = yes ]; then
    key=c.libero_hub_${suite#libero_}
    $PYTHON scripts/publish.py "$RUN/$suite" "results/libero/hub_$suite" --command "bash runs/libero.sh" \
      "${key}_teacher=teacher" "${key}_two_stage=finetune" "${key}_only_finetune=only_finetune" \
      "${key}_two_stage_minus_only_ft=finetune-only_finetune"
  fi
done
[ "$PUBLISH" != yes ] || $PYTHON scripts/readme_tables.py
