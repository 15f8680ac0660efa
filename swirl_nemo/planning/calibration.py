"""Every constant of the plan that is not in a data sheet or in this project's code, each with its source."""

RESERVED_GB = 4.0  # CUDA context, NCCL's and cuBLAS's workspaces, the allocator's rounding: not measured here

# Shares of a data sheet's figure that are reached
PRODUCT = 0.62  # of the peak, by large matrix products
MEMORY = 0.75  # of the memory's bandwidth
LINK = 0.7  # of NVLink, by NCCL's collectives of many megabytes
NETWORK = 0.8
HOST_LINK = 0.8
LAUNCH_SECONDS = 6e-6  # between two operator calls of eager PyTorch
