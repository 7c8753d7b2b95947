# make demo: train, embed and evaluate on scanned digits. make test: all tests. Both install what is missing into .venv.
PYTHON ?= python3

.PHONY: demo test clean

demo: .venv/installed
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./digits_train.sh digits

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -q -rs -n 2 --dist worksteal

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf digits .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
