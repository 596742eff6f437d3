# `make demo` and `make test` do all the set-up on a fresh machine that has Python and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of the same torch build as the pins; one install for demo, tests and development.
EXTRAS := ray,vision,plot,onnx,postgresql,docs,dev

.PHONY: help install demo test lint types unit torture docs dashboard clean study hardware accuracy

help:  ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

install: $(VENV)/installed  ## Make .venv and install the package with the pinned versions.

demo: install  ## Search designs of ResNet-20 on Fashion-MNIST; results in runs/demo.
	$(BIN)/epim-nas search runs/demo.yaml --out runs/demo

test: lint types unit  ## Everything that has to pass: ruff, mypy, pytest.

lint: install  ## Style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Types.
	$(BIN)/mypy -p epim_nas

unit: install  ## Tests. One torch thread per process: two test processes share the cores.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -q -m "not alone"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m alone

torture: install  ## Damaged files, flipped bits and kills, in minutes; counts in docs/reliability.md.
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/fuzz_yaml.py --count 4000 --seed 0
	HYPOTHESIS_PROFILE=random OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/models tests/data tests/test_documents.py tests/test_stored.py
	$(BIN)/python -m tests.torture.bit_flips
	$(BIN)/python -m tests.torture.kills

study: hardware accuracy  ## EPIM's claims, computed again, in half an hour; in build/study and runs/accuracy.

hardware: install  ## Of these: crossbars, latency and energy of ResNet-50 and ResNet-101.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study.py costs --networks resnet101 --out build/study & \
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study.py costs --networks resnet50 --seeds 3 --out build/study && \
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study.py wrapping --out build/study && \
	$(BIN)/python benchmarks/study.py figures --out build/study && wait $$!

accuracy: install  ## Of these: a ResNet-20 on the shipped images at 30x and 60x, one seed.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy.py --networks resnet20 --compressions 30 60 --seeds 1 --lr 0.03 \
		--methods searched bits uniform pruned crossbars

docs: install  ## Build the documentation as a site in build/site; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo Open build/site/index.html, or for its search: $(BIN)/mkdocs serve

dashboard: install  ## TensorBoard of the demo, on this machine only.
	$(BIN)/epim-nas dashboard runs/demo

clean:  ## Remove what `make` made, but not the runs.
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
