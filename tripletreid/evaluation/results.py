"""The JSON file of an evaluation: its schema, written and read; every value is checked when it is read."""
import dataclasses
import json
import math
import pathlib
import re
import typing

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import scores
from tripletreid.evaluation.retrieval_metrics import Ranks
from tripletreid.files import check_file, written_whole
from tripletreid.metrics import METRICS
from tripletreid.names import canonical_path


class OperatingPoint(typing.NamedTuple):
    """Rates at a threshold: pairs of images up to this distance are accepted as one identity.

    fpr: false positive rate, the fraction of impostor pairs that are accepted.
    tpr: true positive rate, the fraction of genuine pairs that are accepted.
    threshold: a distance in the metric's own unit; None where no distance has so small an `fpr`.
    """
    fpr: float
    tpr: float
    threshold: float | None


class OpenSetPoint(typing.NamedTuple):
    """Rates of open-set identification at a threshold: an image is identified if its nearest image is within it.

    far: false alarm rate, the fraction of queries without a match that have any image within the threshold.
    dir: detection and identification rate, the fraction of queries with a match whose nearest image is a match within it.
    threshold: a distance in the metric's own unit; None where no distance has so small a `far`.
    """
    far: float
    dir: float
    threshold: float | None


@dataclasses.dataclass
class Verification:
    """Verification of pairs of images, as `evaluate.py --verification` writes it.

    genuine_pairs, impostor_pairs: number of pairs of one identity, and of two.
    auc, eer: area under the ROC, and equal error rate.
    tpr_at_fpr: a list of `OperatingPoint`, at `fpr` 1e-1, 1e-2, … at most.
    curve: points of the ROC, a list of `OperatingPoint`, nearest first.
    edges: distances [N + 1], ascending.
    genuine, impostor: number of pairs per bin between two edges, int64 [N]; the last bin also holds all further pairs.
    dir_at_far: a list of `OpenSetPoint`, at `far` 1e-1, 1e-2, … at most; empty where every query has a match.
    """
    genuine_pairs: int
    impostor_pairs: int
    auc: float
    eer: float
    tpr_at_fpr: list
    curve: list
    edges: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray
    dir_at_far: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Evaluation:
    """An evaluation of Q queries, as evaluate.py wrote it, and its embeddings.

    path: path of the file.
    parameters: evaluate.py's flags; flags of embeddings are lists of paths.
    numbers: `mAP`, `mINP`, `CMC`, `counts` and `confidence` as in the file; `confidence` has None where that has null.
    gallery_hash: `Dataset.content_hash` of the gallery, None in files that are older than it.
    fids, pids: file id and person id of each query, lists [Q].
    ap_sklearn, ap_market1501, first, last: AP of each query by two definitions, and ranks of its first and last match,
        float [Q], NaN without a match.
    matches: number of matches of each query, int64 [Q].
    scores: {name: `Score`}, the scores of scores/ over all queries.
    score_values: {name: float [Q]}, their values per query, NaN without a match.
    verification: `Verification`, None without --verification.
    made_with: {'query' or 'gallery': parameters of the embedding file, a dict}; empty in older files.
    query_embeddings, gallery_embeddings: open `Embeddings`, once they are opened; with multi-query the queries' are an
        array [Q, D].
    reranking: the `Reranking` of these embeddings, once they are opened, where evaluate.py re-ranked.
    """
    path: str
    parameters: dict
    numbers: dict
    gallery_hash: str | None
    fids: list
    pids: list
    ap_sklearn: np.ndarray
    ap_market1501: np.ndarray
    first: np.ndarray
    last: np.ndarray
    matches: np.ndarray
    scores: dict
    score_values: dict
    verification: Verification | None = None
    made_with: dict = dataclasses.field(default_factory=dict)
    query_embeddings: object = None
    gallery_embeddings: object = None
    reranking: object = None

    def reranking_of(self, queries, rows=slice(None)):
        """Return the `Reranking` of some queries and rows of the gallery, or None."""
        return self.reranking and self.reranking.take(queries, rows)

    @property
    def ap(self):
        """AP of each query by the definition of this evaluation's mAP, float [Q]."""
        return self.ap_market1501 if self.parameters.get('use_market_ap') else self.ap_sklearn

    def is_of_other_gallery(self, gallery_hash, count):
        """Return whether the gallery is known to differ from one with a `Dataset.content_hash` and a number of images.

        None is an unknown value, which differs from nothing.
        """
        pairs = (self.gallery_hash, gallery_hash), (self.numbers['counts'].get('gallery'), count)
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def check_queries(self, dataset):
        """Raise InputError where a `Dataset` does not hold the queries of the evaluation."""
        if self.fids != dataset.fids.tolist():
            raise InputError(f'{self.path} is an evaluation of other queries than {dataset.path}. Evaluate again, or name '
                             f'the csv file that was evaluated.')

    def check_gallery(self, dataset):
        """Raise InputError where a `Dataset` is known not to be the gallery of the evaluation."""
        if self.is_of_other_gallery(dataset.content_hash(), len(dataset)):
            raise InputError(f'{self.path} is an evaluation of another gallery than {dataset.path}. Evaluate again, or name '
                             f'the csv file that was evaluated.')


def read_evaluation(path):
    """Read evaluate.py's JSON file, and check the types and bounds of its values.

    Raises:
        InputError: no such file, not JSON, or not an evaluation.
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
    """Return the `Evaluation` in a file's content; raises various errors of Python where it has another form."""
    parameters, queries = content['parameters'], content['queries']
    for flag in ('query_dataset', 'gallery_dataset', 'metric', 'excluder'):
        _check_text(parameters, flag)
    for flag in ('query_embeddings', 'gallery_embeddings'):
        parameters[flag] = _paths(parameters, flag)
    if parameters['metric'] not in METRICS:
        raise ValueError(f'metric is {parameters["metric"]!r}')
    if parameters.get('rerank'):
        for flag in ('rerank_k1', 'rerank_k2'):
            if not (isinstance(parameters[flag], int) and parameters[flag] > 0):
                raise ValueError(f'{flag} is {parameters[flag]!r}')
        _share(parameters['rerank_lambda'])
    if parameters.get('hold_out') and not 0 < parameters['hold_out'] < 1:
        raise ValueError(f'hold_out is {parameters["hold_out"]!r}')
    if parameters.get('multi_query_dataset'):
        _check_text(parameters, 'multi_query_dataset')
        parameters['multi_query_embeddings'] = _paths(parameters, 'multi_query_embeddings')
    confidence = {}
    for score in ('mAP', 'top1'):
        ends = content['confidence'][score]
        if ends is not None:
            low, high = ends
            ends = _share(low), _share(high)
        confidence[score] = ends
    numbers = {'mAP': _share(content['mAP']), 'mINP': _share(content['mINP']), 'confidence': confidence,
               'CMC': [_share(share) for share in content['CMC']],
               'counts': {count: _count(value) for count, value in content['counts'].items()}}
    gallery_hash = content.get('gallery_hash')
    if not isinstance(gallery_hash, str | None):
        raise TypeError(f'gallery_hash is {gallery_hash!r}')
    if not queries or not numbers['CMC']:
        raise ValueError('it has no queries or no CMC')
    matches = np.array([_count(query['matches']) for query in queries])
    columns = [np.array([check(query[key]) if query['matches'] else math.nan for query in queries], float)
               for key, check in (('ap', _share), ('ap_market1501', _share), ('first_match_rank', _count),
                                  ('last_match_rank', _count))]
    first, last = columns[2:]
    possible = (matches == 0) | (1 <= first) & (first <= last) & (matches <= last)
    if not possible.all():
        raise ValueError(f'the ranks of query {np.argmin(possible)}, counted from 0, are not possible')
    fids = [canonical_path(str(query['fid'])) for query in queries]  # Earlier versions wrote them as the csv spelled them.
    pids = [str(query['pid']) for query in queries]
    verification = _verification(content['verification']) if 'verification' in content else None
    if verification and 'open_set' in content:
        verification.dir_at_far = [OpenSetPoint(_share(point['far']), _share(point['dir']), _threshold(point['threshold']))
                                   for point in content['open_set']['dir_at_far']]
    made_with = {side: dict(each) for side, each in content.get('embedding_parameters', {}).items()}
    found = _scores(content['scores'], matches) if 'scores' in content else _scores_of_older(matches, columns, confidence)
    return Evaluation(path, parameters, numbers, gallery_hash, fids, pids, *columns, matches, *found, verification,
                      made_with)


def _scores(content, matches):
    """Return {name: `Score`} and {name: values [Q]} of the scores in a file."""
    summary, query_values = {}, {}
    for name, score in sorted(content.items(), key=_natural_order):  # The file has rank-10 before rank-5.
        ends = score['interval']
        summary[str(name)] = scores.Score(_share(score['mean']), ends and tuple(map(_share, ends)))
        values = [math.nan if value is None else _share(value) for value in score['queries']]
        query_values[str(name)] = np.array(values, float)
        if len(values) != len(matches):
            raise ValueError(f'{name} has {len(values)} values for {len(matches)} queries')
    return summary, query_values


def _natural_order(item):
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', str(item[0]))]


def _scores_of_older(matches, columns, confidence):
    """Return the scores of a file that is older than the key `scores`, like `_scores`."""
    ap, ap_market1501, first, last = columns
    firsts, lasts = (np.where(np.isnan(ranks), 0, ranks).astype(np.int64) for ranks in (first, last))
    ranks = Ranks(matches, np.zeros_like(matches), ap, ap_market1501, firsts, lasts, junk=0)
    values = scores.query_values(ranks)
    means = {name: float(np.nanmean(values)) for name, values in values.items() if ranks.matched.any()}
    return {name: scores.Score(mean, confidence['top1'] if name == 'rank-1' else None)
            for name, mean in means.items()}, values


def _verification(content):
    """Return the `Verification` in a file; raises various errors of Python where it has another form."""
    at_rates = [OperatingPoint(_share(point['fpr']), _share(point['tpr']), _threshold(point['threshold']))
                for point in content['tpr_at_fpr']]
    columns = content['curve']
    curve = [OperatingPoint(_share(fpr), _share(tpr), _distance(threshold)) for fpr, tpr, threshold in
             zip(columns['fpr'], columns['tpr'], columns['threshold'], strict=True)]
    if any(later < earlier for one, next_one in zip(curve, curve[1:]) for earlier, later in zip(one, next_one)):
        raise ValueError('its curve falls')
    histogram = content['histogram']
    edges = np.array([_distance(edge) for edge in histogram['edges']])
    genuine, impostor = (np.array([_count(count) for count in histogram[kind]]) for kind in ('genuine', 'impostor'))
    if not len(genuine) == len(impostor) == len(edges) - 1 > 0 or not (np.diff(edges) > 0).all():
        raise ValueError('it has no valid histogram')
    return Verification(_count(content['genuine_pairs']), _count(content['impostor_pairs']), _share(content['auc']),
                        _share(content['eer']), at_rates, curve, edges, genuine, impostor)


def _threshold(value):
    """Return a distance, or None."""
    return None if value is None else _distance(value)


def _distance(value):
    """Return a finite number that is not below zero."""
    if not 0 <= value < math.inf:
        raise ValueError(f'{value} is not a distance')
    return float(value)


def _check_text(parameters, flag):
    """Check that a flag's value is a text."""
    if not isinstance(parameters[flag], str):
        raise TypeError(f'{flag} is {parameters[flag]!r}')


def _paths(parameters, flag):
    """Return the paths of embedding files, a list; older evaluations store one path as a text."""
    value = parameters[flag]
    paths = [value] if isinstance(value, str) else value
    if not (isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)):
        raise TypeError(f'{flag} is {value!r}')
    return paths


def _share(value):
    """Return a number from 0 to 1, except for rounding."""
    if not -1e-9 <= value <= 1 + 1e-9:
        raise ValueError(f'{value} is not a number from 0 to 1')
    return float(value)


def _count(value):
    """Return a count."""
    if not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError(f'{value!r} is not a count')
    return value


def is_evaluation(path):
    """Return whether a file is a JSON file of evaluate.py, or of the original code."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {'mAP', 'CMC'} <= set(content)


def write_results(path, results):
    """Write the JSON file, one line per key; one line per number would take longer than the evaluation."""
    lines = [f'  "{key}": {json.dumps(value, sort_keys=True)}' for key, value in sorted(results.items())]
    with written_whole(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write('{\n' + ',\n'.join(lines) + '\n}\n')
