#!/usr/bin/env bash
# MiniGrid in pictures, from nothing to a report: collect, train the image tokenizer, tokenize, make a tiny model with
# rows for the codes, train. What is there already is not made again.
#
# Needs: two CPU cores, 8 GB of memory, swirl-nemo[worlds,images].
# Expect: data and models in minutes. No training run was finished yet: see conf/experiment/minigrid_images.yaml.
# Command: recipes/minigrid_images.sh [KEY=VALUE]...   e.g. recipes/minigrid_images.sh run.seed=2 run.name=second
set -euo pipefail

[ -e data/minigrid_images/collect.json ] || swirl collect world=minigrid_images
[ -e models/minigrid_vqvae ] || swirl train-tokenizer
swirl tokenize
[ -e models/minigrid_images ] || {
  [ -e models/minigrid_images_hf ] || python - <<'PYTHON'
from pathlib import Path

from swirl_nemo.checkpoint.random_init import random_llama
from swirl_nemo.quickstart import TINY

random_llama(Path("models/minigrid_images_hf"), Path("data/minigrid_codes/tokenizer"), **TINY, seed=0)
PYTHON
  swirl import models/minigrid_images_hf models/minigrid_images --images 256:9x8
}
export OMP_NUM_THREADS=1
torchrun --standalone --nproc-per-node 2 -m swirl_nemo train experiment=minigrid_images "$@"
