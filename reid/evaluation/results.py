"""The JSON file of an evaluation, written and read; all that is used of one is checked for its type here."""
import dataclasses
import json
import math
import pathlib

import numpy as np

from reid.errors import InputError
from reid.evaluation import distances
from reid.files import check_file, written_whole


@dataclasses.dataclass
class Evaluation:
    """What evaluate.py wrote (Q queries), and the embeddings that it is about.

    path: of the file.
    parameters: evaluate.py's flags.
    numbers: `mAP`, `mINP`, `CMC`, `counts` and `confidence` as in the file.
    fids: file id of each query, list [Q].
    ap, first, last: AP of each query and ranks of its first and last match, float [Q], NaN without a match.
    matches: how many matches each query has, int [Q].
    query_embeddings, gallery_embeddings: open `Embeddings`, once they are opened.
    """
    path: str
    parameters: dict
    numbers: dict
    fids: list
    ap: np.ndarray
    first: np.ndarray
    last: np.ndarray
    matches: np.ndarray
    query_embeddings: object = None
    gallery_embeddings: object = None


def read_evaluation(path):
    """Read evaluate.py's JSON file; all that is used later is checked for its type here.

    Raises:
        InputError: no such file, no JSON, or not what evaluate.py writes.
    """
    check_file(path, 'evaluation file', '.json')
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not valid JSON ({error}).') from error
    if isinstance(content, dict) and 'mAP' in content and 'queries' not in content:
        raise InputError(f'{path} has no results of single queries, as files of the original code; evaluate again.')
    try:
        return _checked(path, content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f'{path} is not an evaluation as evaluate.py writes it '
                         f'({type(error).__name__}: {error}).') from error


def _checked(path, content):
    """The evaluation that a file's content describes; any of Python's errors where it is of another form."""
    parameters, queries = content['parameters'], content['queries']
    for flag in ('query_dataset', 'query_embeddings', 'gallery_dataset', 'gallery_embeddings', 'metric', 'excluder'):
        if not isinstance(parameters[flag], str):
            raise TypeError(f'{flag} is {parameters[flag]!r}')
    if parameters['metric'] not in distances.METRICS:
        raise ValueError(f'metric is {parameters["metric"]!r}')
    confidence = {}
    for score in ('mAP', 'top1'):
        low, high = content['confidence'][score]
        confidence[score] = _finite(low), _finite(high)
    numbers = {'mAP': _finite(content['mAP']), 'mINP': _finite(content['mINP']), 'confidence': confidence,
               'CMC': [_finite(share) for share in content['CMC']],
               'counts': {count: int(value) for count, value in content['counts'].items()}}
    if not queries or not numbers['CMC']:
        raise ValueError('it has no queries or no CMC')
    ap = 'ap_market1501' if parameters.get('use_market_ap') else 'ap'
    columns = [np.array([math.nan if query[key] is None else _finite(query[key]) for query in queries])
               for key in (ap, 'first_match_rank', 'last_match_rank')]
    matches = np.array([int(query['matches']) for query in queries])
    return Evaluation(path, parameters, numbers, [str(query['fid']) for query in queries], *columns, matches)


def _finite(value):
    if not math.isfinite(value):
        raise ValueError(f'{value} is not finite')
    return float(value)


def write_results(path, results):
    """Write the JSON file, a line per key: with a line per number it would take longer than the evaluation."""
    lines = [f'  "{key}": {json.dumps(value, sort_keys=True)}' for key, value in sorted(results.items())]
    with written_whole(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write('{\n' + ',\n'.join(lines) + '\n}\n')


def read_results(path):
    """Read a JSON file of results.

    Returns: its parameters, a dict, and of each query its fid, pid and scores, None without a match; sorted by fid.

    Raises:
        InputError: not a file that has results of each query.
    """
    try:
        with open(path, encoding='utf-8') as file:
            results = json.load(file)
        queries = [(str(query['fid']), str(query['pid']), scores_of(query)) for query in results['queries']]
        return dict(results['parameters']), sorted(queries, key=lambda query: query[0])
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise InputError(f'{path} is not a file of results of each query, as --filename writes them.') from error


def scores_of(query):
    """The scores of COMPARED of a query, given its entry in a file of results; None without a match."""
    if not query['matches']:
        return None
    first = query['first_match_rank']
    scores = (query['ap'], query['ap_market1501'], first <= 1, first <= 5, first <= 10,
              query['matches'] / query['last_match_rank'])
    return tuple(map(float, scores))
