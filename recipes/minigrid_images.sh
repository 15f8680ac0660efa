#!/usr/bin/env bash
# MiniGrid in pictures, from nothing to tables: collect, train the image tokenizer, tokenize, make a tiny model with
# rows for the codes, and run the evidence. What is there already is not made again.
#
# Needs: two CPU cores, 8 GB of memory, swirl-nemo[worlds,images].
# Expect: data in minutes, a base model in 22, then 43 minutes a seed with two at once on two cores; tables in
# docs/evidence/minigrid_images.md.
# Command: recipes/minigrid_images.sh [OPTION]...   those of recipes/evidence.py, e.g. --seeds 1
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
python recipes/evidence.py minigrid_images --runs swirl "$@"
python recipes/evidence_tables.py
