"""The NeMo-Aligner actor. Import `build` first: it prepares the stack for this machine."""
