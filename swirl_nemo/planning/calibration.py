"""Every constant of the plan that is neither in a data sheet nor in this project's code: what it is fitted to, or where
it is from. docs/planning.md says how well they predict what they were not fitted to."""

# CUDA context, workspaces of cuBLAS and NCCL, the allocator's rounding: assumed
RESERVED_GB = 4.0

# Shares of a data sheet's figure that are reached

# Of the bf16 peak by matrix products. Fitted: Megatron-LM's 70B at 42% of peak
PRODUCT = 0.634
# Of the FP8 peak. Fitted: NeMo 24.07's Llama 2 70B at 1,707 tokens/s of a GPU
PRODUCT_FP8 = 0.574
# Of the bf16 peak by fused attention: Shah et al. 2024 have 0.35 for FlashAttention-2 and 0.75 for 3 on H100
ATTENTION = 0.5
# Of the memory's bandwidth by norms, activations and losses: assumed
STREAM = 0.5
# And by a decoded token's weights and keys. Fitted: NeMo-RL 0.3's 70B, generation of 84 s
DECODE = 0.5
# Of NVLink by large collectives, of the network, and of PCIe from pinned memory: assumed
LINK, NETWORK, HOST_LINK = 0.7, 0.8, 0.8

# Traffic

# A layer's forward pass: how often its hidden state, its queries, keys and values, and its MLP's inner width are read
# or written. Megatron Core with Transformer Engine: assumed
FUSED = (14, 3, 1)
# actor/ with torch's operators one by one: counted in bf16, with eight queries to a key
EAGER = (46, 12, 1.7)
# Of float32 logits, forward and backward: assumed
LOGIT_PASSES = 12
# FP8: a bf16 operand read, its FP8 copy written
CAST_BYTES = 3
# For a token of the vocabulary and a row, and again where truncation sorts
SAMPLING_BYTES, SORTING_BYTES = 60, 120

# What computation does not hide of exchange that is overlapped: tensor-parallel (Transformer Engine's user buffers),
# and gradients' and weights': assumed
TENSOR_EXPOSED, DATA_EXPOSED = 0.5, 0.1

# A reinforcement learning step

# Ranks and stages that wait for longer sequences. Fitted: NeMo-RL 0.3's 70B, training of 28 s and log-probs of 18 s
RL_SLACK = 1.40
# A generation rank's weights, from Megatron's layout to vLLM's. Fitted: the same run's refit of 14 s
REFIT_GB_S = 2.52
# An operator call of eager PyTorch, views among them: assumed
LAUNCH_SECONDS = 4e-6
# Of one layer for one token, rollout/decoder.py: four layers take 358 with head and sampling (COUNTS of test_bench.py)
DECODE_CALLS = 85
# A small all-reduce over NVLink: assumed
REDUCE_SECONDS = 20e-6
