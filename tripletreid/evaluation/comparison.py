"""Two evaluations of the same queries: how their scores differ, and whether the difference may be noise."""
import numpy as np

from tripletreid.embeddings.differences import differences
from tripletreid.errors import InputError
from tripletreid.evaluation import scores
from tripletreid.evaluation.bootstrap import CONFIDENCE
from tripletreid.evaluation.results import read_evaluation
from tripletreid.evaluation.tables import TOO_FEW

PROTOCOL = ('gallery_dataset', 'excluder', 'metric', 'use_market_ap', 'multi_query_dataset', 'rerank', 'hold_out')
RERANKING = ('rerank_k1', 'rerank_k2', 'rerank_lambda')


def compare(first_path, second_path):
    """Print the scores of two evaluations, their differences with confidence intervals, and a verdict each.

    Raises:
        InputError: a file that cannot be read, or evaluations of different queries.
    """
    first, second = read_evaluation(first_path), read_evaluation(second_path)
    first_values, second_values, pids = paired(first, second)
    for note in notes(first, second):
        print(f'Note: {note}.')
    differences_of = {name: second_values[name] - values for name, values in first_values.items()}
    summary = scores.summary(differences_of, pids, lowest=-1)
    if not summary:
        raise InputError(f'No query has a match both in {first_path} and in {second_path}.')
    matched = pids[~np.isnan(next(iter(differences_of.values())))]
    print(f'{len(matched)} queries of {len(set(matched))} identities, {CONFIDENCE:.0%} intervals by bootstrap over '
          f'identities')
    print(f'{"":15}{"first":>9}{"second":>9}{"difference":>12}')
    for name, difference in summary.items():
        both = ~np.isnan(differences_of[name])
        if not differences_of[name][both].any():
            verdict = 'the same for every query'
        elif difference.interval is None:
            verdict = TOO_FEW
        else:
            lower, upper = difference.interval
            word = 'may be noise' if lower <= 0 <= upper else 'better' if lower > 0 else 'worse'
            verdict = f'{lower:+.2%} to {upper:+.2%}   {word}'
        means = first_values[name][both].mean(), second_values[name][both].mean()
        print(f'{name:15}{means[0]:9.2%}{means[1]:9.2%}{means[1] - means[0]:+12.2%}   {verdict}')


def paired(first, second):
    """Put the scores of two evaluations in one order of the queries.

    Args:
        first, second: `Evaluation`.

    Returns: (first_values, second_values, pids): the scores that both have, {name: float [Q]}, and the identities [Q].

    Raises:
        InputError: evaluations of different queries.
    """
    if sorted(first.fids) != sorted(second.fids):
        raise InputError(f'{first.path} and {second.path} are results of different queries: they cannot be compared.')
    orders = [np.argsort(np.array(each.fids, object), kind='stable') for each in (first, second)]
    names = [name for name in first.score_values if name in second.score_values]
    first_values, second_values = ({name: each.score_values[name][order] for name in names}
                           for each, order in zip((first, second), orders))
    return first_values, second_values, np.array(first.pids, object)[orders[0]]


def notes(first, second):
    """Yield the differences between the protocols and the embeddings of two evaluations, in words."""
    names = PROTOCOL
    if first.parameters.get('rerank') and second.parameters.get('rerank'):
        names += RERANKING
    for name in names:
        values = first.parameters.get(name), second.parameters.get(name)
        if values[0] != values[1]:
            yield f'{name} is {values[0]} in the first and {values[1]} in the second'
    renamed = sorted(set(zip(second.fids, second.pids)) - set(zip(first.fids, first.pids)))
    if renamed:
        yield f'{len(renamed)} queries have another identity in the second than in the first, e.g. {renamed[0][0]}'
    if first.is_of_other_gallery(second.gallery_hash, second.numbers['counts'].get('gallery')):
        yield 'the first and the second are of different galleries'
    for which, each in (('first', first), ('second', second)):
        for found in differences(each.made_with.get('query', {}), each.made_with.get('gallery', {})):
            yield f'in the {which}, queries and gallery were made differently: {found}'
    for side in ('query', 'gallery'):
        for found in differences(first.made_with.get(side, {}), second.made_with.get(side, {})):
            if found.name in ('checkpoint', 'checkpoint_sha256'):
                continue  # Most comparisons are comparisons of checkpoints.
            yield f'the embeddings of the {side} were made differently: {found.name} is {found.first} in the first and ' \
                  f'{found.second} in the second'
