# make demo: train, embed and evaluate on scanned digits. make test: all tests. Both install the locked versions into .venv.
# make soak: slow tests that make test omits, then tests/soak.py, which takes an hour.
# make test-newest: all tests with the newest versions that requirements*.txt allow, in .venv-newest.
# make lock: renew the locked versions from requirements*.txt. make docs: renew the tables of flags in docs/.
PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
# The lock holds for every supported Python and system: Python 3.10 to 3.13.
COMPILE = .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes
# A file of tests runs in one worker, because its tests share trained nets; files with the marker `long` start first. Three
# workers fill two cores, because tests wait for processes.
PYTEST = -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder
# The many processes of the tests compile each module once.
unexport PYTHONDONTWRITEBYTECODE
# The command that the locks name in their first lines.
export UV_CUSTOM_COMPILE_COMMAND = make lock

.PHONY: demo test soak test-newest lock docs clean

demo: .venv/installed
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./digits_train.sh digits

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/python $(PYTEST)

soak: .venv/installed-test
	.venv/bin/python -m pytest -q -rs -m soak
	.venv/bin/python tests/soak.py

test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP) -r requirements-test.txt
	.venv-newest/bin/python $(PYTEST)

docs: .venv/installed
	.venv/bin/python docs/tables.py

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) --upgrade uv
	$(COMPILE) --output-file requirements.lock requirements.txt
	$(COMPILE) --constraints requirements.lock --output-file requirements-test.lock requirements-test.txt

.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -r requirements.lock
	touch $@

.venv/installed-test: .venv/installed requirements-test.lock
	.venv/bin/python $(PIP) -r requirements-test.lock
	touch $@

clean:
	rm -rf digits .pytest_cache .ruff_cache .hypothesis .venv-newest .venv-lock
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
