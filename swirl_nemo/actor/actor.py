"""The NeMo-Aligner actor of SWIRL: log-probs, generation and one optimizer step, under tensor and pipeline parallelism.

It is NeMo-Aligner's MegatronGPTActorModel with its three interfaces (`get_inference_log_probs`, `infer`,
`get_loss_and_metrics`) put on ScoringGPTModel: the head runs at completion positions only, old log-probs come from the
rollout, and the loss is a function of log-probs that the caller gives with each micro-batch.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import mcore_model_customize
from nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor import MegatronGPTActorModel
from nemo_aligner.utils.train_utils import prepare_for_training_step, set_eval, set_sync_funcs, set_train
from torch import Tensor

from ..config import AmaxAlgorithm
from ..fp8 import DelayedScaling
from ..guard import agree
from ..rollout.engine import generate
from ..rollout.pipeline import from_last_stage
from ..rollout.result import Rollout
from ..rollout.sampling import Distribution
from .batch import MicroBatch, pad_columns
from .context import divided_rollout
from .layers import block_spec
from .model import ScoringGPTModel
from .packing import pack

FP8_TOKENS = 16  # the cores that multiply FP8 want rows in multiples of it
_GROUP_KIND = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")


class SwirlActor(MegatronGPTActorModel):
    """One live model on this rank's device; weights.WeightSets dresses it as FWM, IDM or reference."""

    def model_provider_func(self, pre_process: bool, post_process: bool) -> ScoringGPTModel:
        self.transformer_config.variable_seq_lengths = self.cfg.pipeline_model_parallel_size > 1
        scaling = self._delayed_scaling() if self.cfg.swirl_fp8_emulated else None
        fp8 = self.cfg.fp8 or self.cfg.swirl_fp8_emulated
        edges = self.cfg.swirl_fp8_edge_layers if fp8 else 0
        model = ScoringGPTModel(
            config=self.transformer_config,
            transformer_layer_spec=block_spec(self.transformer_config, self.cfg.swirl_kernels, scaling, edges),
            vocab_size=self.padded_vocab_size,
            max_sequence_length=self.cfg.encoder_seq_length,
            pre_process=pre_process,
            post_process=post_process,
            parallel_output=True,
            share_embeddings_and_output_weights=self.cfg.share_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_percent=self.cfg.rotary_percentage,
            rotary_base=self.cfg.rotary_base,
            seq_len_interpolation_factor=self.cfg.get("seq_len_interpolation_factor"),
        )
        mcore_model_customize(self.cfg, model)  # NeMo's: Llama 3's RoPE scaling, Gemma's embedding scaling
        model.logit_chunk, model.scaling = self.cfg.swirl_logit_chunk, scaling
        model.token_multiple = FP8_TOKENS * self.cfg.tensor_model_parallel_size if fp8 else 1
        return model

    def _delayed_scaling(self) -> DelayedScaling:
        algorithm = AmaxAlgorithm(self.cfg.fp8_amax_compute_algo)
        return DelayedScaling(self.cfg.fp8_amax_history_len, algorithm, torch.cuda.current_device())

    def _vocab_size_with_padding(self, *_, **__) -> int:
        """The checkpoint's, so that it does not depend on the tensor-parallel size as NeMo's own padding does."""
        return self.cfg.override_vocab_size

    def setup_megatron_optimization(self, optim_config):
        """Megatron's OptimizerConfig, with the eps that NeMo does not pass on."""
        config = super().setup_megatron_optimization(optim_config)
        config.adam_eps = optim_config["eps"]
        return config

    @property
    def module(self) -> ScoringGPTModel:
        """The wrapped model of this stage, callable and with Megatron's `config`."""
        (model,) = self.model
        return model

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The data-parallel group of this rank: the ranks that hold the same weights and other samples."""
        return parallel_state.get_data_parallel_group()

    # scoring and generation

    @torch.no_grad()
    def get_inference_log_probs(self, micro_batches: list[MicroBatch]) -> Tensor:
        """Log-probs and entropies [2, B, C] of the micro-batches' completion tokens, in order, on every rank."""
        set_eval(self)
        with self._scoring_precision():
            outputs = self._run(micro_batches, forward_only=True)
        if not outputs:
            outputs = [self._like(batch) for batch in micro_batches]
        for output in outputs:
            from_last_stage(output)
        set_train(self)
        return pad_columns(outputs)

    def _like(self, batch: MicroBatch) -> Tensor:
        shape = (2, *batch.sequences.completion_mask.shape)
        return torch.empty(shape, dtype=torch.float32, device=torch.cuda.current_device())

    def infer(
        self, prompts: list[list[int]], distribution: Distribution, *, group: int, uniforms: Tensor | None, **options
    ) -> Rollout:
        """rollout.engine.generate on the live weights; options as there. Context-parallel ranks divide the prompts."""
        distribution = distribution.to(torch.cuda.current_device())

        def part(prompts: list[list[int]], uniforms: Tensor | None) -> Rollout:
            return generate(self.module, prompts, distribution, group=group, uniforms=uniforms, **options)

        set_eval(self)
        with self._whole_sequences(), self._scoring_precision(sampling=True):
            rollout = divided_rollout(part, prompts, uniforms, group)
        set_train(self)
        return rollout

    @contextmanager
    def _whole_sequences(self):
        """Sequence parallelism off, since a single decoded token cannot be divided among ranks; and stages know shapes
        without telling each other."""
        names = ("sequence_parallel", "reduce_scatter_embeddings", "variable_seq_lengths")
        holders = [self.transformer_config, *(m for stage in self.model for m in stage.modules())]
        with _switched_off((holder, name) for holder in holders for name in names if hasattr(holder, name)):
            yield

    def _scoring_precision(self, sampling: bool = False) -> AbstractContextManager:
        """FP8 off, unless precision.scoring has it on as in training. Transformer Engine's is never on in sampling: the
        decoder reads weights, and its few rows would be padding."""
        models = self.get_model_module_list()
        if not self.cfg.swirl_fp8_scoring or (self.cfg.fp8 and sampling):
            switches = [(self.transformer_config, "fp8")]
            return _switched_off(switches + [(model.scaling, "enabled") for model in models if model.scaling])
        if self.cfg.fp8:
            from .transformer_engine import unrecorded

            return unrecorded(module for model in models for module in model.modules())
        return nullcontext()

    # training

    def get_loss_and_metrics(self, micro_batches: list[MicroBatch], forward_only: bool) -> dict[str, Tensor]:
        """Forward and, unless `forward_only`, backward of all micro-batches; their metric sums, on every stage.

        Gradients are those of the sum of the micro-batches' losses over all data-parallel ranks.
        """
        outputs = self._run(micro_batches, forward_only)
        sums = _add(outputs) if outputs else {}
        box = [sums]
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast_object_list(box, source, group=parallel_state.get_pipeline_model_parallel_group())
        return box[0]

    def optimizer_step(self, micro_batches: list[MicroBatch], lr: float, clip_grad: float) -> tuple[float, dict, bool]:
        """One step of Megatron's distributed optimizer: the gradient norm before clipping, the metric sums, and whether
        it was done: weights and moments stay as they are where any process has a loss or norm that is not finite."""
        prepare_for_training_step(self, zero_grad=False)
        self._optimizer.zero_grad()
        sums = self.get_loss_and_metrics(micro_batches, forward_only=False)
        self.finish_training_step()
        optimizer = self._optimizer.mcore_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
            # Megatron marks norms and biases with wd_mult 0 and leaves it to a scheduler of its own to heed that
            group["weight_decay"] = self.cfg.optim.weight_decay * group["wd_mult"]
        # Megatron's own `step`, taken apart: it would step with any norm
        optimizer.prepare_grads()
        grad_norm = float(optimizer.clip_grad_norm(clip_grad))
        finite = math.isfinite(grad_norm + float(sums.get("loss", 0.0))) and _all_finite(optimizer.get_parameters())
        stepped = not agree(not finite, torch.cuda.current_device())
        if stepped:
            optimizer.step_with_ready_grads()
        return grad_norm, sums, stepped

    def reset_optimizer(self) -> None:
        """Forget the moments and step from the live weights: a phase starts as a fresh run does."""
        optimizer = self._optimizer.mcore_optimizer
        optimizer.optimizer.state.clear()
        for group in optimizer.param_groups:
            group["step"] = 0
        self._optimizer.reload_model_params()

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has moments: it has none before its first step."""
        return bool(self._optimizer.mcore_optimizer.optimizer.state)

    def optimizer_parameters(self) -> list[torch.nn.Parameter]:
        """This rank's part of them, in the optimizer's own precision."""
        return self._optimizer.mcore_optimizer.get_parameters()

    def sharded_optimizer(self, loading: bool) -> dict:
        """Megatron's layout-independent optimizer state, to be saved, or to be filled by a load."""
        return self._optimizer.mcore_optimizer.sharded_state_dict(
            self.sharded_state_dict(), is_loading=loading, sharding_type="fully_sharded_model_space"
        )

    def load_optimizer(self, state: dict) -> None:
        """Megatron saves rank 0's parameter groups for all, but orders each stage's by its first parameter: a stage
        that begins with a norm would take its weights for norms and decay the norms alone. What a group is, stays."""
        optimizer = self._optimizer.mcore_optimizer
        kinds = [{name: group[name] for name in _GROUP_KIND} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, kind in zip(optimizer.param_groups, kinds, strict=True):
            group.update(kind)

    # the pipeline schedule

    def _run(self, micro_batches: list[MicroBatch], forward_only: bool) -> list:
        scoring = micro_batches[0].loss is None
        set_sync_funcs(self, forward_only)
        return get_forward_backward_func()(
            forward_step_func=self._forward_step(scale=len(micro_batches) * self._reduced_over),
            data_iterator=iter(micro_batches),
            model=self.model,
            num_microbatches=len(micro_batches),
            forward_only=forward_only,
            seq_length=0,  # ignored: stages tell each other the shape of each micro-batch
            micro_batch_size=0,
            collect_non_loss_data=scoring,
        )

    def _forward_step(self, scale: int):
        """`scale` undoes Megatron's means over micro-batches and ranks: losses come as parts of a sum."""

        def forward_step(batches: Iterator[MicroBatch], model):
            batch = next(batches)
            packing, predictors = pack(batch.sequences, self._multiple, self.transformer_config.context_parallel_size)
            output = model(packing, scored=batch.scored(predictors))

            def loss(output: Tensor, non_loss_data: bool = False):
                spread = batch.spread(output)
                if non_loss_data:
                    return spread
                part, sums = batch.loss(spread[0], spread[1])
                # Kept until the last micro-batch is done: with its graph, the stage's input and its gradient would be
                return part * scale, {name: value.detach() for name, value in sums.items()}

            return output, loss

        return forward_step

    @property
    def _reduced_over(self) -> int:
        """Ranks over whose gradients Megatron takes a mean: those that have other samples, or other tokens of them."""
        return parallel_state.get_data_parallel_world_size(with_context_parallel=True)

    @property
    def _multiple(self) -> int:
        """What a rank's number of packed tokens must be divisible by: sequence parallelism gives each rank as many."""
        shares = self.cfg.tensor_model_parallel_size if self.transformer_config.sequence_parallel else 1
        return math.lcm(shares, self.get_model_module_list()[0].token_multiple)


@contextmanager
def _switched_off(switches: Iterable[tuple[object, str]]):
    """Attributes (holder, name) false within."""
    before = [(holder, name, getattr(holder, name)) for holder, name in switches]
    for holder, name, _ in before:
        setattr(holder, name, False)
    yield
    for holder, name, value in before:
        setattr(holder, name, value)


def _all_finite(parameters: list[Tensor]) -> bool:
    """Whether this rank's gradients are: the norm leaves out what other tensor-parallel ranks hold a copy of."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return not grads or bool(torch.stack(torch._foreach_norm(grads)).isfinite().all())


def _add(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sums of metrics over micro-batches; names that end in /max take the maximum. A name may be missing in some."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = value
            else:
                total[name] = torch.maximum(total[name], value) if name.endswith("/max") else total[name] + value
    return total
