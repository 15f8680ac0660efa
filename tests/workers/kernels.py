"""Transformer Engine's layers, attention and norms by a stand-in (stand_ins/transformer_engine), beside local ones and
beside emulated FP8: Megatron processes for test_transformer_engine.py.

float32, which the real kernels do not take, so that nothing but the order of sums can differ. Layers 1 and 2 of four
are in FP8 where there is any.
"""

import sys
from pathlib import Path

from workers import setting
from workers.layouts import TESTS, fork, import_stack

SHAPE = setting.SHAPE | {"layers": 4, "ffn": 64}
KERNELS = ("kernels=transformer_engine",)
FP8 = ("precision.fp8_amax_history_len=3", "precision.dtype=fp32")
CASES = {  # processes, settings
    "TE TP2 SP": (2, (*KERNELS, "parallel.tensor=2", "parallel.sequence=true")),
    "local": (1, ()),
    "FP8": (1, ("precision=fp8_hybrid", *FP8)),
    "emulated": (1, ("precision=fp8_emulated", *FP8)),
}
LOADED = {"local": "TE TP2 SP", "FP8": "local", "emulated": "FP8"}  # whose checkpoint a case loads at its end


def states(session) -> dict[tuple[int, str], list]:
    """Scales and histories by layer and linear layer."""
    found = {}
    for layer in session.actor.get_model_module_list()[0].decoder.layers:
        for name, module in layer.named_modules():
            state = module.get_extra_state() if hasattr(module, "weight") and hasattr(module, "bias") else None
            if state is not None:
                found[layer.layer_number, name] = state.tolist()
    return found


def visit(session, work: Path, name: str) -> dict:
    from workers import rooms

    from swirl_nemo import supervised
    from swirl_nemo.checkpoint import saving
    from swirl_nemo.roles import IDM

    rows = rooms.labelled(session)[:6]
    pairs = [(IDM, row) for row in rows]
    session.sets.become(IDM.name)
    session.actor.reset_optimizer()
    seen = {"steps": [], "states": [], "dtype": [], "training": []}
    session.actor.cfg.swirl_fp8_scoring = True
    seen["untrained"] = rooms.target_logprobs(session, IDM, rows)
    for lr, micro_batch in ((0.0, 6), (rooms.SFT_LR, 6), (rooms.SFT_LR, 3)):
        session.cfg.parallel.micro_batch = micro_batch
        seen["steps"].append(supervised.step(session, pairs, lr, rooms.CLIP))
        session.sets.trained()
        seen["states"].append(states(session))
        for precision in ("dtype", "training"):
            session.actor.cfg.swirl_fp8_scoring = precision == "training"
            seen[precision].append(rooms.target_logprobs(session, IDM, rows))
    for precision in ("dtype", "training"):
        session.actor.cfg.swirl_fp8_scoring = precision == "training"
        seen[f"rollout {precision}"] = rooms.rollout(session, "plain")
    seen["after scoring"] = states(session)
    keys = session.actor.sharded_state_dict()
    seen["keys"] = {key: tuple(getattr(value, "global_shape", ())) for key, value in keys.items()}
    return seen | sets(session) | checkpoints(session, work, name, saving)


def sets(session) -> dict:
    """Of the trained set, and of one that never was, whatever was done before."""
    from swirl_nemo.roles import FWM, IDM

    seen = {}
    session.sets.become(IDM.name)
    with session.sets.wear(FWM.name):
        seen["other set"] = states(session)
        with session.sets.wear(IDM.name):
            seen["worn"] = states(session)
    session.sets.become(FWM.name)
    session.sets.become(IDM.name)
    return seen | {"come back": states(session)}


def checkpoints(session, work: Path, name: str, saving) -> dict:
    """Log-probs of what is saved and of what is loaded then, in the precision of training and without FP8."""
    from workers import rooms

    from swirl_nemo.checkpoint.run_state import load_weights
    from swirl_nemo.roles import IDM

    def logprobs(what: str) -> dict:
        seen = {}
        for precision in ("dtype", "training"):
            session.actor.cfg.swirl_fp8_scoring = precision == "training"
            seen[f"{what} {precision}"] = rooms.target_logprobs(session, IDM, rooms.labelled(session)[:6])
        return seen

    (work / "saved").mkdir(exist_ok=True)
    saving.save_weights(session.actor, Path(session.cfg.model.idm), work / "saved" / name)
    seen = logprobs("saved")
    if name in LOADED:
        load_weights(session.actor, work / "saved" / LOADED[name])
        seen |= {"loaded states": states(session)} | logprobs("loaded")
    return seen


def _visit(work: Path, name: str) -> None:
    import torch

    from swirl_nemo.session import Session
    from swirl_nemo.settings import compose

    extra = [*CASES[name][1], f"run.name={name.replace(' ', '_')}"]
    session = Session(compose([*setting.overrides(work), *extra]))  # unchecked: there is no GPU
    session.load()
    result = visit(session, work, name)
    if session.is_main:
        torch.save(result, work / f"{name}.pt")


def main(work: Path) -> None:
    sys.path.insert(0, str(TESTS / "stand_ins"))
    import_stack()
    fork(setting.make, work, SHAPE)
    for name, (processes, _) in CASES.items():
        fork(_visit, work, name, processes=processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
