# `make demo` installs what is missing and runs the main job small; `make test` installs and passes the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
HASH = $(shell cat $(1) | sha256sum | cut -c1-12)
TRAIN := $(VENV)/.train-$(call HASH,requirements/train-cpu.lock pyproject.toml)
DEV := $(VENV)/.dev-$(call HASH,requirements/dev.lock)
DEBIAN := $(VENV)/.debian-$(call HASH,requirements/debian.txt)
ROLLOUT_VENV := .venv-rollout
ROLLOUT := $(ROLLOUT_VENV)/.rollout-$(call HASH,requirements/rollout-cpu.lock)

PEERS := .tools/peers/.peers-$(call HASH,requirements/peers.lock)

.PHONY: demo reproduce test install rollout-env peers lint types clean

demo: $(TRAIN)
	$(BIN)/nemo-mtdrive rl --config-name demo_cpu

# The paper's tables in small (docs/results.md): hours; stopped, it goes on where it was.
reproduce: $(TRAIN)
	$(BIN)/nemo-mtdrive reproduce all

test: $(TRAIN) $(DEV) $(DEBIAN) $(ROLLOUT)
	$(MAKE) --no-print-directory lint types
	$(BIN)/python -m pytest

install: $(TRAIN)

rollout-env: $(ROLLOUT)

lint: $(DEV)
	$(BIN)/ruff check .

types: $(TRAIN) $(DEV)
	$(BIN)/mypy

# torch first and with its own dependencies, so that the build that fits the machine is taken; the rest exactly as
# locked, without resolving: NeMo and NeMo-Aligner declare requirements that exclude each other and yet run together.
$(TRAIN):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 with venv, or set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q --no-deps -r requirements/train-cpu.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(DEV): $(TRAIN)
	$(BIN)/python -m pip install -q --no-deps -r requirements/dev.lock
	touch $@

$(DEBIAN): $(TRAIN)
	@requirements/install_debian.sh
	touch $@

# vLLM wants other versions of torch's neighbours than NeMo, so rollout workers with rollout.engine=vllm run in an environment
# of their own, as they run in another container on a cluster. Its torchvision is a CUDA build beside a CPU torch: the .pth
# declares the operators that torchvision looks for, in every process that vLLM starts.
$(ROLLOUT):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 with venv, or set PYTHON=..." >&2; exit 2; }
	test -x $(ROLLOUT_VENV)/bin/python || $(PYTHON) -m venv $(ROLLOUT_VENV)
	$(ROLLOUT_VENV)/bin/python -m pip install -q --no-deps -r requirements/rollout-cpu.lock
	$(ROLLOUT_VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	echo "import nemo_mtdrive.torchvision_ops as ops; ops.declare_on_import()" \
	  > "$$($(ROLLOUT_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nemo_mtdrive_torchvision.pth"
	touch $@

# What benchmarks/transfer.py is held against, away from everything else.
peers: $(PEERS)

$(PEERS): $(TRAIN)
	test -x .tools/peers/bin/python || $(PYTHON) -m venv .tools/peers
	.tools/peers/bin/python -m pip install -q torch==2.13.0
	.tools/peers/bin/python -m pip install -q --no-deps -r requirements/peers.lock
	touch $@

clean:
	rm -rf $(VENV) $(ROLLOUT_VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
