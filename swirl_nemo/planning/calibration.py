"""Every constant of the plan that is neither in a data sheet nor in this project's code: what it is fitted to, or where
it is from. docs/planning.md says how well they predict what they were not fitted to."""

# memory
RESERVED_GB = 4.0  # CUDA context, workspaces of cuBLAS and NCCL, the allocator's rounding: assumed

# shares of a data sheet's figure that are reached
PRODUCT = 0.634  # of the bf16 peak by matrix products: fitted, Megatron-LM's 70B at 42% of peak
PRODUCT_FP8 = 0.574  # of the FP8 peak: fitted, NeMo 24.07's Llama 2 70B at 1,707 tokens/s/GPU
ATTENTION = (
    0.5  # of the bf16 peak by fused attention: Dao 2023, FlashAttention-2's and -3's range on H100 is 0.35 to 0.75
)
STREAM = 0.5  # of the memory's bandwidth by norms, activations and losses: assumed
DECODE = 0.5  # and by a decoded token's weights and keys: fitted, NeMo-RL 0.3's 70B generation of 84 s
LINK = 0.7  # of NVLink by collectives: NCCL's bus bandwidth of 320 to 370 GB/s within a DGX H100
NETWORK = 0.8  # assumed
HOST_LINK = 0.8  # of PCIe, from pinned memory: assumed

# a layer's forward pass through memory: how often its hidden state, its queries, keys and values, and its MLP's inner
# width are read or written
FUSED = (14, 3, 1)  # Megatron Core with Transformer Engine
EAGER = (44, 8, 2)  # actor/: torch's own operators one by one, counted in bf16
LOGIT_PASSES = 12  # of float32 logits, forward and backward
CAST_BYTES = 3  # FP8: a bf16 operand read, its FP8 copy written

# what is not hidden behind computation
TENSOR_EXPOSED = 0.5  # of tensor-parallel exchange where it is overlapped (Transformer Engine's user buffers): assumed
DATA_EXPOSED = 0.1  # of gradients' and weights' exchange where it is overlapped: assumed

# a reinforcement learning step
RL_SLACK = (
    1.40  # ranks and stages that wait for longer sequences: fitted, NeMo-RL 0.3's 70B, training 28 s, log-probs 18 s
)
REFIT_GB_S = 2.52  # a generation rank's weights, from Megatron's layout to vLLM's: fitted, its refit of 14 s
LAUNCH_SECONDS = 4e-6  # an operator call of eager PyTorch, views among them: assumed
DECODE_CALLS = (
    85  # of one layer for one token, rollout/decoder.py: 358 of four layers with head and sampling (COUNTS of
)
# tests/test_bench.py)
REDUCE_SECONDS = 20e-6  # a small all-reduce over NVLink: assumed
SAMPLING_BYTES, SORTING_BYTES = 60, 120  # of memory traffic for a token of the vocabulary and a row; truncation sorts
