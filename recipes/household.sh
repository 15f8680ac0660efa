#!/usr/bin/env bash
# Three seeds of the quickstart's world, and from their warmed-up models: Phase I's policy gradient off, and the paper's form.
# Needs: two CPU cores, 8 GB of memory, `make quickstart` once for data and model. Two `swirl` runs side by side took
# 12.6 minutes, a `published` one 10.7 beside other work; the whole script was not timed in one go.
# Expect: the tables of docs/household.md.
# Command: bash recipes/household.sh && python recipes/table.py runs/household-*
set -euo pipefail
export OMP_NUM_THREADS=1 # runs side by side, a core each

one() {
    local seed=$1 kind=$2 warm=runs/household-swirl-$1/checkpoints/warmup from=()
    shift 2
    if [ "$kind" != swirl ]; then
        from=(pretrain.steps=0 warmup.steps=0 "alternation.baselines=[]" "model.fwm=$warm/fwm" "model.idm=$warm/idm")
    fi
    swirl train run.seed="$seed" run.name="household-$kind-$seed" "$@" "${from[@]}"
}
seeds() {
    local pids=()
    for seed in 1 2 3; do one $seed "$@" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid"; done # one by one: a bare wait hides a run that failed
}
seeds swirl experiment=quickstart
seeds no_policy_gradient experiment=quickstart phase.fwm.policy_gradient=0
seeds published experiment=published
