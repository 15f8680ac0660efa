"""`swirl plan` against figures that are not its own."""

import pytest

from swirl_nemo.planning.architecture import architecture, parameters
from swirl_nemo.settings import compose

PUBLISHED = {  # parameters that the models' own papers and cards state, billions
    "llama3_8b": 8.03,
    "llama3_70b": 70.6,
    "qwen2_5_7b": 7.62,
}


@pytest.mark.parametrize(("model", "billions"), PUBLISHED.items())
def test_parameters_are_those_that_the_models_papers_state(model, billions):
    assert parameters(architecture(compose([f"model={model}"]))) / 1e9 == pytest.approx(billions, abs=0.05)
