class CudaRNGStatesTracker:
    """Named by Megatron when it is imported; none is made."""
