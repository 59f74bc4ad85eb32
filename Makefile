# Every verb sets up what it needs. CI calls the same ones: see .ci/run.
PYTHON ?= python3
DEMO_DIR ?= demo
BIN := .venv/bin

.PHONY: install tools demo test test-slow verify-gpu verify-deploy bench-step bench-serve bench-quality lint format lock clean

install: .venv/.installed

# The lock keeps every installation the same; torch's CPU and CUDA builds both satisfy its pin.
.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock \
		--editable '.[train,service,dev]'
	@touch $@

# Helm, Prometheus and the validators, for the tests of deploy/. Without them those are skipped.
tools:
	$(PYTHON) deploy/tools.py helm prometheus venv

demo: install
	$(BIN)/python deploy/demo.py "$(DEMO_DIR)"

# A process a core and one thread each: the tests' networks are so small that two threads wait for
# each other longer than they work. A file's tests stay together, for they share servers.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" \
		--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

# Without a GPU nothing fails and nothing is verified: it says so.
verify-gpu: install
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python -m pytest -m gpu; \
	else \
		echo "skipped: torch sees no CUDA device, so nothing was verified on one"; \
	fi

# The critic's step beside the textbook's, as ratios of times taken in turn in one process.
bench-step: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step

# The service beside the bare forward and other servers, each on one core, the load on another.
bench-serve: install
	$(BIN)/python -m benchmarks.serve

# Seconds until the samples are good, beside the published recipe and others. It takes hours and goes
# on where it was stopped: runs in runs/quality are not repeated.
bench-quality: install
	$(BIN)/python -m benchmarks.quality

# Everything that a machine without a cluster can show of deploy/.
verify-deploy: install
	$(BIN)/python deploy/verify.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Brings the lock up to date with what pyproject.toml allows now.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[train,service,dev]'
	.venv-lock/bin/python -m pip freeze --exclude wgan-foundry \
		| sed 's/+cpu$$//' | grep -v ' @ ' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache demo
