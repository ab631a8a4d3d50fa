# Two commands: `make sweep` and `make test`. Both make .venv first; later runs reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: sweep test test-slow test-compiled test-long test-emulated emulated-avx2 emulated-default lint pictures inspect bench mutants first-minute gate-evidence gpu gpu-prepare clean

sweep: $(VENV)/.installed
	$(BIN)/opbench sweep

# A process for each core, up to four, and in each one thread, so that they do not wait for each other.
test: $(VENV)/.installed-dev
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The long versions: soak, random faults and kills over several seeds, thousands of fuzzed files.
# What compiles and compares runs on every core; what watches a whole sweep, alone.
COMPILING_TESTS := tests/test_operators.py tests/test_export.py tests/test_inspection.py tests/test_onnx.py tests/test_change_points_in_noise.py
WATCHING_TESTS := $(addprefix tests/test_,faults.py gate_command.py gpu_sanitize.py history_index.py isolation_cost.py on_gpu.py reading.py soak.py survival.py terminal.py)
test-slow: test-compiled test-long

test-compiled: $(VENV)/.installed-dev
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 4 $(COMPILING_TESTS)

test-long: $(VENV)/.installed-dev
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 4 $(addprefix --ignore=,$(COMPILING_TESTS) $(WATCHING_TESTS))
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m slow -rP $(WATCHING_TESTS)
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 OPBENCH_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 tests/test_fuzz.py

# Older processors, emulated: what touches values, providers, dtypes and ceilings, then a sweep, with an empty cache.
# Triton's interpreter computes with numpy, which these variables do not change.
EMULATED_TESTS := $(addprefix tests/test_,operators.py modules.py kernels.py check.py runner.py ceilings.py environment.py emulation.py)

test-emulated: emulated-avx2 emulated-default

emulated-avx2: CAPABILITY = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
emulated-default: CAPABILITY = ATEN_CPU_CAPABILITY=default
emulated-avx2 emulated-default: $(VENV)/.installed-dev
	set -e; cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; \
	export $(CAPABILITY) XDG_CACHE_HOME="$$cache" CUDA_VISIBLE_DEVICES=; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -k "not triton" $(EMULATED_TESTS); \
	$(BIN)/opbench sweep --out "$$cache/run"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Machine code of the GPU kernels against the committed figures; needs no GPU.
ARCH ?= sm_80,sm_90
inspect: $(VENV)/.installed
	$(BIN)/opbench inspect --arch $(ARCH) --dtypes fp32,fp16 --check results/static >/dev/null

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py --benchmark-enable --benchmark-only

# Does a test fail for each small change of the modules whose figures a reader trusts? docs/mutants.md; not in CI.
MODULES ?=
mutants: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MODULES)

# The table of docs/first-minute.md: what a new user waits for, here and on weaker processors emulated here.
first-minute: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/bench_first_minute.py

# The tables of docs/gate.md, from the sessions under results/gate; CONTRIBUTING.md says how those were measured.
gate-evidence: $(VENV)/.installed-dev
	$(BIN)/python tools/gate_evidence.py results/gate

# The pictures of docs/report.md, from a real run: measured under RUN if there is none yet, then drawn again. Needs Chromium.
RUN ?= results/xeon-2core
pictures: $(VENV)/.installed-dev
	test -e $(RUN)/run.json || $(BIN)/opbench sweep --level module,core --out $(RUN)
	$(BIN)/opbench report $(RUN) --write >$(RUN)/report.txt
	$(BIN)/python tools/pictures.py $(RUN)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "opbench needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# Everything that needs a GPU, in commands that end in time: docs/gpu.md. Uses this folder's .venv where there is one, else
# PYTHON with opbench installed in it. STEPS="environment compile" picks some, LIST=1 prints them all, REHEARSE=1 needs no GPU.
PART ?= A,B,C
DEADLINE_S ?= 560
GPU_PYTHON = $(if $(wildcard $(BIN)/opbench),$(abspath $(BIN))/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) tools/gpu/on_gpu.py $(if $(OUT),--out "$(OUT)") --part "$(PART)" --deadline "$(DEADLINE_S)" \
		$(if $(STEPS),--steps "$(STEPS)") $(if $(LIST),--list) $(if $(REHEARSE),--rehearse)

# Before a copy of this folder travels to a GPU without its .git: the revision that its rows then name.
gpu-prepare:
	$(GPU_PYTHON) tools/gpu/on_gpu.py --prepare
