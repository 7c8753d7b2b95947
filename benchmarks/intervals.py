#!/usr/bin/env python3
"""How often the confidence intervals of evaluate.py hold the truth, and how wide they are: a table, by simulation.

    benchmarks/intervals.py          a minute

Persons are drawn repeatedly, each with its own difficulty and one to eight queries. Their scores are skewed as in an
evaluation: most persons are found nearly always, some hardly ever. The differences are differences of --compare, between
two models on the same queries. A cell shows the fraction of the given intervals that contain the true mean, and their mean
width; in brackets the fraction of the draws without an interval, if there are any.
"""
import argparse
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # Not this folder: `evaluate` is the project's.

import numpy as np

from tripletreid.argument_types import positive_int
from tripletreid.evaluation import bootstrap

IDENTITIES = (3, 5, 7, 10, 20, 50, 100)
MOST_QUERIES = 8
SIMILARITY = 12  # A larger value makes the scores of one person's queries more similar.
# The drawn scores, with their smallest possible value.
SCORES = {'AP of 85 %': 0, 'AP of 95 %': 0, 'rank-1 of 85 %': 0, 'difference of AP': -1, 'difference of rank-1': -1}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draws', type=positive_int, default=700, help='of each number of identities (%(default)s)')
    args = parser.parse_args()
    methods = {'evaluate.py: bootstrap-t': bootstrap.interval, 'percentiles of the bootstrap': percentiles}
    for name, interval in methods.items():
        print(f'\n{name}, {bootstrap.CONFIDENCE:.0%}\n\n| identities | {" | ".join(SCORES)} |')
        print('| --- ' * (1 + len(SCORES)) + '|')
        for identities in IDENTITIES:
            cells = [cell(*column) for column in simulate(interval, identities, args.draws)]
            print(f'| {identities} | {" | ".join(cells)} |', flush=True)


def simulate(interval, identities, draws):
    """For each of SCORES the intervals of all draws, a list of (lower, upper) or None, and the true mean."""
    random = np.random.default_rng(identities)
    found = {name: [] for name in SCORES}
    for _ in range(draws):
        pids, scores, truth = draw(identities, random)
        for number, (name, lowest) in enumerate(SCORES.items()):
            found[name] += interval(pids, scores[:, number:number + 1], lowest)
    return list(zip(found.values(), truth))


def draw(identities, random):
    """Persons and their scores under known distributions.

    Returns: pids int64 [Q], scores [Q, S] in the order of SCORES, and their true means [S].
    """
    pids = np.repeat(np.arange(identities), random.integers(1, MOST_QUERIES + 1, identities))
    mean, harder_mean = 0.85, 0.95
    first = random.beta(4 * mean, 4 * (1 - mean), identities)
    better = first ** 0.8
    harder = random.beta(4 * harder_mean, 4 * (1 - harder_mean), identities)

    def ap(ability):
        ability = ability[pids].clip(1e-3, 1 - 1e-3)
        return random.beta(SIMILARITY * ability, SIMILARITY * (1 - ability))

    def rank_1(ability):
        return (random.random(len(pids)) < ability[pids]).astype(float)

    scores = [ap(first), ap(harder), rank_1(first), ap(better) - ap(first), rank_1(better) - rank_1(first)]
    # The mean of a power of a beta distributed number.
    a, b = 4 * mean, 4 * (1 - mean)
    gain = math.gamma(a + 0.8) * math.gamma(a + b) / math.gamma(a) / math.gamma(a + b + 0.8) - mean
    return pids, np.stack(scores, axis=1), [mean, harder_mean, mean, gain, gain]


def percentiles(pids, scores, _):
    """Return the intervals of `interval`, by the percentiles of the plain bootstrap over identities."""
    counts = np.bincount(pids)
    sums = np.bincount(pids, scores[:, 0])
    rows = np.random.default_rng(bootstrap.SEED).integers(len(sums), size=(bootstrap.SAMPLES, len(sums)))
    means = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
    tail = (1 - bootstrap.CONFIDENCE) / 2
    return [tuple(np.quantile(means, [tail, 1 - tail]))]


def cell(intervals, truth):
    """Return a cell of the table."""
    there = [ends for ends in intervals if ends]
    if not there:
        return 'none'
    share = np.mean([low <= truth <= high for low, high in there])
    width = np.mean([high - low for low, high in there])
    missing = 1 - len(there) / len(intervals)
    return f'{share:.0%}, ± {width / 2:.1%}' + (f' ({missing:.0%})' if missing else '')


if __name__ == '__main__':
    main()
