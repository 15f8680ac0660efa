#!/usr/bin/env bash
# Seeds of the quickstart's world, each with Phase I's policy gradient on and off: the tables of docs/results.md.
# Needs: two CPU cores, 8 GB of memory, `make quickstart` once for data and model; about 12 CPU minutes a run.
# Expect: docs/results.md.
# Command: bash recipes/household.sh && python recipes/table.py runs/household-*
set -euo pipefail
export OMP_NUM_THREADS=1 # two runs side by side, a core each
one() { swirl train experiment=quickstart run.seed="$1" run.name="household-$2-$1" "${@:3}"; }
for seed in 1 2 3; do
    one $seed swirl &
    one $seed no_policy_gradient phase.fwm.policy_gradient=0 alternation.continued_sft=false &
    wait
done
