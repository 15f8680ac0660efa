"""For every test: no hub, and one thread, since a tiny model is slower on several and the machine is shared.

The fixtures are the Megatron processes that several files look at.
"""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items):
    """Of two workers, one makes what several tests look at; what takes longest begins first."""
    for item in items:
        shared = [name for name in ("layouts", "runs") if name in item.fixturenames]
        item.add_marker(pytest.mark.xdist_group((shared or [item.path.stem])[0]))
    items.sort(key=lambda item: item.get_closest_marker("megatron") is None)


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
