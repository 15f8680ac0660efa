"""`python -m swirl_nemo VERB ...`: the command line under torchrun and srun."""

from .cli import main

if __name__ == "__main__":
    main()
