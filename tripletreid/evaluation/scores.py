"""The scores of scores/: their values per query, means and confidence intervals."""
import dataclasses

import numpy as np

from tripletreid import plugins
from tripletreid.evaluation.bootstrap import interval
from tripletreid.evaluation.retrieval_metrics import NoMatchRanks


def query_values(ranks):
    """Compute all scores of scores/.

    Args:
        ranks: `Ranks`. Scores that need the ranks of all matches are skipped where these are not known.

    Returns: {name: float64 [Q], NaN without a match}.
    """
    values = {}
    for file in plugins.choices('scores'):
        try:
            found = dict(plugins.load('scores', file).scores(ranks))
        except NoMatchRanks:
            continue
        values.update({name: np.asarray(value, np.float64) for name, value in found.items()})
    return values


@dataclasses.dataclass(frozen=True)
class Score:
    """A score over all queries.

    mean: over the queries that have the score.
    interval: (low, high) of its confidence interval, or None where there are too few identities.
    """
    mean: float
    interval: tuple | None


def summary(values, pids, lowest=0):
    """Summarise the scores of all queries.

    Args:
        values: {name: float [Q]}, as `query_values` returns them.
        pids: identities of the queries [Q].
        lowest: the least possible value, 0, or -1 for differences of scores.

    Returns: {name: `Score`}, without scores that no query has.
    """
    known = {name: ~np.isnan(value) for name, value in values.items()}
    found = {}
    for mask in {mask.tobytes(): mask for mask in known.values() if mask.any()}.values():
        # Scores of the same queries, usually all scores, share the draws of the bootstrap.
        names = [name for name in values if np.array_equal(known[name], mask)]
        columns = np.stack([values[name][mask] for name in names], axis=1)
        for name, ends in zip(names, interval(pids[mask], columns, lowest)):
            found[name] = Score(float(np.nanmean(values[name])), ends)
    return {name: found[name] for name in values if name in found}


def chance(ranks):
    """Compute the expected scores of random rankings, exactly, as far as the files of scores/ know them.

    Args:
        ranks: `Ranks`.

    Returns: {name: the mean over matched queries of the expected score}.
    """
    modules = [plugins.load('scores', file) for file in plugins.choices('scores')]
    expected = {name: value for module in modules if hasattr(module, 'chance') for name, value in
                module.chance(ranks.matches[ranks.matched], ranks.valid[ranks.matched])}
    return {name: float(value.mean()) for name, value in expected.items()}
