#!/usr/bin/env python3
"""Print the differences from the original as a table: run the fidelity tests and collect their measured values.

    python benchmarks/fidelity.py
"""
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent.parent / 'tests'


class Table:
    """A pytest plug-in that keeps the largest difference of each quantity, in the order of the tests."""

    def __init__(self):
        self.rows = {}

    def pytest_runtest_logreport(self, report):
        for name, value in report.user_properties if report.when == 'call' else ():
            if name == 'fidelity':
                quantity, reached, allowed = value
                self.rows[quantity] = max(reached, self.rows.get(quantity, (0, 0))[0]), allowed


def main():
    table = Table()
    tests = [str(TESTS / name) for name in ('test_fidelity.py', 'test_trinet.py')]
    status = pytest.main(['-q', *tests, *sys.argv[1:]], plugins=[table])
    print('\n| quantity | largest relative difference | allowed |\n| --- | --- | --- |')
    for quantity, (reached, allowed) in table.rows.items():
        print(f'| {quantity} | {f"{reached:.0e}" if reached else "0 (the same bits)"} | {allowed:.0e} |')
    return status


if __name__ == '__main__':
    sys.exit(main())
