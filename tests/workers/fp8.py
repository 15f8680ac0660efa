"""Layouts with emulated FP8, and a run of it that stops and goes on: Megatron processes for test_fp8_training.py.

float32, so that what layouts have in common is not lost in rounding to bfloat16. Layers 1 and 2 of four are in FP8.
"""

import sys
from pathlib import Path

from workers import runs, setting
from workers.layouts import fork, import_stack

PRECISION = ("precision=fp8_emulated", "precision.dtype=fp32", "precision.fp8_amax_history_len=4")
SHAPE = setting.SHAPE | {"layers": 4, "ffn": 64}
ONE_BATCH = ("parallel.micro_batch=6",)
LAYOUTS = {
    "single": (1, ONE_BATCH),
    "TP2 SP": (2, (*ONE_BATCH, "parallel.tensor=2", "parallel.sequence=true")),
    "PP2": (2, (*ONE_BATCH, "parallel.pipeline=2")),
    "DP2": (2, ("parallel.micro_batch=3",)),
}
RUN = (
    *PRECISION,
    *("pretrain.steps=0", "warmup.steps=1", "alternation.order=[idm]", "alternation.baselines=[]"),
    *("phase.idm.steps=2", "phase.idm.optimizer_steps=1", "phase.idm.mstep=0", "annotate.certainty_ceiling=null"),
    *("run.save_every=1", "eval.transitions=1"),
)


def states(session) -> dict[tuple[int, str], list[list[float]]]:
    """Scales and history [1 + L, 3] by global layer number and name of the linear layer, of all stages."""
    import torch.distributed as dist

    mine = {place: module.get_extra_state().tolist() for place, module in linears(session).items()}
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return {key: value for part in gathered for key, value in part.items()}


def scales(session) -> dict[tuple[int, str], list[float]]:
    return {place: state[0] for place, state in states(session).items()}


def linears(session) -> dict:
    """This stage's layers that emulate FP8."""
    layers = session.actor.get_model_module_list()[0].decoder.layers
    every = {(layer.layer_number, name): module for layer in layers for name, module in layer.named_modules()}
    return {place: module for place, module in every.items() if hasattr(module, "scaling")}


def of_nothing(session) -> bool:
    """Whether the QKV layers make their bias of a zero input: the household's models have none."""
    import torch

    found = []
    for (_, name), module in linears(session).items():
        if name.endswith("linear_qkv"):
            module.bias = torch.nn.Parameter(torch.arange(float(module.output_size_per_partition)))
            with torch.no_grad():
                found.append(torch.equal(module(torch.zeros(16, 1, module.input_size))[0][0, 0], module.bias))
            module.bias = None
    return all(found)


def visit(session) -> dict:
    from workers import rooms

    from swirl_nemo import supervised
    from swirl_nemo.roles import FWM, IDM

    rows, cfg = rooms.labelled(session)[:6], session.actor.cfg
    pairs = [(IDM, row) for row in rows]
    session.sets.become(IDM.name)
    session.actor.reset_optimizer()
    seen = {"steps": [], "scales": [], "of nothing": of_nothing(session), "rows": set()}
    for module in linears(session).values():
        module.register_forward_pre_hook(lambda _, inputs: seen["rows"].add(inputs[0].shape[0]))
    for lr in (0.0, rooms.SFT_LR, rooms.SFT_LR):
        seen["steps"].append(supervised.step(session, pairs, lr, rooms.CLIP))
        seen["scales"].append(scales(session))
        for precision in ("dtype", "training"):
            cfg.swirl_fp8_scoring = precision == "training"
            seen.setdefault(precision, []).append(rooms.target_logprobs(session, IDM, rows))
    for precision in ("dtype", "training"):
        cfg.swirl_fp8_scoring = precision == "training"
        seen[f"rollout {precision}"] = rooms.rollout(session, "plain")
    seen["after scoring"], seen["states"] = scales(session), states(session)
    session.sets.become(FWM.name)
    seen["other set"] = scales(session)
    with session.sets.wear(IDM.name):
        seen["worn"] = scales(session)
    session.cfg.parallel.micro_batch = 1  # with one of two groups dead, DP2's ranks have 4 of them and none
    seen["half dead"] = rooms.half_dead(session)
    seen["trained in between"] = scales(session)
    session.sets.become(IDM.name)
    seen["come back"] = scales(session)
    return seen


def _visit(work: Path, name: str) -> None:
    import torch

    from swirl_nemo.session import Session
    from swirl_nemo.settings import load

    extra = [*PRECISION, *LAYOUTS[name][1], f"run.name={name.replace(' ', '_')}"]
    session = Session(load([*setting.overrides(work), *extra]))
    session.load()
    result = visit(session)
    if session.is_main:
        torch.save(result, work / f"{name}.pt")


def main(work: Path) -> None:
    import_stack()
    fork(setting.make, work, SHAPE)
    for name, (processes, _) in LAYOUTS.items():
        fork(_visit, work, name, processes=processes)
    runs.launch(work, "whole", *RUN)
    runs.launch(work, "stopped", *RUN, stop=runs.Stop("idm", None, 1))
    runs.launch(work, "stopped", *RUN)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
