# Two commands do everything, set-up included: `make train` and `make test`.
.POSIX:
.DELETE_ON_ERROR:
.PHONY: train train-vl test test-all lint clean

VENV = .venv
PY = $(VENV)/bin/python

train: $(VENV)/.ready-train
	$(PY) train_main.py --config=configs/tiny.py --workdir=runs/tiny

# Sees pictures: four small runs, then questions about pictures that none of them had; runs/vl/report.json.
train-vl: $(VENV)/.ready-test
	$(PY) -m benchmarks.train_vl

# Whole files go to the workers: what a file compiles, it compiles once. A bare `pytest tests/x.py` has one process.
# A worker that crashes fails its test and ends the run when the others are done: one that took its place would be given
# no file by `loadfile`, and the run would wait for it for ever.
WORKERS = 2
SPREAD = -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test: $(VENV)/.ready-test
	$(PY) -m pytest $(SPREAD)

# The whole suite, room by room (a room is a folder of tests/), or the one that ROOM names.
ROOM =
test-all: $(VENV)/.ready-test
	@rooms=$$(ls tests/*/test_*.py | cut -d/ -f2 | sort -u); \
	if [ -n "$(ROOM)" ]; then \
	  echo "$$rooms" | grep -qxF -e "$(ROOM)" || \
	    { echo "ROOM=$(ROOM) is no folder of tests/ with tests in it; the rooms are" $$rooms >&2; exit 2; }; \
	  rooms=$(ROOM); \
	fi; \
	failed=; \
	for room in $$rooms; do \
	  echo "tests/$$room"; \
	  $(PY) -m pytest $(SPREAD) -m 'not tpu and not gpu' "tests/$$room" || failed="$$failed $$room"; \
	done; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

lint: $(VENV)/.ready-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# A stamp is renewed when the dependencies change; until then the second call of a command installs nothing.
$(VENV)/.ready-train: setup.py pyproject.toml $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[plots]'
	@touch $@

$(VENV)/.ready-test: setup.py pyproject.toml $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.ready-train

# The first Python >= 3.12 that runs: a name on the PATH may be a shim (pyenv) of a version that is not active.
$(PY):
	@for python in $(PYTHON) python3.12 python3.13 python3.14 python3 python \
	    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	    echo "Setting up $(VENV) with $$("$$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	  fi; \
	done; \
	echo "No Python 3.12 or newer with venv and pip runs here (looked for python3.12, 3.13, 3.14, python3 and pyenv's)." >&2; \
	echo "Install one, e.g. 'apt install python3.12-venv', 'brew install python@3.12', 'pyenv install 3.12'," >&2; \
	echo "then: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1
