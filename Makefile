# Needs Python 3.11 or newer with pip, make and git; everything else goes into .venv.
#
#   make run      a picture from words, with the model inside the package
#   make test     the tests (seconds to a few minutes)
#   make check    formatting, lint, types, the house's import laws
#   make help     all targets

PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= a red apple, 3d
PICTURE ?= apple.png
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq -c constraints.txt

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode every start would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1@/' | column -t -s @ 2>/dev/null \
		|| grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- environment
# A stamp per extra; it is renewed when pyproject.toml or constraints.txt change. The venv itself is order-only.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewstep needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fewstep into $(VENV) (the first time takes a minute or more) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.%.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fewstep[$*] into $(VENV) (the first time takes a minute or more) ..."
	@$(PIP) -e '.[$*]'
	@touch $@

# ---------------------------------------------------------------- the two commands

.PHONY: run test
run: $(VENV)/.core.stamp  ## a picture from words: make run PROMPT="a green rocket" PICTURE=rocket.png
	@$(BIN)/fewstep generate "$(PROMPT)" -o "$(PICTURE)"
	@echo "the picture is $(abspath $(PICTURE))"

test: $(VENV)/.test.stamp  ## the tests, without the slow ones
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

# ---------------------------------------------------------------- development

.PHONY: test-slow check format bench clean
test-slow: $(VENV)/.test.stamp  ## the slow tests
	@$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev.stamp  ## ruff, pyright, import-linter
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/.dev.stamp  ## let ruff mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

BENCH ?= --all --keep
bench: $(VENV)/.core.stamp  ## the benchmarks, kept, and docs/speed.md: some eleven minutes on a quiet machine
	@$(BIN)/python benchmarks/run.py $(BENCH)

clean:  ## remove the environment and caches (build/, with its training runs, stays)
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests pictogram examples -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the live page
# Built files are part of the package: only who changes web/ needs node (20 or newer) and npm.

PAGES := src/fewstep/serve/static src/fewstep/export/static
NPM   := npm --prefix

.PHONY: page page-check page-test test-browser
page:  ## build the live page and the exported page from web/ into the package (needs node)
	@$(NPM) web ci --no-audit --no-fund
	@$(NPM) web run build

page-test:  ## types and tests of the pages' source
	@$(NPM) web ci --no-audit --no-fund
	@$(NPM) web run check
	@$(NPM) web test

page-check:  ## build the pages elsewhere from their lock file, and fail where the package holds something else
	@set -e; there=$$(mktemp -d); trap 'rm -rf "$$there"' EXIT; \
	tar -c --exclude node_modules web | tar -x -C "$$there"; \
	$(NPM) "$$there/web" ci --no-audit --no-fund; \
	$(NPM) "$$there/web" run build; \
	for page in $(PAGES); do diff -r "$$there/$$page" $$page; done; echo "the package holds what web/ makes"

test-browser: $(VENV)/.test.stamp $(VENV)/.browser.stamp  ## the pages in a real Chromium
	@$(BIN)/python -m pytest tests/browser -m browser $(BROWSER_ARGS)

# ---------------------------------------------------------------- the embedded model, from nothing
# Each step leaves its result under build/pictogram; the long ones can be stopped and started again.

# RECIPE=cpu is what the shipped weights were made with: two cores, about three hours, everyday words first.
# RECIPE=gpu trains all words, larger batches, longer; the scripts take a GPU when there is one.

TRAIN  := $(VENV)/.train.stamp
WORK   := build/pictogram
STEPS  := fetch tokenizer vae teacher encode distill tiny judge style ship evaluate papers sheet
RECIPE ?= cpu

VAE_cpu     := --steps 3600 --batch 16
VAE_gpu     := --steps 20000 --batch 64
BROAD_cpu   := --words all --steps 7000 --until 1414
BROAD_gpu   := --words all --steps 12000 --batch 256 --scenes 96000
FINISH_cpu  := --words everyday --steps 7000 --scenes 10240
FINISH_gpu  := $(BROAD_gpu)
ENCODE_cpu  := --words everyday --scenes 6144
ENCODE_gpu  := --words all --scenes 49152
TINY_cpu    := --steps 9000 --scenes 4000 --painted 2500
TINY_gpu    := $(TINY_cpu)
DISTILL_cpu :=
DISTILL_gpu := --set batch=256 --set steps=6000 --set origin_steps=50
JUDGE_cpu   := --steps 1200
JUDGE_gpu   := $(JUDGE_cpu)
STYLE_cpu   := --steps 400 --scenes 3000
STYLE_gpu   := --steps 1500 --batch 256
WORDS_cpu   := everyday
WORDS_gpu   := all

.PHONY: pictogram $(STEPS:%=pictogram-%) pictogram-students pictogram-students-table
pictogram:  ## train the embedded model from nothing: all of the following, in this order (RECIPE=cpu or gpu)
	@set -e; for step in $(STEPS); do echo "== pictogram-$$step"; $(MAKE) --no-print-directory pictogram-$$step; done

pictogram-fetch: $(TRAIN)  ## picture sets from the npm registry (needs npm and a network)
	$(BIN)/python -m pictogram.fetch

pictogram-tokenizer: $(TRAIN)  ## the vocabulary
	$(BIN)/python -m pictogram.tokenizer

pictogram-vae: $(TRAIN)  ## the autoencoder
	$(BIN)/python -m pictogram.train_vae $(VAE_$(RECIPE))

pictogram-teacher: $(TRAIN)  ## the text encoder and the UNet
	$(BIN)/python -m pictogram.train_teacher $(BROAD_$(RECIPE))
	$(BIN)/python -m pictogram.train_teacher $(FINISH_$(RECIPE))

pictogram-encode: $(TRAIN)  ## scenes as latents
	$(BIN)/python -m pictogram.encode $(ENCODE_$(RECIPE))

pictogram-distill: $(TRAIN)  ## the LCM-LoRA
	$(BIN)/fewstep distill recipes/pictogram-lcm-lora.toml --model $(WORK)/model --data $(WORK)/cache \
		-o $(WORK)/lcm-lora.safetensors $(DISTILL_$(RECIPE))

pictogram-tiny: $(TRAIN)  ## the tiny autoencoder
	$(BIN)/python -m pictogram.train_tiny $(TINY_$(RECIPE))

pictogram-judge: $(TRAIN)  ## the judge that reads pictures
	$(BIN)/python -m pictogram.judge $(JUDGE_$(RECIPE))

pictogram-style: $(TRAIN)  ## a fine-tuned base in a style that nothing else has seen
	$(BIN)/python -m pictogram.finetune_style $(STYLE_$(RECIPE))

pictogram-evaluate: $(TRAIN)  ## the figures of the README, and of the LoRA on the fine-tuned base
	$(BIN)/python -m pictogram.evaluate --words $(WORDS_$(RECIPE))
	$(BIN)/python -m pictogram.evaluate --words $(WORDS_$(RECIPE)) --model $(WORK)/style-model \
		--lora src/fewstep/assets/pictogram/lcm-lora.safetensors --prompts-only-style blob --name blob

# Each goes on from what its recipe names; one that is there is left alone, and an interrupted one goes on.
STUDENTS := pcm pcm-adversarial full-pcm tcd tdd full-lcm tdm

pictogram-students: $(TRAIN)  ## the other students of the embedded model: PCM, TCD, TDD, a full LCM, TDM
	@set -e; mkdir -p $(WORK)/students; for name in $(STUDENTS); do \
		out=$(WORK)/students/$$name; case $$name in full-*) ;; *) out=$$out.safetensors;; esac; \
		if [ -e $$out ]; then echo "$$out is there"; continue; fi; \
		if [ $$name = full-pcm ] && [ ! -d $(WORK)/starts/pcm ]; then mkdir -p $(WORK)/starts; $(BIN)/fewstep merge \
			$(WORK)/model --lora $(WORK)/students/pcm-adversarial.safetensors -o $(WORK)/starts/pcm; fi; \
		resume=; [ ! -f $(WORK)/students/$$name.run/state.safetensors ] || resume=--resume; \
		$(BIN)/fewstep distill recipes/pictogram-$$name.toml --model $(WORK)/model --data $(WORK)/cache -o $$out $$resume; \
	done

pictogram-students-table: $(TRAIN)  ## one table of all students at equal evaluations -> docs/students.md
	$(BIN)/python -m pictogram.students --words $(WORDS_$(RECIPE))

pictogram-ship: $(TRAIN)  ## everything into the package, as fp16
	$(BIN)/python -m pictogram.ship

pictogram-papers: $(TRAIN)  ## the measured figures into README and card
	$(BIN)/python -m pictogram.papers

.PHONY: pictogram-samplers
pictogram-samplers: $(TRAIN)  ## every sampler, schedule and number of steps -> docs/samplers.md and its sheets
	$(BIN)/python -m pictogram.samplers

pictogram-sheet: $(TRAIN)  ## the contact sheet of the README
	$(BIN)/python -m pictogram.sheet
