"""Memory and time of a run on paper, before it is paid for: `swirl plan`. No nemo, no megatron, no torch."""
