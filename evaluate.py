#!/usr/bin/env python3
"""Evaluate embeddings: rank the gallery for every query; mAP, CMC and mINP → JSON. Or compare two such files."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import collections
import sys

import numpy as np

import excluders
from tripletreid import argument_types
from tripletreid.errors import InputError, exit_with
from tripletreid.evaluation import chunks, distances, multi_query, ranking, reranking, verification
from tripletreid.evaluation.bootstrap import CONFIDENCE, SAMPLES, SEED, interval
from tripletreid.evaluation.results import is_evaluation, read_evaluation, write_results
from tripletreid.evaluation.workers import pool
from tripletreid.files import check_output

NEEDED = ('excluder', 'query_dataset', 'query_embeddings', 'gallery_dataset', 'gallery_embeddings', 'metric')
CAMERAS_SHOWN = 10  # As many columns as a terminal has room for.
LONGEST_CMC = 100_000  # Ranks behind these would only make the file large.
TOO_FEW = 'too few identities to say'
COMPARED = ('mAP, scikit-learn', 'mAP, Market-1501', 'rank-1', 'rank-5', 'rank-10', 'mINP')


def make_parser():
    """The parser of evaluate.py's command line."""
    of_datasets = [name for name in excluders.names() if name != 'diagonal']
    parser = argument_types.ArgumentParser(
        description='Evaluate embeddings.',
        usage='%(prog)s --query_dataset CSV --query_embeddings H5 --gallery_dataset CSV --gallery_embeddings H5\n'
              '                   --excluder NAME --metric METRIC [more flags]\n'
              '       %(prog)s --compare JSON JSON',
        example='python evaluate.py --excluder diagonal --metric euclidean --filename runs/first/evaluation.json \\\n'
                '    --query_dataset data/folder_query.csv --query_embeddings runs/first/folder_query_embeddings.h5 \\\n'
                '    --gallery_dataset data/folder_test.csv --gallery_embeddings runs/first/folder_test_embeddings.h5')
    add = parser.add_argument_group('what is needed').add_argument
    add('--query_dataset', metavar='CSV', help='csv file: identity,relative/path.jpg per line')
    add('--query_embeddings', **argument_types.OF_EMBEDDINGS, help='its embeddings, as embed.py writes them: one file, '
        'or all of its parts')
    add('--gallery_dataset', metavar='CSV', help='csv file of the images to search')
    add('--gallery_embeddings', **argument_types.OF_EMBEDDINGS, help='their embeddings')
    add('--excluder', type=argument_types.excluder, metavar='NAME', help='which gallery images a query ignores. '
        f'diagonal: the very same file, nothing else; {", ".join(of_datasets)}: images of its identity by its own '
        'camera, read off file names as in that dataset; regex:PATTERN: likewise, of your own file names, with the groups '
        '(?P<pid>…) and (?P<cid>…)')
    add('--metric', choices=distances.METRICS, help='distance of embeddings, usually that of the training')

    add = parser.add_argument_group('how and where').add_argument
    add('--filename', metavar='JSON', help='file to write the results to')
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='queries at a time '
        '(%(default)s)')
    add('--use_market_ap', action='store_true', help='average precision as in the Market-1501 benchmark, not as in '
        'scikit-learn; about a point lower')
    add('--workers', type=argument_types.threads, default=1, metavar='N', help='processes to share the work '
        '(%(default)s)')
    add('--dask', metavar='ADDRESS', help='instead, have the workers of a Dask cluster share it: '
        f'{argument_types.DASK_ADDRESS}')

    more = parser.add_argument_group('protocols')
    add = more.add_argument
    add('--multi_query_dataset', metavar='CSV', needs='--multi_query_embeddings',
        help='more images of the queries, as gt_bbox of Market-1501: a query '
        'becomes the mean of those of its person in its camera')
    add('--multi_query_embeddings', **argument_types.OF_EMBEDDINGS, needs='--multi_query_dataset',
        help='their embeddings')
    add('--rerank', action='store_true', help='re-rank by k-reciprocal neighbours (Zhong et al. 2017)')
    add('--rerank_k1', type=argument_types.positive_int, default=20, metavar='K1', needs='--rerank', help='(%(default)s)')
    add('--rerank_k2', type=argument_types.positive_int, default=6, metavar='K2', needs='--rerank', help='(%(default)s)')
    add('--rerank_lambda', type=argument_types.fraction, default=0.3, metavar='L', needs='--rerank', help='(%(default)s)')
    add('--by_camera', action='store_true', help='also mAP per pair of query and gallery camera')
    add('--verification', action='store_true', help='also judge all pairs of a query and a gallery image: which distance '
        'means one person, how often that errs, and for queries without a match how often somebody is found')
    add('--threshold_from', metavar='JSON', help='apply the threshold that another evaluation with --verification has; '
        'verifies as well')
    add('--fpr', type=argument_types.fraction, default=1e-3, metavar='F', needs='--threshold_from', help='the one for '
        'this share of pairs of different identities accepted (%(default)s)')

    add = parser.add_argument_group('instead of evaluating').add_argument
    add('--compare', nargs=2, metavar='JSON', help='is the second result better than the first, or is that noise?')
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
        parser.error('--verification judges pairs by their distance, and a re-ranked distance is not one of two images '
                     'alone: leave out --rerank')
    if args.dask:
        argument_types.refuse_given(parser, {'workers'}, '--dask has workers of its own')
    if args.filename is not None:
        check_output(args.filename, '--filename', 'an evaluation as evaluate.py writes it', is_evaluation, [
            args.query_dataset, args.query_embeddings, args.gallery_dataset, args.gallery_embeddings,
            args.multi_query_dataset, args.multi_query_embeddings, args.threshold_from])
    chosen = args.threshold_from and verification.threshold_at(args.threshold_from, args.fpr, args.metric)
    with pool(args.dask or args.workers) as workers:
        evaluate(args, chosen, workers)


def evaluate(args, chosen, workers):
    """Rank, score, write and print what the command line asks for.

    Args:
        args: of the command line.
        chosen: the `OperatingPoint` of --threshold_from, or None.
        workers: what `workers.pool` yields.
    """
    from tripletreid import provenance
    from tripletreid.dataset import load_dataset, warn_of_lookalikes
    from tripletreid.embeddings.with_dataset import open_gallery, open_with_dataset

    # Queries and gallery.
    excluder = excluders.load(args.excluder)
    if args.by_camera or args.multi_query_dataset:
        if not hasattr(excluder([]), 'ids'):
            raise InputError(f'--by_camera and --multi_query_dataset need an excluder that reads the camera off a file '
                             f'name, and {args.excluder} does not.')
    queries, query_set = open_with_dataset(args.query_embeddings, load_dataset(args.query_dataset))
    gallery, gallery_set = open_gallery(args.gallery_embeddings, args.gallery_dataset)
    warn_of_lookalikes(query_set, gallery_set)
    embedding_parameters = {'query': queries.parameters, 'gallery': gallery.parameters}
    if chosen is not None:
        warn_of_other_embeddings(args.threshold_from, embedding_parameters)
    warn_of_other_weights(queries, gallery)
    if args.multi_query_dataset:
        images, image_set = open_with_dataset(args.multi_query_embeddings, load_dataset(args.multi_query_dataset))
        warn_of_other_weights(images, gallery)
        queries = multi_query.mean_of_images(query_set, images, image_set, excluder)

    # Rank the gallery for every query.
    how = {'excluder': excluder, 'metric': args.metric, 'batch_size': args.batch_size, 'workers': workers}
    if args.rerank:
        how['reranking'] = reranking.k_reciprocal(queries, gallery, args.metric, args.rerank_k1, args.rerank_k2,
                                                args.rerank_lambda, args.batch_size, workers)
        # The workers have shared the neighbours of all images, nearly all of the work. To hand them what re-ranking
        # knows of the queries would take longer than to rank.
        how['workers'] = 1
    verify = args.verification or chosen is not None
    if verify:
        thresholds = [] if chosen is None else [chosen.threshold]
        ranks, pairs = verification.measure(queries, query_set, gallery, gallery_set, thresholds, how)
    else:
        ranks = ranking.rank(queries, query_set, gallery, gallery_set, **how)
    unmatched = int((~ranks.matched).sum())
    if unmatched == len(query_set):
        raise InputError(f'No query of {args.query_dataset} has a match in {args.gallery_dataset} that the excluder '
                         f'{args.excluder} leaves: there is nothing to score.')
    if unmatched:
        print(f'Warning: {unmatched} of {len(query_set)} queries have no match in the gallery. They count neither in '
              f'mAP nor in CMC.', file=sys.stderr)

    # Scores. Those of the file's first keys are what the original wrote.
    ap = ranks.ap_market1501 if args.use_market_ap else ranks.ap_sklearn
    cmc = ranks.cmc(min(len(gallery_set), LONGEST_CMC))
    results = {
        'mAP': float(np.nanmean(ap)),
        'CMC': cmc.tolist(),
        'aps': ap[ranks.matched].tolist(),
        'mAP_sklearn': float(np.nanmean(ranks.ap_sklearn)),
        'mAP_market1501': float(np.nanmean(ranks.ap_market1501)),
        'mINP': float(np.nanmean(ranks.inp)),
        'counts': {'queries': len(query_set), 'queries_without_match': unmatched, 'gallery': len(gallery_set),
                   'junk': ranks.junk},
        'confidence': confidence(query_set.pids, ap, ranks),
        'gallery_hash': gallery_set.content_hash(),
        'queries': result_of_each_query(query_set, ranks),
        'parameters': vars(args),
        'embedding_parameters': embedding_parameters,
        'versions': provenance.versions(),
    }
    if verify:
        results['verification'] = verification.verification(pairs, query_set.pids)
        places = verification.first_places(pairs, ranks, queries, query_set, gallery, gallery_set, how)
        if unmatched:
            results['open_set'] = verification.open_set(places)
        if chosen is not None:
            applied = verification.at_threshold(pairs, query_set.pids, chosen.threshold)
            if unmatched:
                applied |= verification.open_set_at(places, chosen.threshold)
            results['threshold_applied'] = {'threshold_from': args.threshold_from, 'chosen_at_fpr': args.fpr, **applied}
    if args.by_camera:
        results['by_camera'] = by_camera(queries, query_set, gallery, gallery_set, how, args.use_market_ap)
    try:
        if args.filename is not None:
            write_results(args.filename, results)
    finally:  # A disk that is full by now does not cost the numbers.
        print_results(results)


def warn_of_other_embeddings(threshold_from, embedding_parameters):
    """Say where the threshold of --threshold_from is of embeddings that were made differently."""
    from tripletreid.embeddings.differences import DIFFERENCES
    for parameters in embedding_parameters.values():
        made_by = {name: parameters[name] for name in DIFFERENCES if name in parameters}
        doubt = verification.doubt(threshold_from, made_by)
        if doubt:
            print(f'Warning: {doubt}', file=sys.stderr)
            return


def warn_of_other_weights(embeddings, gallery):
    """Say so where two open embedding files tell that they are not by the same weights."""
    made_by = [tuple(each.parameters.get(name) for name in ('checkpoint_sha256', 'weights'))
               for each in (embeddings, gallery) if 'checkpoint_sha256' in each.parameters]
    if len(set(made_by)) > 1:
        print(f'Warning: {embeddings.path} and {gallery.path} are by different weights (--checkpoint, --weights of '
              f'embed.py), so that distances between them mean nothing. Embed one of them again.', file=sys.stderr)


# --- Protocols --------------------------------------------------------------------------------------------------------

def by_camera(queries, query_set, gallery, gallery_set, how, use_market_ap):
    """The mAP per pair of query and gallery camera: list of dicts, of the pairs that have queries with a match."""
    ids = how['excluder']([]).ids
    query_cameras, camera_of_query = cameras(query_set.fids, ids)
    gallery_cameras, camera_of_image = cameras(gallery_set.fids, ids)
    ranks_by_camera = ranking.rank_parts(queries, query_set, gallery, gallery_set, parts=camera_of_image, **how)
    table = []
    for gallery_camera, ranks in zip(gallery_cameras, ranks_by_camera):
        ap = ranks.ap_market1501 if use_market_ap else ranks.ap_sklearn
        for number, query_camera in enumerate(query_cameras):
            chosen = ranks.matched & (camera_of_query == number)
            if chosen.any():
                table.append({'query_camera': query_camera, 'gallery_camera': gallery_camera,
                              'mAP': float(ap[chosen].mean()), 'queries': int(chosen.sum())})
    return table


def cameras(fids, ids):
    """The different cameras, 2 before 10, and each image's number among them: a list of str and int32 [N]."""
    number_of = {}
    numbers = np.empty(len(fids), np.int32)
    for some in chunks.slices(len(fids), 1 << 16):  # Of millions of images the names would take more than the rest.
        names = fids[np.arange(some.start, some.stop)]  # In an .h5 file, read once.
        numbers[some] = [number_of.setdefault(camera, len(number_of)) for _, camera in ids(names)]
    ordered = in_order(number_of)
    place = {camera: place for place, camera in enumerate(ordered)}
    return ordered, np.array([place[camera] for camera in number_of], np.int32)[numbers]


def in_order(cameras):
    """The different cameras, 2 before 10."""
    return sorted(set(cameras), key=lambda camera: (len(camera), camera))


# --- Results ----------------------------------------------------------------------------------------------------------

def result_of_each_query(query_set, ranks):
    """A dict per query, with None for what a query without a match does not have."""
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


def confidence(pids, ap, ranks):
    """Confidence intervals of mAP and rank-1, for the JSON file; None where there are too few identities to say."""
    matched = ranks.matched
    scores = np.stack([ap[matched], ranks.first_match_rank[matched] == 1], axis=1)
    mean_ap, top1 = interval(pids[matched], scores)
    return {'level': CONFIDENCE, 'samples': SAMPLES, 'seed': SEED, 'mAP': mean_ap, 'top1': top1}


def print_results(results):
    """Print tables, and the summary of the original as the last line."""
    counts, cmc = results['counts'], results['CMC']
    print(f'{counts["queries"]} queries, {counts["queries_without_match"]} of them without a match; '
          f'{counts["gallery"]} gallery images, {counts["junk"]} of them junk')
    between = {name: f'   {CONFIDENCE:.0%} interval {ends[0]:.2%} to {ends[1]:.2%}' if ends else f'   {TOO_FEW}'
               for name, ends in (('mAP', results['confidence']['mAP']), ('rank-1', results['confidence']['top1']))}
    rows = [('mAP', results['mAP'])]
    rows += [(f'rank-{k}', cmc[k - 1]) for k in (1, 5, 10, 20) if k <= len(cmc)]
    rows += [('mINP', results['mINP']), ('mAP, scikit-learn', results['mAP_sklearn']),
             ('mAP, Market-1501', results['mAP_market1501'])]
    for name, score in rows:
        print(f'{name:18}{score:9.2%}{between.get(name, "")}')
    if 'by_camera' in results:
        print_cameras(results['by_camera'])
    if 'verification' in results:
        print_verification(results)
    top = {k: cmc[min(k, len(cmc)) - 1] for k in (1, 2, 5, 10)}
    print(f'mAP: {results["mAP"]:.2%} | top-1: {top[1]:.2%} top-2: {top[2]:.2%} | top-5: {top[5]:.2%} | '
          f'top-10: {top[10]:.2%}')


def print_cameras(table):
    """Print the mAP per pair of cameras, a row per query camera; of many cameras those with most results."""
    mean_ap = {(entry['query_camera'], entry['gallery_camera']): f'{entry["mAP"]:.1%}' for entry in table}
    rows, columns = (most_frequent(table, side) for side in ('query_camera', 'gallery_camera'))
    print('\nmAP by camera of the query (rows) and of the gallery (columns)')
    print(f'{"":8}' + ''.join(f'{short(camera):>7}' for camera in columns))
    for query_camera in rows:
        cells = (mean_ap.get((query_camera, gallery_camera), '-') for gallery_camera in columns)
        print(f'{short(query_camera):8}' + ''.join(f'{cell:>7}' for cell in cells))
    shown = sum((row, column) in mean_ap for row in rows for column in columns)
    if shown < len(table):
        print(f'These are {shown} of {len(table)} pairs, of the {CAMERAS_SHOWN} cameras on either side with most queries; '
              f'the JSON file of --filename has all.')
    print()


def print_verification(results):
    """Print how well distances tell whether two images are of one person, and whether a query is in the gallery."""
    found = results['verification']
    print(f'\nIs it the same person? {found["genuine_pairs"]} pairs of one identity, {found["impostor_pairs"]} of two: '
          f'AUC {found["auc"]:.4%}, equal error rate {found["eer"]:.2%}')
    if found['tpr_at_fpr']:
        print(f'{"of two accepted":18}{"distance up to":>15}{"of one accepted":>17}')
    else:
        print('These are too few pairs of two identities for a threshold.')
    for point in found['tpr_at_fpr']:
        ends = point['interval']
        between = f'{CONFIDENCE:.0%} interval {ends[0]:.2%} to {ends[1]:.2%}' if ends else TOO_FEW
        print(f'{at_most(point["fpr"]):18}{shown(point["threshold"]):>15}{point["tpr"]:17.2%}   {between}')
    if 'open_set' in results:
        found = results['open_set']
        print(f'Is it anybody of the gallery? {found["queries"]} queries have a match, {found["unmatched_queries"]} have '
              f'none')
        print(f'{"of these accepted":18}{"distance up to":>15}{"found at rank 1":>17}')
        for point in found['dir_at_far']:
            print(f'{at_most(point["far"]):18}{shown(point["threshold"]):>15}{point["dir"]:17.2%}')
    if 'threshold_applied' in results:
        here = results['threshold_applied']
        print(f'The threshold {shown(here["threshold"])} accepts {at_most(here["chosen_at_fpr"])} of two in '
              f'{here["threshold_from"]}; here it accepts {here["fpr"]:.4%} of two and {here["tpr"]:.2%} of one')
        if 'far' in here:
            print(f'    and finds {here["dir"]:.2%} of the queries with a match at rank 1, and somebody for '
                  f'{here["far"]:.2%} of those without')
    print()


def at_most(share):
    return f'at most {100 * share:g}%'


def shown(threshold):
    return 'none' if threshold is None else f'{threshold:.6g}'


def most_frequent(table, side):
    """The cameras of one side that have most queries with a match, 2 before 10."""
    queries = collections.Counter()
    for entry in table:
        queries[entry[side]] += entry['queries']
    return in_order(camera for camera, _ in queries.most_common(CAMERAS_SHOWN))


def short(camera):
    return camera if len(camera) <= 6 else f'…{camera[-5:]}'


# --- Comparison -------------------------------------------------------------------------------------------------------

def compare(first_path, second_path):
    """Print how the scores of two results of the same queries differ, and whether that may be noise."""
    first, second = read_evaluation(first_path), read_evaluation(second_path)
    if sorted(first.fids) != sorted(second.fids):
        raise InputError(f'{first_path} and {second_path} are results of different queries: they cannot be compared.')
    told = ['gallery_dataset', 'excluder', 'metric', 'use_market_ap', 'multi_query_dataset', 'rerank']
    if first.parameters.get('rerank') and second.parameters.get('rerank'):
        told += ['rerank_k1', 'rerank_k2', 'rerank_lambda']
    for name in told:
        values = first.parameters.get(name), second.parameters.get(name)
        if values[0] != values[1]:
            print(f'Note: {name} is {values[0]} in the first and {values[1]} in the second.')
    if first.is_of_other_gallery(second.gallery_hash, second.numbers['counts'].get('gallery')):
        print('Note: the first and the second are of different galleries.')
    of_first, of_second = (np.argsort(np.array(each.fids, object), kind='stable') for each in (first, second))
    first_scores, second_scores = compared_scores(first)[of_first], compared_scores(second)[of_second]  # [Q, scores]
    both = ~np.isnan(first_scores + second_scores).any(axis=1)
    if not both.any():
        raise InputError(f'No query has a match both in {first_path} and in {second_path}.')

    pids = np.array(first.pids, object)[of_first][both]
    first_scores, second_scores = first_scores[both], second_scores[both]
    intervals = interval(pids, second_scores - first_scores, lowest=-1)
    print(f'{len(pids)} queries of {len(set(pids))} identities, {CONFIDENCE:.0%} intervals by bootstrap over identities')
    print(f'{"":18}{"first":>9}{"second":>9}{"difference":>12}')
    rows = zip(COMPARED, first_scores.mean(axis=0), second_scores.mean(axis=0), intervals)
    for column, (name, mean, other, ends) in enumerate(rows):
        if (first_scores[:, column] == second_scores[:, column]).all():
            verdict = 'the same for every query'
        elif ends is None:
            verdict = TOO_FEW
        else:
            lower, upper = ends
            word = 'may be noise' if lower <= 0 <= upper else 'better' if lower > 0 else 'worse'
            verdict = f'{lower:+.2%} to {upper:+.2%}   {word}'
        print(f'{name:18}{mean:9.2%}{other:9.2%}{other - mean:+12.2%}   {verdict}')


def compared_scores(evaluation):
    """The scores of COMPARED of each query, float [Q, scores], NaN without a match."""
    first = evaluation.first
    at_most = [np.where(np.isnan(first), np.nan, first <= rank) for rank in (1, 5, 10)]
    inp = evaluation.matches / evaluation.last
    return np.stack([evaluation.ap_sklearn, evaluation.ap_market1501, *at_most, inp], axis=1)


if __name__ == '__main__':
    exit_with(main, lower='--batch_size or --workers')
