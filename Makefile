# gpt2repro: every daily act. `make help` lists them.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
WORKERS ?= 3
ARGS    ?=
PIP     := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
SOURCES := settings.ini pyproject.toml setup.py constraints.txt
comma   := ,
XLA     := .venv-colab-tpu
COLAB   := .venv-colab-cpu
# Colab's images have Python 3.13; another one serves where that is not to be had
PY313    = $(shell for p in python3.13 $$HOME/.pyenv/versions/3.13*/bin/python3.13 $(PYTHON); do $$p -c '' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-slow test-xla test-colab sanitize docs why2019 why2019-quick export save prepare clean

help: ## what there is to make
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/python: # the environment itself
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python {v[0]}.{v[1]} found, 3.11 or later is needed: make PYTHON=python3.11 …") if v<(3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python $(SOURCES) # the package and what it needs
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/run # what tests and documentation need
	$(PIP) -e '.[dev,docs]'
	@touch $@

reproduce: $(VENV)/run ## raw text to samples, scores and a report, in ten minutes (ARGS='--minutes 2' for less)
	$(BIN)/gpt2repro reproduce $(ARGS)

test: $(VENV)/dev ## export and cleanliness, every cell and every test that this machine can run
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: $(VENV)/dev ## the long ones too
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --slow $(ARGS)

# The versions of Colab's images. torch_xla and the TPU's compiler are on the one for TPUs
$(COLAB)/run $(XLA)/run: .venv-colab-%/run: settings.ini setup.py constraints-colab-%.txt
	test -x .venv-colab-$*/bin/python || $(PY313) -m venv .venv-colab-$*
	.venv-colab-$*/bin/python -m pip install -q --disable-pip-version-check -c constraints-colab-$*.txt \
		-e '.$(if $(filter tpu,$*),[xla$(comma)plan])' ipykernel nbclient pytest pytest-xdist transformers
	@touch $@

test-xla: $(XLA)/run ## with Colab's TPU image: torch_xla on the CPU, one compilation, steps compiled for TPUs, every notebook
	PJRT_DEVICE=CPU GPT2REPRO_COLAB=tpu $(XLA)/bin/python -m pytest -n $(WORKERS) $(wildcard tests/test_*xla*.py tests/test_distributed*.py) tests/test_colab.py $(ARGS)

test-colab: $(COLAB)/run ## with Colab's CPU image: "Run all" of every notebook
	GPT2REPRO_COLAB=cpu $(COLAB)/bin/python -m pytest -n $(WORKERS) tests/test_colab.py $(ARGS)

sanitize: $(VENV)/dev ## the kernels' tests with the C compiler's checks of addresses and of undefined behaviour
	$(BIN)/python tools/sanitize.py $(ARGS)

node_modules: package-lock.json
	npm ci --no-audit --no-fund --silent
	@touch $@

docs: $(VENV)/dev node_modules ## the documentation site, into _docs/, and README.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/docs.py --readme

why2019: $(VENV)/dev ## the experiments on why the reproduction of 2019 fell short, those that are not in bench/why2019 yet: hours (ARGS='--minutes 60' for some)
	$(BIN)/gpt2repro experiment bench/why2019.py --out bench/why2019 --data runs/why2019 --workers $(WORKERS) $(ARGS)

why2019-quick: $(VENV)/dev ## its strongest switches at the smallest size, anew, into runs/why2019-quick: 15 minutes on two cores
	$(BIN)/gpt2repro experiment bench/why2019.py --out runs/why2019-quick --minutes 15 --workers $(WORKERS) $(ARGS)

export: $(VENV)/dev ## the package from the notebooks
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev-export

save: export ## run the notebooks, keep their outputs, clean them
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'nbdev-test --n-workers 0 --save && nbdev-clean'

clean: ## remove what can be made again (not the runs)
	rm -rf _docs _proc _pages _pages.yml build dist *.egg-info .pytest_cache .hypothesis
