#!/usr/bin/env python3
"""Evaluate embeddings: rank the gallery for every query; mAP, CMC and mINP → JSON. Or compare two such files."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import collections
import dataclasses
import itertools
import os

import numpy as np

from tripletreid import argument_types, exclusion, plugins
from tripletreid.dataset import BLOCK
from tripletreid.embeddings.differences import differences
from tripletreid.errors import InputError, exit_with, warn
from tripletreid.evaluation import multi_query, open_set, ranking, reranking, scores, verification
from tripletreid.evaluation.bootstrap import CONFIDENCE, SAMPLES, SEED
from tripletreid.evaluation.by_camera import by_camera
from tripletreid.evaluation.comparison import compare
from tripletreid.evaluation.results import is_evaluation, write_results
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.evaluation.tables import print_results
from tripletreid.evaluation.workers import pool
from tripletreid.files import check_output
from tripletreid.metrics import METRICS

NEEDED = ('excluder', 'query_dataset', 'query_embeddings', 'gallery_dataset', 'gallery_embeddings', 'metric')
MOST_EQUAL = 0.05  # Fraction of queries; a few pictures are often stored twice.
LONGEST_CMC = 100_000  # Further ranks would only make the file large.


def make_parser():
    """Return the parser of evaluate.py's command line."""
    # An excluder of a benchmark needs no argument and reads the camera off a file name.
    excluders = {name: plugins.load('excluders', name) for name in plugins.choices('excluders')}
    benchmarks = [name for name, module in excluders.items() if hasattr(getattr(module, 'Excluder', None), 'ids')]
    parser = argument_types.ArgumentParser(
        description='Evaluate embeddings.',
        usage='%(prog)s --query_dataset CSV --query_embeddings H5\n'
              '                   --gallery_dataset CSV --gallery_embeddings H5\n'
              '                   --excluder NAME --metric METRIC [more flags]\n'
              '       %(prog)s --compare JSON JSON',
        example='python evaluate.py --excluder diagonal --metric euclidean --filename runs/first/evaluation.json \\\n'
                '    --query_dataset csv/query.csv --query_embeddings runs/first/query_embeddings.h5 \\\n'
                '    --gallery_dataset csv/test.csv --gallery_embeddings runs/first/test_embeddings.h5')
    add = parser.add_argument_group('required').add_argument
    add('--query_dataset', metavar='CSV', help='csv file of the queries: identity,relative/path.jpg per line')
    add('--query_embeddings', **argument_types.EMBEDDINGS_OPTIONS, help='embeddings of the queries, as embed.py writes '
        'them: one file, or all of its shards')
    add('--gallery_dataset', metavar='CSV', help='csv file of the gallery, the images to search')
    add('--gallery_embeddings', **argument_types.EMBEDDINGS_OPTIONS, help='embeddings of the gallery')
    add('--excluder', type=argument_types.excluder, metavar='NAME', help='which gallery images a query ignores. '
        f'diagonal: only the query file itself; {", ".join(benchmarks)}: images of its identity in its own camera, read '
        'off file names as in that dataset; regex:PATTERN: images of its identity in its own camera, read off your own '
        'file names by a pattern with the groups (?P<pid>…) and (?P<cid>…); sequence:PATTERN: images of its identity in '
        'its own sequence, with the groups (?P<pid>…) and (?P<sid>…); frames_later:N: every image except the '
        'images of its own sequence N frames later, read off file names as make_dataset.py mot writes them, or by '
        'frames_later:N:PATTERN with the groups (?P<sid>…) and (?P<frame>…). A PATTERN is searched in the name of a file, '
        'or in its whole path if the PATTERN contains a slash')
    add('--metric', choices=METRICS, help='distance of embeddings, usually the metric of the training')

    add = parser.add_argument_group('how and where').add_argument
    add('--filename', metavar='JSON', help='file to write the results to')
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='queries at a time '
        '(default: %(default)s)')
    add('--use_market_ap', action='store_true', help='average precision as in the Market-1501 benchmark, not as in '
        'scikit-learn; about a point lower')
    add('--workers', type=argument_types.threads, default=1, metavar='N', help='processes that share the work '
        '(default: %(default)s)')
    add('--allow_different', action='store_true', help='compare embeddings although they were made differently, e.g. with '
        'another checkpoint, test-time augmentation or precision')
    add('--dask', metavar='ADDRESS', help='workers of a Dask cluster share the work instead: '
        f'{argument_types.DASK_ADDRESS}')

    more = parser.add_argument_group('protocols')
    add = more.add_argument
    add('--multi_query_dataset', metavar='CSV', needs='--multi_query_embeddings',
        help='more images of the queries, as gt_bbox of Market-1501: a query becomes the mean of the images of its identity '
        'in its camera')
    add('--multi_query_embeddings', **argument_types.EMBEDDINGS_OPTIONS, needs='--multi_query_dataset',
        help='embeddings of these images')
    add('--rerank', action='store_true', help='re-rank by k-reciprocal neighbours (Zhong et al. 2017)')
    add('--rerank_k1', type=argument_types.positive_int, default=20, metavar='K1', needs='--rerank', help='number of '
        'neighbours that may be reciprocal (default: %(default)s)')
    add('--rerank_k2', type=argument_types.positive_int, default=6, metavar='K2', needs='--rerank', help='number of '
        'neighbours whose encodings are averaged (default: %(default)s)')
    add('--rerank_lambda', type=argument_types.fraction, default=0.3, metavar='L', needs='--rerank', help='weight of the '
        'original distance (default: %(default)s)')
    add('--by_camera', action='store_true', help='also report the mAP per pair of query and gallery camera')
    add('--verification', action='store_true', help='also verify all pairs of a query and a gallery image: ROC, EER, '
        'and thresholds with TPR at FPR; with queries without a match also open-set identification, DIR at FAR')
    add('--hold_out', type=argument_types.inner_fraction, metavar='F', needs='--verification', help='for open-set '
        'identification: remove the images of this fraction of the query identities, picked at random, from the gallery')
    add('--threshold_from', metavar='JSON', help='apply a threshold of another evaluation with --verification, and verify '
        'as well')
    add('--fpr', type=argument_types.fraction, default=1e-3, metavar='F', needs='--threshold_from', help='FPR of the '
        'threshold (default: %(default)s)')

    add = parser.add_argument_group('instead of evaluating').add_argument
    add('--compare', nargs=2, metavar='JSON', help='compare two results, with bootstrap confidence intervals of '
        'the differences')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    if args.compare:
        argument_types.refuse_given(parser, set(vars(args)) - {'compare'}, '--compare reads two results and evaluates '
                                    'nothing')
        return compare(*args.compare)
    missing = [f'--{flag}' for flag in NEEDED if getattr(args, flag) is None]
    if missing:
        parser.error(f'the following arguments are required: {", ".join(missing)}')
    parser.check(args)
    if args.rerank and (args.verification or args.threshold_from):
        parser.error('--verification compares the distances of pairs, and a re-ranked distance depends on other images '
                     'too: remove --rerank')
    if args.dask:
        argument_types.refuse_given(parser, {'workers'}, '--dask has its own workers')
    if args.filename is not None:
        check_output(args.filename, '--filename', 'an evaluation as evaluate.py writes it', is_evaluation, [
            args.query_dataset, args.query_embeddings, args.gallery_dataset, args.gallery_embeddings,
            args.multi_query_dataset, args.multi_query_embeddings, args.threshold_from])
    chosen = args.threshold_from and verification.threshold_at(args.threshold_from, args.fpr, args.metric)
    with pool(args.dask or args.workers) as workers:
        evaluate(args, chosen, workers)


def evaluate(args, chosen, workers):
    """Rank, score, write and print.

    Args:
        args: parsed command line.
        chosen: the `OperatingPoint` of --threshold_from, or None.
        workers: as `workers.pool` yields them.
    """
    from tripletreid import provenance

    # Queries, gallery and protocol.
    retrieval, made_with = open_retrieval(args, workers)
    query_set, gallery_set = retrieval.query_set, retrieval.gallery_set
    if chosen is not None:
        for parameters in made_with.values():
            doubt = verification.doubt(args.threshold_from, parameters)
            if doubt:
                warn(doubt)
                break

    # Rank the gallery for every query.
    verify = args.verification or chosen is not None
    if verify:
        ranks, pairs = verification.measure(retrieval, [] if chosen is None else [chosen.threshold])
    else:
        ranks = ranking.rank(retrieval)
    unmatched = int((~ranks.matched).sum())
    if unmatched == len(query_set):
        raise InputError(f'No query of {args.query_dataset} has a match in {args.gallery_dataset} that the excluder '
                         f'{args.excluder} leaves: there is nothing to score.')
    if not ranks.ignored_matches:
        warn_of_separate_cameras(retrieval)
    if unmatched:
        warn(f'{unmatched} of {len(query_set)} queries have no match in the gallery. They count neither in mAP nor in CMC.')

    # Scores. The original wrote the first three keys.
    ap = ranks.ap_market1501 if args.use_market_ap else ranks.ap_sklearn
    summary, chance = scores.summary(ranks.scores, query_set.pids), scores.chance(ranks)
    results = {
        'mAP': float(np.nanmean(ap)),
        'CMC': ranks.cmc(min(len(gallery_set), LONGEST_CMC)).tolist(),
        'aps': ap[ranks.matched].tolist(),
        'mAP_sklearn': summary['mAP_sklearn'].mean,
        'mAP_market1501': summary['mAP_market1501'].mean,
        'mINP': summary['mINP'].mean,
        'scores': {name: {'mean': score.mean, 'interval': score.interval, 'chance': chance.get(name),
                          'queries': or_none(ranks.scores[name])} for name, score in summary.items()},
        'counts': {'queries': len(query_set), 'queries_without_match': unmatched, 'gallery': len(gallery_set),
                   'junk': ranks.junk},
        'confidence': {'level': CONFIDENCE, 'samples': SAMPLES, 'seed': SEED, 'top1': summary['rank-1'].interval,
                       'mAP': summary['mAP_market1501' if args.use_market_ap else 'mAP_sklearn'].interval},
        'gallery_hash': gallery_set.content_hash(),
        'queries': result_of_each_query(query_set, ranks),
        'parameters': vars(args),
        'embedding_parameters': made_with,
        'versions': provenance.versions(),
    }
    if verify:
        results['verification'] = verification.verification(pairs, query_set.pids)
        places = open_set.first_places(pairs, ranks, retrieval)
        if unmatched:
            results['open_set'] = open_set.open_set(places)
        if chosen is not None:
            applied = verification.at_threshold(pairs, query_set.pids, chosen.threshold)
            if unmatched:
                applied |= open_set.open_set_at(places, chosen.threshold)
            results['threshold_applied'] = {'threshold_from': args.threshold_from, 'chosen_at_fpr': args.fpr, **applied}
    if args.by_camera:
        results['by_camera'] = by_camera(retrieval, args.use_market_ap)
    try:
        if args.filename is not None:
            write_results(args.filename, results)
    finally:  # A disk that is full by now does not cost the numbers.
        print_results(results)


def open_retrieval(args, workers):
    """Open queries and gallery, and apply the protocol that the flags name.

    Returns: `Retrieval`, and {'query' or 'gallery': parameters of their embeddings}.
    """
    from tripletreid.dataset import load_dataset, warn_of_lookalikes
    from tripletreid.embeddings.with_dataset import open_gallery, open_with_dataset
    excluder = exclusion.load(args.excluder)
    if (args.by_camera or args.multi_query_dataset) and not hasattr(excluder([]), 'ids'):
        raise InputError(f'--by_camera and --multi_query_dataset need an excluder that reads the camera off a file name, '
                         f'and {args.excluder} does not.')
    queries, query_set = open_with_dataset(args.query_embeddings, load_dataset(args.query_dataset))
    gallery, gallery_set = open_gallery(args.gallery_embeddings, args.gallery_dataset)
    warn_of_lookalikes(query_set, gallery_set)
    exclusion.warn_of_disagreement(args.excluder, excluder, query_set, gallery_set)
    made_with = {'query': queries.parameters, 'gallery': gallery.parameters}
    check_same_making(queries, gallery, args.allow_different)
    warn_of_other_metric(args.metric, made_with)
    warn_of_equal_embeddings(queries)
    warn_of_training_images(made_with, {'query': query_set, 'gallery': gallery_set})
    if args.multi_query_dataset:
        images, image_set = open_with_dataset(args.multi_query_embeddings, load_dataset(args.multi_query_dataset))
        check_same_making(images, gallery, args.allow_different)
        queries = multi_query.mean_of_images(query_set, images, image_set, excluder)
    if args.hold_out:
        gallery, gallery_set = open_set.without_identities(gallery, gallery_set, query_set.pids, args.hold_out)
    retrieval = Retrieval(queries, query_set, gallery, gallery_set, excluder, args.metric, args.batch_size, workers)
    if args.rerank:
        prepared = reranking.k_reciprocal(queries, gallery, args.metric, args.rerank_k1, args.rerank_k2, args.rerank_lambda,
                                        args.batch_size, workers)
        # The workers have shared the search for neighbours, nearly all of the work. Sending them the `Reranking` would
        # take longer than ranking alone.
        retrieval = dataclasses.replace(retrieval, reranking=prepared, workers=1)
    return retrieval, made_with


def check_same_making(queries, gallery, allow_different):
    """Check that two open embedding files were made in the same way; with `allow_different` only warn.

    Raises:
        InputError: they were made differently.
    """
    found = differences(queries.parameters, gallery.parameters)
    if not found:
        return
    sentence = f'{queries.path} and {gallery.path} were made differently: {", ".join(map(str, found))}.'
    if not allow_different:
        raise InputError(f'{sentence} Distances between them mean little: embed one of them again, or add '
                         f'--allow_different.')
    warn(sentence)


def warn_of_other_metric(metric, made_with):
    """Warn where embeddings are compared by another distance than the training run's own."""
    own = {parameters['metric'] for parameters in made_with.values() if parameters.get('metric')}
    if own - {metric}:
        warn(f'the distance is {metric} here, and {" and ".join(sorted(own))} in the training run (--eval_metric, or '
             f'--metric).')


def warn_of_equal_embeddings(queries):
    """Warn where many queries share one embedding: ties between gallery images are broken by the order of their rows."""
    counts = collections.Counter()
    for start in range(0, len(queries), BLOCK):
        counts.update(hash(row.tobytes()) for row in queries.rows(start, min(start + BLOCK, len(queries))))
    number = max(counts.values(), default=0)
    if number > max(1, MOST_EQUAL * len(queries)):
        warn(f'{number} of {len(queries)} queries have one and the same embedding. Unless their pictures are the same, the '
             f'net has collapsed, and CMC and mAP_market1501 depend on the order of the gallery.')


def warn_of_training_images(made_with, sets):
    """Warn of images that the net was trained on, as far as the experiment root that made the embeddings is there.

    Args:
        made_with, sets: {'query' or 'gallery': parameters of the embeddings, and their `Dataset`}.
    """
    known = {}  # Query and gallery mostly come from one root, whose training set is read once.
    for side, parameters in made_with.items():
        roots = parameters.get('experiment_root'), parameters.get('image_root')
        key = repr(roots)  # A file of others may hold anything.
        if key not in known:
            known[key] = training_fids(*roots)
        # An empty set, as for embeddings without a root, contains none of a large gallery's names.
        if number := known[key] and sum(fid in known[key] for fid in sets[side].fids):
            warn(f'{number} of {len(sets[side])} images of the {side} are training images of '
                 f'{parameters["experiment_root"]}, which a net ranks better than new ones.')


def training_fids(experiment_root, image_root):
    """Return the set of the images below an image root that a run was trained on; empty where its root or its csv files
    were moved, and for imported and exported models."""
    from tripletreid.dataset import load_dataset
    from tripletreid.experiment import arguments
    try:
        trained = arguments.load(experiment_root)[0]
        roots, train_sets = arguments.as_list(trained.image_root), arguments.as_list(trained.train_set)
        return {fid for path, root in zip(train_sets, itertools.cycle(roots))
                if os.path.realpath(root) == os.path.realpath(image_root) for fid in load_dataset(path).fids}
    except (InputError, TypeError, ValueError):
        return set()


def warn_of_separate_cameras(retrieval):
    """Warn where no query and gallery image share identity and camera, because their file names may spell them differently.

    Images of a query's identity in its own camera, which should be ignored, then count as matches.
    """
    if not hasattr(retrieval.excluder([]), 'ids'):
        return
    warn('no query shares identity and camera with any gallery image, so that the excluder ignores only junk.')


def result_of_each_query(query_set, ranks):
    """Return a dict per query, with None for a value that a query without a match does not have."""
    columns = {
        'fid': query_set.fids.tolist(),
        'pid': query_set.pids.tolist(),
        'matches': ranks.matches.tolist(),
        'ap': ranks.ap_sklearn.tolist(),
        'ap_market1501': ranks.ap_market1501.tolist(),
        'first_match_rank': ranks.first_match_rank.tolist(),
        'last_match_rank': ranks.last_match_rank.tolist(),
    }
    for name in ('ap', 'ap_market1501', 'first_match_rank', 'last_match_rank'):
        columns[name] = [value if matched else None for value, matched in zip(columns[name], ranks.matched)]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def or_none(values):
    """Return floats as a list, with None for NaN."""
    return [None if value != value else value for value in values.tolist()]


if __name__ == '__main__':
    exit_with(main, lower='--batch_size or --workers')
