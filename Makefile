# Two commands do all the set-up: `make demo` shows Fast R-CNN at work, `make test` checks it.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: demo test types soak schema clean

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

test: $(VENV)/installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m pytest -n auto --dist loadfile

# A call that one of the three systems lacks is an error there.
types: $(VENV)/installed
	echo linux darwin win32 | tr " " "\n" | xargs -P 3 -I system $(BIN)/mypy --platform system --cache-dir .mypy_cache/system

# Twenty minutes: kills a training run 50 times, and gives every reader 10,000 damaged files.
soak: $(VENV)/installed
	$(BIN)/python tests/soak.py
	FASTRCNN_FUZZ=10000 $(BIN)/python -m pytest -k "mutated or fuzz"

# After a change of fastrcnn/config.py: what editors complete and check YAML files by.
schema: $(VENV)/installed
	$(BIN)/python tools/config_schema.py

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build runs data/shapes
