# make quickstart   the main job, small: 8 to 11 minutes after set-up, ends with a table and a report
# make test         every test but those marked `long`
# make test-fast    what needs no Megatron process but one, which counts operator calls: two minutes
# make test-slurm   jobs on a real Slurm of two nodes: 9 to 16 minutes; Debian's slurm-wlm and munge, and root
# make lint         what pre-commit checks
# The first call makes .venv from requirements/; a later one installs again only what a changed lock asks for.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check

# A tiny model is slower on several threads than on one, and tests share the machine.
test test-fast test-slurm: export OMP_NUM_THREADS := 1
test test-fast test-slurm lint: export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: quickstart test test-fast test-slurm lint setup
.DELETE_ON_ERROR:

quickstart: setup
	.venv/bin/swirl quickstart

test: setup
	pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not long and not slurm"

test-fast: setup
	pytest -m "not megatron and not slow and not long and not slurm"

test-slurm: setup
	pytest -m slurm

lint: setup
	pre-commit run --all-files --show-diff-on-failure

setup: .venv/installed

.venv/installed: requirements/torch.lock requirements/cpu.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || \
		{ echo "make: error: '$(PYTHON)' is no Python 3.11 or 3.12 with venv: install python3.11 and python3.11-venv, or give make PYTHON=..."; exit 2; }
	test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	$(PIP) -r requirements/torch.lock -c requirements/cpu.lock
	$(PIP) --no-deps --no-build-isolation --use-pep517 -r requirements/cpu.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
