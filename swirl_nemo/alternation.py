"""The driver: warm-up, then iterations of annotate, phase, swap, phase; baselines; held-out figures.

A run is a list of stages that follows from its configuration. Its state is which stage, how many of its steps, and how
many optimizer steps in all; everything random is drawn from (seed, place), so these counters, the weight sets and the
optimizer are all that a checkpoint needs to go on exactly, in any layout.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import torch.distributed as dist

from . import annotation, supervised
from .config import Baseline, PhaseConfig, Schedule, SftConfig, SwirlConfig, Weights
from .data.order import Order
from .data.renaming import Renamer
from .data.transition import Transition
from .data.transitions import TransitionFile, with_actions
from .evaluation import held_out, lookahead
from .guard import judge
from .interrupt import Interrupt
from .phase import Step, grpo_step
from .pretraining import StateOnlyRows
from .roles import FWM, IDM, ROLES, Role, taught_by_annotations
from .runs import check_settings
from .schedule import learning_rate
from .session import REFERENCE, Session

BASELINES = [baseline.value for baseline in Baseline]
MODELS = {"warmup": "warmup", "phase": "swirl", **{name: name for name in BASELINES}}  # what a kind of stage makes


@dataclass(frozen=True)
class Stage:
    """kind: pretrain, warmup, phase or a baseline; roles: those trained in it, both where weights are shared."""

    kind: str
    roles: tuple[Role, ...]
    iteration: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.kind} {'+'.join(role.name for role in self.roles)}"


@dataclass
class State:
    """Counters of a run. `step` counts within the stage; `optimizer_step` and `tokens` trained on over the run.

    `best` is of each weight set, where alternation.only_better: its highest exact match on validation, and the
    iteration that it had it after.
    """

    stage: int = 0
    step: int = 0
    optimizer_step: int = 0
    tokens: int = 0
    nonfinite: int = 0  # steps in a row, up to now, that were skipped
    best: dict[str, tuple[float, int]] = field(default_factory=dict)


def stages(cfg: SwirlConfig) -> list[Stage]:
    """The run, in order."""
    order = [ROLES[name.value] for name in cfg.alternation.order]
    apart = [(role,) for role in (FWM, IDM)]
    together = [(FWM, IDM)] if cfg.model.weights is Weights.shared else apart
    plan = [Stage("pretrain", (FWM, IDM), 0, cfg.pretrain.steps)] if cfg.pretrain.steps else []
    # A step of both roles has half a batch of each: as many rows a role as with a set of weights each
    plan += [Stage("warmup", roles, 0, cfg.warmup.steps * len(roles)) for roles in together]
    for iteration in range(1, cfg.alternation.iterations + 1):
        plan += [Stage("phase", (role,), iteration, phase_of(cfg, role).steps) for role in order]
    for baseline in cfg.alternation.baselines:
        last, merged = cfg.alternation.iterations, baseline is Baseline.merged
        plan += [
            Stage(baseline.value, roles, last, 0 if merged else sum(_optimizer_steps(cfg, role) for role in roles))
            for roles in ([(FWM, IDM)] if merged else together)
        ]
    return plan


def _reader(rows: Sequence[Transition], seed: int, count: int) -> Callable[[int], list[Transition]]:
    """A step's own `count` rows, in the order that `seed` fixes; none where count is 0."""
    if count == 0:
        return lambda step: []
    order = Order(len(rows), seed)
    return lambda step: [rows[i] for i in order.indices(step * count, count)]


def phase_of(cfg: SwirlConfig, role: Role) -> PhaseConfig:
    return getattr(cfg.phase, role.name)


def _optimizer_steps(cfg: SwirlConfig, role: Role) -> int:
    """How many optimizer steps SWIRL spends on a role, for a baseline to have as many."""
    phase = phase_of(cfg, role)
    visits = sum(name.value == role.name for name in cfg.alternation.order)
    return cfg.alternation.iterations * visits * phase.steps * phase.optimizer_steps


def _supervised_rows(cfg: SwirlConfig, role: Role, played: Sequence[Role]) -> int:
    """Of an optimizer step of the role's phase, whose weights play such roles."""
    phase = phase_of(cfg, role)
    rows = phase.mstep_batch * (phase.mstep > 0) * len(taught_by_annotations(role, played))
    rows += phase.replay_batch * (phase.replay > 0) * len(played)
    return rows // phase.optimizer_steps


class Driver:
    """Runs the stages on a session, from its newest checkpoint if it has one."""

    def __init__(self, session: Session):
        from .checkpoint.saving import Saver

        self.session, self.cfg = session, session.cfg
        self.saver = Saver(session)
        self.plan = stages(self.cfg)
        self.state = State()
        data = self.cfg.data
        self.labelled = TransitionFile(data.labelled, data.max_labels, data.history)
        self.unlabelled = TransitionFile(data.unlabelled, data.max_unlabelled, data.history)
        stacks = session.run.folder / "stuck" / f"{dist.get_rank()}.txt"
        self.interrupt = Interrupt(stacks, self.cfg.cluster.slurm.signal_seconds)
        session.between_batches = self._stop_if_asked

    def start(self) -> None:
        """Load the newest sound checkpoint of this run, or the starting models where it has none yet.

        Raises ValueError where it has some and none is sound, and for a labelled or held-out prompt that is too long.
        """
        from .checkpoint import run_state

        self._check_lengths()
        run = self.session.run
        folder = run_state.newest(run)
        if folder is None:
            self.session.load()
            if run.position:
                run.say(f"{run.folder}: ended before its first checkpoint: starts anew")
            run.go_on(b"")
            return
        saved = run_state.load(self.session, folder)
        self.state = State(**saved["counters"])
        run.go_on((folder / run_state.METRICS).read_bytes())

    def _check_lengths(self) -> None:
        """After hours of training the first evaluation would be the first to find it."""
        data, limit = self.cfg.data, self.cfg.eval.transitions or None
        held_out = (data.validation, data.test, *data.further_tests)
        files = [(data.labelled, self.labelled), *((f, TransitionFile(f, limit, data.history)) for f in held_out)]
        for path, rows in files:
            for role, row in product(ROLES.values(), rows):
                try:
                    self.session.prompt(role, row)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error

    def run(self, until: str | None = None) -> None:
        """All stages that are left; `until` names the kind of stage after which to stop."""
        while self.state.stage < len(self.plan) and self.plan[self.state.stage].kind != until:
            self._run_stage(self.plan[self.state.stage])
        self.saver.wait()

    def _run_stage(self, stage: Stage) -> None:
        resumed = self.state.step > 0
        if not resumed:
            self._enter(stage)
        one_step = self._stepper(stage)
        while self.state.step < stage.steps:
            self.session.watch.at("", f"{stage.name} step {self.state.step + 1}")
            record = one_step(self.state.step)
            self.saver.advance()
            batch = record.pop("nonfinite", None)
            self.state.step += 1
            self.state.optimizer_step += record.pop("optimizer_steps")
            self.state.tokens += record.pop("tokens")
            counters = {"step": self.state.step, "optimizer_step": self.state.optimizer_step}
            record = {"iteration": stage.iteration, **record, **counters}
            self.session.run.log(record, stage.steps)
            self.state.nonfinite = judge(
                self.cfg.run, self.session.run, record, batch, self.state.nonfinite, self.session.device
            )
            self._stop_if_asked()
            every = self.cfg.run.save_every
            if every and self.state.step % every == 0 and self.state.step < stage.steps:
                self.save()
        self._leave(stage)

    def _stop_if_asked(self) -> None:
        """Save and end with code 0, where any process was asked to. Collective.

        After a step, and between batches of annotation and evaluation, which can take longer than a scheduler waits.
        Before a stage's first step there is nothing to save: the stage before did, as it was left.
        """
        if self.interrupt.requested(self.session.device):
            if self.state.step > 0:
                self.save()
            self.saver.wait()
            raise SystemExit(0)

    def _enter(self, stage: Stage) -> None:
        """Dress the model for the stage. A phase starts with a fresh optimizer, its policy as the reference."""
        session = self.session
        if stage.kind in BASELINES:
            self._start_baseline(stage)
        session.sets.become(session.set_of(stage.roles[0]))
        session.actor.reset_optimizer()
        if stage.kind == "phase":
            session.sets.snapshot(REFERENCE)

    def _leave(self, stage: Stage) -> None:
        """Held-out figures and a lasting checkpoint where a model is finished; then on to the next stage."""
        sets, after, score = self.session.sets, self._after(), None
        if stage.kind == "pretrain" and self.cfg.model.weights is Weights.separate:
            sets.copy(FWM.name, IDM.name)
        model = MODELS.get(stage.kind)
        if model and (after is None or (after.kind, after.iteration) != (stage.kind, stage.iteration)):
            figures = self._evaluate(model, stage.iteration)
            score = sum(figures[f"{role}/exact_match"] for role in ROLES) / len(ROLES)
            if self.cfg.alternation.only_better and model in ("warmup", "swirl"):
                self._keep_better(figures, stage.iteration)
                score = sum(value for value, _ in self.state.best.values()) / len(self.state.best)
            if after is None or after.kind != stage.kind:
                self.save(model)
        if stage.kind == "phase":
            sets.drop(REFERENCE)
        self.state.stage, self.state.step = self.state.stage + 1, 0
        self.save(score=score)

    def _keep_better(self, figures: dict[str, float], iteration: int) -> None:
        """Give a weight set whose exact match on validation is lower than it was its best weights back.

        checkpoints/better holds the best of each. It may be newer than the checkpoint that a stopped run goes on from:
        what was better then is so again.
        """
        from .checkpoint.run_state import load_weights

        sets, best, fallen = self.session.sets, self.state.best, []
        for name in self.session.policies:
            played = [figures[f"{role.name}/exact_match"] for role in self.session.roles_of(name)]
            now = sum(played) / len(played)
            if name in best and now < best[name][0]:
                fallen.append(name)
                value, earlier = best[name]
                told = f"{now:.1%} on validation after iteration {iteration}, {value:.1%} after {earlier}"
                self.session.run.say(f"{name}: {told}: taken back")
            else:
                best[name] = now, iteration
        for name in fallen:
            sets.become(name)
            load_weights(self.session.actor, self.session.run.folder / "checkpoints" / "better" / name)
            sets.trained()
        if len(fallen) < len(self.session.policies):
            self.save("better")

    def _after(self) -> Stage | None:
        return self.plan[self.state.stage + 1] if self.state.stage + 1 < len(self.plan) else None

    def _start_baseline(self, stage: Stage) -> None:
        """A baseline goes on from the warmed-up models, or is made of another's."""
        from .checkpoint import run_state

        checkpoints, sets = self.session.run.folder / "checkpoints", self.session.sets
        if stage.kind == "merged":
            run_state.load(self.session, checkpoints / "continued_sft")
            sets.average(FWM.name, IDM.name)
        elif self.plan[self.state.stage - 1].kind != stage.kind:
            run_state.load(self.session, checkpoints / "warmup")

    # steps

    def _stepper(self, stage: Stage) -> Callable[[int], dict]:
        if stage.kind == "phase":
            return self._phase_stepper(stage)
        if stage.kind == "pretrain":
            return self._pretrain_stepper(stage)
        sft = self.cfg.warmup
        if stage.kind in BASELINES:
            phase = phase_of(self.cfg, stage.roles[-1])
            rows = max(_supervised_rows(self.cfg, role, stage.roles) for role in stage.roles)
            batch = max(rows, sft.batch)  # enough for every data-parallel rank
            sft = SftConfig(stage.steps, batch, phase.lr, phase.lr_warmup, Schedule.constant, sft.renamed)
        return self._sft_stepper(stage, sft, self._sft_rows(stage))

    def _sft_rows(self, stage: Stage) -> Sequence[Transition]:
        if stage.kind == "pseudo_labels":
            return [annotated.transition for annotated in self._annotations(stage)]
        if stage.kind == "all_labels":
            return [*self.labelled, *with_actions(self.unlabelled, self.cfg.data.unlabelled_actions)]
        return self.labelled

    def _sft_stepper(self, stage: Stage, sft: SftConfig, source: Sequence[Transition]) -> Callable[[int], dict]:
        read, share = _reader(source, self._seed(stage, 0), sft.batch), len(stage.roles)
        renamed = Renamer(self.unlabelled, sft.renamed, self._seed(stage, 2))
        # The IDM's rows would ask for the differences behind the very prompt that asks for the action
        count = self.cfg.pretrain.rehearsed if FWM in stage.roles else 0
        rehearsed = self._state_only_pairs(stage, 1, 2 * count)

        def one_step(step: int) -> dict:
            pairs = [(role, renamed(row, step)) for row in read(step)[: sft.batch // share] for role in stage.roles]
            return self._sft_step(stage, sft, step, pairs + [pair for pair in rehearsed(step) if pair[0] is FWM])

        return one_step

    def _pretrain_stepper(self, stage: Stage) -> Callable[[int], dict]:
        cfg = self.cfg.pretrain
        pairs = self._state_only_pairs(stage, 0, cfg.batch)
        return lambda step: self._sft_step(stage, cfg, step, pairs(step))

    def _state_only_pairs(self, stage: Stage, stream: int, batch: int) -> Callable[[int], supervised.Pairs]:
        """A step's `batch` rows of state-only transitions, half of them of each role."""
        if batch == 0:
            return lambda step: []
        data, seed, columns = self.cfg.data, self._seed(stage, stream), self.session.prompter.image_columns
        read = _reader(self.unlabelled, seed, batch)
        rows = StateOnlyRows(self.cfg.pretrain, self.unlabelled, data.fact_separator, seed, columns)
        return lambda step: rows.pairs(read(step)[: batch // 2], step)

    def _sft_step(self, stage: Stage, sft: SftConfig, step: int, pairs: supervised.Pairs) -> dict:
        lr = learning_rate(step, peak=sft.lr, warmup=sft.lr_warmup, total=stage.steps, schedule=sft.schedule)
        metrics = supervised.step(self.session, pairs, lr, self.cfg.optimizer.clip_grad)
        role = "+".join(role.name for role in stage.roles)
        return {"phase": stage.kind, "role": role, **metrics, "optimizer_steps": 1}

    def _phase_stepper(self, stage: Stage) -> Callable[[int], dict]:
        (role,) = stage.roles
        phase = phase_of(self.cfg, role)
        rows, annotated = self._phase_rows(stage, phase)
        prompts = _reader(rows, self._seed(stage, 0), phase.prompts)
        # Phase I's M-step is on the transitions that it rolls out from, where the batches are equal
        mstep = _reader(annotated, self._seed(stage, 0 if role is FWM else 5), phase.mstep_batch if phase.mstep else 0)
        replay = _reader(self.labelled, self._seed(stage, 1), phase.replay_batch if phase.replay else 0)
        renamed = Renamer(self.unlabelled, self.cfg.warmup.renamed, self._seed(stage, 6))

        def one_step(step: int) -> dict:
            lr = learning_rate(step, peak=phase.lr, warmup=phase.lr_warmup, total=stage.steps, schedule=phase.schedule)
            replayed = [renamed(row, step) for row in replay(step)]
            read = Step(prompts(step), mstep(step), replayed, lr, seed=(self._seed(stage, 2), step))
            metrics = grpo_step(self.session, role, read)
            return {"phase": role.name, **metrics, "optimizer_steps": phase.optimizer_steps}

        return one_step

    def _phase_rows(self, stage: Stage, phase: PhaseConfig):
        """What the phase draws prompts from, and what its M-step draws annotated transitions from.

        Phase I needs actions for both: gold where labelled, else those of the current IDM. Phase II's prompts are
        states alone; annotations tell where the IDM is certain, and are what its M-step trains on.
        """
        ceiling, wanted = self.cfg.annotate.certainty_ceiling, phase.steps * max(phase.prompts, phase.mstep_batch)
        (role,) = stage.roles
        if role is IDM and ceiling is None and not phase.mstep:
            return self.unlabelled, []
        annotated = self._annotations(stage)
        if role is FWM:
            rows = annotation.select(annotated, role, phase, ceiling)[:wanted] + list(self.labelled)
            return rows, rows
        sure = annotation.select(annotated, role, phase, ceiling)[:wanted] if phase.mstep else []
        return annotation.uncertain_first(annotated, role, ceiling)[:wanted], sure

    def _annotations(self, stage: Stage) -> list[annotation.Annotated]:
        """Actions of the current IDM for a pool of state-only transitions, drawn when the phase begins.

        A baseline's are those of the warmed-up IDM, for both roles.
        """
        baseline, folder = stage.kind in BASELINES, self.session.run.folder
        name = f"{stage.kind if baseline else f'{stage.iteration}-{stage.roles[0].name}'}.jsonl"
        files = folder / f"annotations-{name}", folder / f"annotation_scores-{name}"
        if self.state.step > 0 or (baseline and self.plan[self.state.stage - 1].kind == stage.kind):
            return annotation.read(*files)
        size = min(self.cfg.annotate.pool or len(self.unlabelled), len(self.unlabelled))
        pool = Order(len(self.unlabelled), self._seed(stage, 3)).indices(0, size)
        annotated = annotation.annotate(self.session, [self.unlabelled[i] for i in pool], (self._seed(stage, 4),))
        if self.session.is_main:
            annotation.write(annotated, *files)
        return annotated

    def _seed(self, stage: Stage, stream: int) -> int:
        """One number for each stream of random draws of each stage."""
        return (self.cfg.run.seed * 1009 + self.plan.index(stage)) * 16 + stream

    # saving and evaluating

    def save(self, name: str | None = None, score: float | None = None) -> None:
        """A checkpoint of this moment; named ones are kept for good, numbered ones pruned to run.keep newest and
        run.keep_best of the highest `score`."""
        self.session.watch.at("save")
        session, inside = self.session, self.state.step > 0 and name is None
        in_phase = inside and self.plan[self.state.stage].kind == "phase"
        state = {
            "counters": asdict(self.state),
            "policy": session.sets.policy,
            "optimizer": inside and session.actor.has_stepped,
            "metrics_position": session.run.position,
            "score": score,
        }
        sets = [*session.policies, *([REFERENCE] if in_phase else [])]
        name, run = name or f"{self.state.optimizer_step:08d}", self.cfg.run
        # Named ones are loaded again in this run
        self.saver.save(name, state, sets, background=run.save_in_background and name.isdigit())

    def summarise(self) -> dict:
        """Read the test splits once for each finished model; write summary.json and report.html."""
        from .checkpoint import run_state

        session, results, ahead = self.session, {}, {}
        further: dict[str, dict] = {Path(path).stem: {} for path in self.cfg.data.further_tests}
        kinds = dict.fromkeys(MODELS[stage.kind] for stage in self.plan if stage.kind in MODELS)
        for model in kinds:
            run_state.load(session, session.run.folder / "checkpoints" / model)
            results[model], samples = held_out.evaluate(session, self.cfg.data.test)
            line = {"eval": True, "iteration": self.cfg.alternation.iterations, "model": model, "split": "test"}
            session.run.log(line | results[model])
            session.run.samples(f"test, {model}", samples)
            for path in self.cfg.data.further_tests:
                further[Path(path).stem][model] = held_out.evaluate(session, path)[0]
            if model in ("warmup", "swirl"):
                ahead[model], samples = lookahead.figures(session)
                if samples:
                    session.run.samples(f"rolled forward, {model}", samples)
        summary = {
            "held_out": held_out.by_role(results),
            "cycle_consistency": {model: figures["cycle_consistency"] for model, figures in results.items()},
            "further": {name: held_out.by_role(figures) for name, figures in further.items()},
            "lookahead": ahead,
            "labels_used": len(self.labelled),
            "state_only": len(self.unlabelled),
            "world": self.cfg.data.world,
            "seed": self.cfg.run.seed,
            "kept": {name: iteration for name, (_, iteration) in self.state.best.items()},
            "optimizer_steps": self.state.optimizer_step,
            "tokens": self.state.tokens,
        }
        session.run.finish(summary)
        return summary

    def _evaluate(self, model: str, iteration: int) -> dict[str, float]:
        """Validation figures of the current weight sets, into metrics.jsonl and samples.jsonl as well."""
        self.session.watch.at("evaluation")
        figures, samples = held_out.evaluate(self.session, self.cfg.data.validation)
        self.session.run.log({"eval": True, "iteration": iteration, "model": model, "split": "validation", **figures})
        self.session.run.samples(f"{model}, iteration {iteration}", samples)
        return figures


def train(cfg: SwirlConfig) -> dict:
    """`swirl train`: all stages, then the test split; writes summary.json and report.html. Returns the summary."""
    check_settings(cfg)
    session = Session(cfg)
    with session.open_run():
        driver = Driver(session)
        driver.start()
        driver.run()
        return driver.summarise()


def warmup(cfg: SwirlConfig) -> None:
    """`swirl warmup`: up to the warmed-up models, checkpoints/warmup; `swirl train` goes on from there."""
    check_settings(cfg)
    session = Session(cfg)
    with session.open_run():
        driver = Driver(session)
        driver.start()
        driver.run(until="phase")


def annotate(cfg: SwirlConfig) -> Path:
    """`swirl annotate`: actions of model.idm for all of data.unlabelled, as annotations.jsonl in the run folder."""
    session = Session(cfg)
    session.load()
    file = TransitionFile(cfg.data.unlabelled, cfg.data.max_unlabelled, cfg.data.history)
    rows = file[: cfg.annotate.pool or None]
    annotated = annotation.annotate(session, rows, (cfg.run.seed,))
    path = session.run.folder / "annotations.jsonl"
    if session.is_main:
        session.run.folder.mkdir(parents=True, exist_ok=True)
        annotation.write(annotated, path, session.run.folder / "annotation_scores.jsonl")
    return path


def evaluate(cfg: SwirlConfig) -> dict:
    """`swirl eval`: held-out figures of model.fwm and model.idm on data.test, and how far the FWM sees where asked."""
    session = Session(cfg)
    session.load()
    figures, _ = held_out.evaluate(session, cfg.data.test)
    return figures | lookahead.figures(session)[0]
