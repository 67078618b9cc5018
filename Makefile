# make demo and make test each do all of their own set-up, from nothing; they share one virtual environment in .venv.
# With LOCKED=1 packages come by requirements/dev.lock: the same versions, and no file whose SHA-256 is not in it.
PYTHON ?= python3
SECONDS ?= 600
KILLS ?= 200
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq
VISION := .venv-vision/bin/python
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; run: make PYTHON=python3.11" % sys.version_info[:2])'
FROM_LOCK := --no-deps --require-hashes -r requirements/dev.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check static test-slow soak kills protections equality test-vision format lock clean

demo: .venv/.base  ## the main job on data that comes with a dependency; results in runs/demo
	$(BIN)/coterie demo

test: export OMP_NUM_THREADS := 1
test: .venv/.dev  ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: static test  ## what a change must pass

static: .venv/.dev  ## format, lint, types, layers and measured limits
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/measure.py

test-slow: export OMP_NUM_THREADS := 1
test-slow: .venv/.dev  ## only the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

soak: export OMP_NUM_THREADS := 1
soak: .venv/.dev  ## random kills of random runs: make soak SECONDS=3600
	$(BIN)/python -m pytest -q tests/experiment/test_soak.py -k random_kills --soak $(SECONDS)
	$(BIN)/python -m pytest -q tests/experiment/test_pair_kills.py -k four_processes --soak $(SECONDS)

kills: export OMP_NUM_THREADS := 1
kills: .venv/.dev  ## kill -9 of runs of two processes while they save: make kills KILLS=200
	$(BIN)/python -m pytest -q tests/experiment/test_pair_kills.py -k test_kills_of --kills $(KILLS)

protections: .venv/.dev  ## take out each protection and see the test of its fault fail: 20 to 60 minutes
	$(BIN)/python tools/protections.py

equality: export OMP_NUM_THREADS := 1
equality: .venv/.dev  ## how far runs of several processes are from those of one, for every method
	$(BIN)/python tests/parallel_table.py

test-vision: export OMP_NUM_THREADS := 1
test-vision: .venv-vision/.done  ## the networks of torchvision and timm, with the newest torch: 6 GB in .venv-vision
	$(VISION) -m pytest -n 2 -m vision tests/nets

format: .venv/.dev  ## put files into the project's format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/.base  ## write requirements/dev.lock anew, after a change of the pins
	$(BIN)/python tools/lock.py

clean:  ## remove the environments and caches; runs stay
	rm -rf .venv .venv-vision build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests tools benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.base: pyproject.toml requirements/base.txt
	@$(NEW_ENOUGH)
	@echo "setting up .venv (half a minute on a fast line)"
	@$(BIN)/python -c "" 2>/dev/null || rm -rf .venv  # the Python it was made with is gone
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(LOCKED),$(FROM_LOCK),-r requirements/base.txt)
	$(PIP) --no-deps -e .
	@touch $@

.venv/.dev: .venv/.base requirements/dev.txt $(if $(LOCKED),requirements/dev.lock)
	$(PIP) $(if $(LOCKED),$(FROM_LOCK),-r requirements/dev.txt)
	@touch $@

.venv-vision/.done: pyproject.toml requirements/vision.txt
	@$(NEW_ENOUGH)
	@echo "setting up .venv-vision (1 to 2 minutes on a fast line, 6 GB)"
	@$(VISION) -c "" 2>/dev/null || rm -rf .venv-vision  # the Python it was made with is gone
	$(PYTHON) -m venv .venv-vision
	$(VISION) -m pip install -qq --no-compile --no-cache-dir -r requirements/vision.txt
	$(VISION) -m pip install -qq --no-deps -e .
	$(VISION) -c "import timm, torchvision"  # without them every test would be skipped
	@touch $@
