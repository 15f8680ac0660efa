"""For every test: no hub, and one thread, since a tiny model is slower on several and the machine is shared.

The fixtures are the Megatron processes that several files look at.
"""

import importlib.util
import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that look at `layouts` or `runs`
TOGETHER = ("test_layouts", "test_loop", "test_memory", "test_resume", "test_rollout")


class Files(LoadScopeScheduling):
    """Of two workers, one runs a whole file; what a session makes once is made by one of them.

    pytest-xdist 3.8 has marks for that, but writes groups into ids that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0]).stem
        return "together" if file in TOGETHER else file


def pytest_xdist_make_scheduler(config, log) -> Files:
    return Files(config, log)


def pytest_collection_modifyitems(items) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: item.get_closest_marker("megatron") is None)


@pytest.fixture(scope="module")
def recipe(request):
    """The file of recipes/ that a file of tests is named after, as a module."""
    name = request.path.stem.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """Where `layouts` put its data, its models and the weights that it trained."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="session")
def layouts(work) -> dict[str, dict]:
    """What each layout of workers/layouts.py computed: a minute, once a session, for every test that asks."""
    from workers.layouts import compute

    return compute(work)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """The folder of the runs that workers/runs.py makes: a minute or two, once a session."""
    from workers.layouts import run_module

    folder = tmp_path_factory.mktemp("runs")
    run_module("workers.runs", folder)
    return folder / "runs"
