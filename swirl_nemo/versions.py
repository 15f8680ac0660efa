"""The NeMo stack that this project was verified with: for the patches, `swirl doctor`, and the build of an image.

`python -m swirl_nemo.versions` is that build's check (containers/install.sh): it looks at what a GPU needs, prints one
line and exits 1 where the image has another release. Nothing is imported of what is looked at: a build has no GPU.
"""

import importlib.metadata
import sys
from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class Package:
    name: str
    cpu: str | None  # the release that every test runs on; None where no CPU has it
    gpu: str | None  # what a release in the NeMo container begins with; None where any will do


# Of the column `gpu`, Megatron Core is from another project's README on NeMo Framework 25.02, the rest from memory: no
# such image was seen by this project yet.
STACK = (
    Package("nemo-toolkit", "2.2.1", "2.2"),
    Package("nemo-aligner", "0.7.0", "0.7"),
    Package("megatron-core", "0.11.0", "0.11"),
    Package("torch", "2.13.0", None),
    Package("transformer-engine", None, "2"),
    Package("apex", None, "0.1"),
)


def verified(name: str) -> str:
    """ "megatron-core 0.11.0": the package with the release that the tests run on."""
    (release,) = (package.cpu for package in STACK if package.name == name)
    return f"{name} {release}"


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def fault(package: Package, *, gpu: bool) -> str | None:
    """ "megatron-core 0.12.1 is installed, not 0.11": why a GPU, or a CPU, cannot do with what is here; else None."""
    wanted, found = package.gpu if gpu else package.cpu, installed(package.name)
    if wanted is None:
        return None
    if found is None:
        return f"{package.name} is not installed, {wanted} is needed"
    begins = Version(wanted).release
    if Version(found).release[: len(begins)] != begins:
        return f"{package.name} {found} is installed, not {wanted}"
    return None


def main() -> str | None:
    faults = [line for package in STACK if (line := fault(package, gpu=True))]
    if faults:
        return f"swirl: error: {'; '.join(faults)}: build on the NeMo image that containers/Dockerfile names"
    print(", ".join(f"{package.name} {installed(package.name)}" for package in STACK))
    return None


if __name__ == "__main__":
    sys.exit(main())
