# `make run` serves real embeddings from a fresh clone; `make test` checks everything.
# Needed on the machine: Rust (rustup), a C compiler, Python >= 3.10 with venv, make.

PYTHON ?= python3
CARGO ?= cargo
ARGS ?=
BENCH_ARGS ?=
MAC_ARGS ?=
CHAOS_ARGS ?=
OVERLOAD_ARGS ?=
QWEN3_ARGS ?=
FAILOVER_ARGS ?=
VALIDATE_ARGS ?=
TUNE_ARGS ?=

VENV := sidecar-py/.venv
UV := .tools/bin/uv
UV_SYNC := cd sidecar-py && UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=true ../$(UV) sync --locked --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

# With Apple silicon there is one GPU, and one worker to have it, which is what the gateway takes on its own.
WORKERS := $(if $(filter Darwin-arm64,$(shell uname -sm | tr ' ' '-')),,--workers 2)

.DEFAULT_GOAL := help
.PHONY: test-fast tune validate check-guides check-services failover deploy-files help setup setup-dev build run test lint lint-rust lint-python audit test-rust test-python guard check-platforms test-aarch64 mac-report precision fuzz doctor bench chaos overload qwen3 golden clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(UV): scripts/uv-requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; name another one: make PYTHON=/path/to/python3 ..."; exit 1; }
	@echo "==> Installing uv"
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(VENV)/.run-ready: $(UV) sidecar-py/uv.lock sidecar-py/pyproject.toml
	@echo "==> Making the Python environment (once; it downloads 110 MB on Linux, 135 MB on macOS)"
	@$(UV_SYNC) --no-dev --inexact
	@touch $@

$(VENV)/.dev-ready: $(UV) sidecar-py/uv.lock sidecar-py/pyproject.toml
	@echo "==> Making the Python environment with the development tools"
	@$(UV_SYNC)
	@touch $@ $(VENV)/.run-ready

setup: $(VENV)/.run-ready ## Make the workers' Python environment, sidecar-py/.venv

setup-dev: $(VENV)/.dev-ready ## The same, with linters and test tools

build: ## Build target/release/akidb-gateway
	@echo "==> Building the gateway"
	@$(CARGO) build --release --locked

run: setup build ## Serve all-minilm-l6-v2 on 127.0.0.1:8080 with two workers, with Apple silicon one; more flags in ARGS="..."
	@AKIDB_PYTHON="$${AKIDB_PYTHON:-$(CURDIR)/$(VENV)/bin/python}" exec target/release/akidb-gateway --model all-minilm-l6-v2 $(WORKERS) $(ARGS)

test: setup-dev lint audit test-rust test-python guard check-services check-guides ## Check everything: format, lints, licences, advisories, tests

test-fast: lint ## What a commit must pass, in less than four minutes: lints, and tests without real models
	$(IN_VENV) $(CARGO) nextest run --workspace --locked --profile fast
	cd sidecar-py && .venv/bin/pytest --cpu -m "not mlx"

lint: lint-rust lint-python ## Format and lints of both languages

lint-rust: setup-dev
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path gateway/fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

lint-python: setup-dev
	cd sidecar-py && .venv/bin/ruff format --check . ../scripts && .venv/bin/ruff check . ../scripts && .venv/bin/mypy

audit: setup-dev ## Licences, sources and known vulnerabilities of every dependency
	scripts/audit

test-rust: setup-dev
	$(IN_VENV) $(CARGO) nextest run --workspace --locked
	$(CARGO) test --workspace --locked --doc --quiet
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --locked --no-deps --quiet

test-python: setup-dev
	cd sidecar-py && .venv/bin/pytest --cpu
	@echo "==> Once more what means any device: on a GPU, or with its branches computed by the CPU"
	cd sidecar-py && .venv/bin/pytest --gpu-branches -m device

guard: setup-dev ## Count the instructions of the inner loops; more than committed fails
	scripts/instructions

check-services: setup-dev build ## Check deploy/ with systemd and HAProxy: the units, and a short form of `make failover`
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m services.check

check-guides: setup-dev build ## Run every command of the README and the guides as it is written
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts:sidecar-py/tests $(VENV)/bin/python -m guides.check

failover: setup-dev build ## Put HAProxy in front of two gateways under load, stop, kill and start one; FAILOVER_ARGS="--seconds 60"
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m services.failover $(FAILOVER_ARGS)

check-platforms: setup-dev ## Check from here what runs on macOS and on Linux on ARM: clippy, C sources, Python's types
	@PYTHONPATH=scripts $(VENV)/bin/python -m platforms.check

test-aarch64: setup-dev ## Run the kernels and the golden vectors as Linux on ARM does, under QEMU; on Debian alone
	@PYTHONPATH=scripts $(VENV)/bin/python -m platforms.aarch64

mac-report: setup-dev build ## Go through the list of docs/MAC.md and write what was found to target/mac-report.md; MAC_ARGS="--only device"
	@PYTHONPATH=scripts $(VENV)/bin/python -m mac $(MAC_ARGS)

precision: setup-dev ## Print how exact vectors are in each type in which a GPU may compute, on it or with its branches on a CPU
	@PYTHONPATH=scripts $(VENV)/bin/python -m precision

fuzz: setup-dev ## Feed arbitrary input to the decoders, FUZZ_SECONDS (600) each; needs a C++ compiler
	scripts/fuzz

doctor: setup ## Say how fast this machine multiplies matrices
	@$(VENV)/bin/python -I -X utf8 -m akidb_sidecar doctor

bench: setup-dev build ## Compare this server with others, in one table; options in BENCH_ARGS="...", such as --quick
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m bench $(BENCH_ARGS)

chaos: setup-dev build ## Kill, stop and hang workers under load for CHAOS_SECONDS (60); fails when a client notices
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m stress.chaos $(CHAOS_ARGS)

validate: setup-dev build ## Load tests with thresholds, faults, integration tests; writes docs/VALIDATION-REPORT.md; VALIDATE_ARGS=--quick
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m validate $(VALIDATE_ARGS)

tune: setup-dev build ## Compare permits, workers, batch sizes, waits and timeouts on this machine; options in TUNE_ARGS="..."
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m tune $(TUNE_ARGS)

overload: setup-dev build ## Offer more than can be computed; writes docs/overload.md; options in OVERLOAD_ARGS="..."
	@$(CARGO) build --release --locked --example load
	@PYTHONPATH=scripts $(VENV)/bin/python -m stress.overload $(OVERLOAD_ARGS)

qwen3: setup-dev build ## Measure Qwen3-Embedding-0.6B's true size with random weights; writes docs/memory.svg; QWEN3_ARGS="..."
	@PYTHONPATH=scripts $(VENV)/bin/python -m qwen3.measure $(QWEN3_ARGS)

deploy-files: setup-dev ## Write deploy/ anew, after a change of what `service print` writes
	$(IN_VENV) AKIDB_WRITE_DEPLOY=1 $(CARGO) nextest run --locked -E 'test(the_committed_files_are_what_is_printed)'

golden: ## Write the protocol's golden frames anew, after a deliberate change
	AKIDB_WRITE_GOLDEN=1 $(CARGO) test -p akidb-protocol --test golden

clean: ## Remove everything that was built or installed
	rm -rf target .tools $(VENV)
