# Every verb installs what it needs. Continuous integration calls the same verbs: see .ci/run and
# .github/workflows/ci.yaml.
PYTHON ?= python3
DEMO_DIR ?= demo
BIN := .venv/bin

.PHONY: install tools demo test test-long test-slow test-map test-quick mutate verify-gpu pack-gpu verify-deploy sbom bench-step bench-serve bench-quality lint format docs lock clean

install: .venv/.installed

# pip installs only files that have a hash in requirements/, and on one core: so two halves run at once.
# torch is fetched before it is checked, so that a local CPU build is preferred, as without hashes; the
# CUDA builds need cuda.txt too.
PIP_LOCKED = $(BIN)/python -m pip install --quiet --no-compile --require-hashes --no-deps
# On all cores, where pip takes one. Packages have files for other versions of Python, so errors are no news.
COMPILE = import compileall, re; compileall.compile_dir(".venv", quiet=2, workers=0, rx=re.compile("/tests?/"))
TORCH = $(shell grep -o "^torch==[0-9.]*" requirements/torch.txt)
WANTS_CUDA = import importlib.metadata as m; print(*(r for r in m.requires("torch") if "nvidia-" in r))
.venv/.installed: pyproject.toml requirements/torch.txt requirements/cuda.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		|| { echo "error: Python 3.11 to 3.14 is needed; set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip download --quiet --no-deps --dest .venv/torch "$(TORCH)"
	$(PIP_LOCKED) --no-index --find-links .venv/torch --requirement requirements/torch.txt
	rm -r .venv/torch
	if [ -n "$$($(BIN)/python -c '$(WANTS_CUDA)')" ]; then \
		$(PIP_LOCKED) --requirement requirements/cuda.txt; \
	fi
	awk '/^[a-z]/ {n++} {print > (".venv/part" n % 2)}' requirements/dev.txt
	$(PIP_LOCKED) --requirement .venv/part0 & $(PIP_LOCKED) --requirement .venv/part1; other=$$?; \
		wait $$! && exit $$other
	rm .venv/part0 .venv/part1
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	$(BIN)/python -c '$(COMPILE)'
	@touch $@

# Helm, Prometheus and the validators, which the tests of deploy/ and .github/ need.
FETCH_TOOLS = $(PYTHON) deploy/tools.py helm prometheus venv
tools:
	$(FETCH_TOOLS)

demo: install
	$(BIN)/python deploy/demo.py "$(DEMO_DIR)"

TEST_PROCESSES = $(shell $(BIN)/python -c 'import os; print(min(os.cpu_count() + 1, 5))')
# One process per core and one more, since many tests wait, with one thread each: the tests' networks
# are so small that two threads would mostly wait for each other. The tests of a file stay together,
# because they share servers.
# Where a tool cannot be had (Prometheus comes from Debian's packages alone), its tests are skipped.
# Bytecode is written even where the environment forbids it: each process would compile all of it anew.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
PARALLEL = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
test: install
	@$(FETCH_TOOLS) || echo "the tests that need these tools are skipped" >&2
	$(PYTEST) -m "not slow and not long" $(PARALLEL)

# Tests of whole commands, runs and services: tests/long_tests.txt.
test-long: install
	@$(FETCH_TOOLS) || echo "the tests that need these tools are skipped" >&2
	$(PYTEST) -m "long and not slow" $(PARALLEL)

test-slow: install
	$(BIN)/python -m pytest -m slow

# Which functions each test reaches, and its seconds, into .testmondata, for all tests that are not slow.
test-map: install
	$(PYTEST) -m "not slow" --testmon-noselect $(PARALLEL)

# Under a minute of the tests that reach what has changed since they last ran.
test-quick: install
	$(PYTEST) -m "not slow" --testmon-forceselect -p tests.quick

# Puts small faults into modules and says which of them their tests do not notice: docs/mutation.md.
mutate: install
	$(BIN)/python -m benchmarks.mutation $(PATHS) $(if $(TESTS),--tests $(TESTS))

# Tests and measures on a GPU, at most 8 minutes. Without one this passes, and says so.
verify-gpu: install
	@$(BIN)/python -m benchmarks.gpu

# What verify-gpu needs on a machine without a network, into gpu-pack/.
pack-gpu: install
	$(BIN)/python -m benchmarks.gpu_pack

# Times of our critic step over times of a textbook's, measured in turn in one process.
bench-step: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step

# The service compared with the bare forward pass and with other servers; each runs on one core and
# the load on another.
bench-serve: install
	$(BIN)/python -m benchmarks.serve

# Seconds until the samples are good, compared with the published recipe and others. This takes hours.
# If it is stopped, the next call continues: runs that are in runs/quality are not repeated.
bench-quality: install
	$(BIN)/python -m benchmarks.quality

# Checks all of deploy/ that can be checked without a cluster.
verify-deploy: install
	$(BIN)/python deploy/verify.py

# What the images are made of, as CycloneDX, in sbom/.
sbom:
	$(PYTHON) deploy/tools.py venv
	"$${WGAN_TOOLS:-.tools}/venv/bin/python" deploy/sbom.py sbom

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documentation as a site, in site/. A broken link is an error.
docs: install
	$(BIN)/mkdocs build --strict

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Adds to the locks what pyproject.toml asks for now. `make lock UPGRADE=--upgrade` takes the newest
# versions that it allows.
UPGRADE ?=
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '$(shell grep -o "^uv==[0-9.]*" requirements/dev.txt)'
	.venv-lock/bin/python deploy/lock.py $(UPGRADE)
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock .mypy_cache .pytest_cache .ruff_cache .testmondata* demo sbom site
