"""`swirl train --dry-run`: rank 0 of 256 in one process has the parameters that it should; mistakes are one line."""

import re
import subprocess
import sys

import pytest

from swirl_nemo import cli

BIG = "experiment=llama3_70b_32x8_fp8"


@pytest.mark.megatron
def test_rank_zero_of_256_holds_what_arithmetic_says(tmp_path):
    """Llama 3 70B: 80 layers of width 8192, 8 of 64 heads for keys, 28672 inner, 128256 tokens. Rank 0 of TP8 x PP4 x
    DP8 has an eighth of 20 layers and of the embedding, norms whole; the optimizer's part is an eighth of that."""
    command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "train", "--dry-run", BIG]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    norms, vocabulary = 2 * 8192, 128256 * 8192
    products = 8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 28672
    own, whole = 20 * (norms + products // 8) + vocabulary // 8, 80 * (norms + products) + 2 * vocabulary + 8192
    first, *rest = done.stdout.splitlines()
    assert first.startswith(
        f"rank 0 of 256, built on the meta device: {own:,} of {whole:,} parameters, {own // 8:,} of"
    )
    rows = [re.findall(r"[\w./-]+", line) for line in rest]
    assert ["data.labelled", "data/scienceworld/labelled.jsonl", "missing"] in rows
    assert ["1", "phase", "fwm", "200", "200", "1024", "16"] in rows  # 128 prompts of 8 over 8 ranks in eights
    assert ["2", "phase", "idm", "200", "200", "2048", "32"] in rows
    assert ["in", "all", "1000"] in rows
    assert not list(tmp_path.iterdir()), "nothing is written"


MISTAKES = {
    "experiment=llama3_80b": "no such choice",
    f"{BIG} parallel.tenso=8": "no such key: did you mean parallel.tensor?",
    f"{BIG} cluster.nodes=3": "does not divide the world of 24",
    f"{BIG} parallel.pipeline=32": "parallel.pipeline=32: does not divide the 80 num_layers of model.architecture",
    f"{BIG} parallel.tensor=16 cluster.devices=16": "parallel.tensor=16: does not divide the 8 num_query_groups",
    f"{BIG} phase.fwm.prompts=12": "phase.fwm.prompts=12: does not divide by 8",
    f"{BIG} model.max_length=9000": "model.architecture allows 8192 positions",
    f"{BIG} model=tiny model.fwm=nowhere": "model.fwm=nowhere: no model_config.yaml",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_one_line(overrides, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--dry-run", *overrides.split()])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and MISTAKES[overrides] in said and said.count("\n") == 1
