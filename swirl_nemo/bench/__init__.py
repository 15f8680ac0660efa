"""`swirl bench`: what a step of Phase I costs, beside the machine's own limit and beside TRL doing the same work."""
