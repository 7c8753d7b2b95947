"""The tables that evaluate.py prints."""
import collections

from tripletreid.evaluation.bootstrap import CONFIDENCE
from tripletreid.evaluation.by_camera import in_order

CAMERAS_SHOWN = 10  # As many columns as a terminal has room for.
TOO_FEW = 'too few identities to say'
# Flags of embed.py that a threshold depends on.
THRESHOLD_FLAGS = ('weights', 'flip_augment', 'crop_augment', 'aggregator', 'pool_tracklets', 'mixed_precision', 'resize',
                   'jpeg')


def print_results(results):
    """Print the content of an evaluation's JSON file: tables, and the original's summary as the last line."""
    counts, cmc = results['counts'], results['CMC']
    print(f'{counts["queries"]} queries, {counts["queries_without_match"]} of them without a match; '
          f'{counts["gallery"]} gallery images, {counts["junk"]} of them junk')
    print(f'{"":15}{"score":>9}{"chance":>9}   {CONFIDENCE:.0%} interval')
    for name, score in results['scores'].items():
        chance = '' if score['chance'] is None else f'{score["chance"]:.2%}'
        print(f'{name:15}{score["mean"]:9.2%}{chance:>9}   {interval_text(score["interval"])}')
    if 'by_camera' in results:
        print_cameras(results['by_camera'])
    if 'verification' in results:
        print_verification(results)
    top = {k: cmc[min(k, len(cmc)) - 1] for k in (1, 2, 5, 10)}
    print(f'mAP: {results["mAP"]:.2%} | top-1: {top[1]:.2%} top-2: {top[2]:.2%} | top-5: {top[5]:.2%} | '
          f'top-10: {top[10]:.2%}')


def interval_text(ends):
    """Return a confidence interval in words; None: too few identities."""
    return f'{ends[0]:.2%} to {ends[1]:.2%}' if ends else TOO_FEW


def print_cameras(table):
    """Print the mAP per pair of cameras, a row per query camera; of many cameras those with most matched queries."""
    mean_ap = {(entry['query_camera'], entry['gallery_camera']): f'{entry["mAP"]:.1%}' for entry in table}
    rows, columns = (most_frequent(table, side) for side in ('query_camera', 'gallery_camera'))
    print('\nmAP by camera of the query (rows) and of the gallery (columns)')
    print(f'{"":8}' + ''.join(f'{shortened(camera):>7}' for camera in columns))
    for query_camera in rows:
        cells = (mean_ap.get((query_camera, gallery_camera), '-') for gallery_camera in columns)
        print(f'{shortened(query_camera):8}' + ''.join(f'{cell:>7}' for cell in cells))
    printed = sum((row, column) in mean_ap for row in rows for column in columns)
    if printed < len(table):
        print(f'{printed} of {len(table)} pairs, of the {CAMERAS_SHOWN} cameras on either side with most matched queries; '
              f'the JSON file of --filename has all.')
    print()


def most_frequent(table, side):
    """Return the cameras of one side that have most matched queries, 2 before 10."""
    queries = collections.Counter()
    for entry in table:
        queries[entry[side]] += entry['queries']
    return in_order(camera for camera, _ in queries.most_common(CAMERAS_SHOWN))


def shortened(camera):
    """Return the last characters of a long camera name."""
    return camera if len(camera) <= 6 else f'…{camera[-5:]}'


def print_verification(results):
    """Print verification (genuine and impostor pairs) and open-set identification."""
    found = results['verification']
    print(f'\nVerification: {found["genuine_pairs"]} genuine pairs, {found["impostor_pairs"]} impostor pairs; '
          f'AUC {found["auc"]:.4%}, EER {found["eer"]:.2%}')
    if found['tpr_at_fpr']:
        print(f'Thresholds hold for the {results["parameters"]["metric"]} distance of embeddings '
              f'{making_text(results["embedding_parameters"]["gallery"])}.')
        print(f'{"FPR":>9}{"threshold":>12}{"TPR":>9}   {CONFIDENCE:.0%} interval of TPR')
    else:
        print('There are too few impostor pairs for a threshold.')
    for point in found['tpr_at_fpr']:
        print(f'{rate_text(point["fpr"]):>9}{threshold_text(point["threshold"]):>12}{point["tpr"]:9.2%}   '
              f'{interval_text(point["interval"])}')
    if 'open_set' in results:
        found = results['open_set']
        print(f'Open-set identification: {found["queries"]} queries with a match, {found["unmatched_queries"]} without')
        print(f'{"FAR":>9}{"threshold":>12}{"DIR":>9}   {CONFIDENCE:.0%} interval of DIR')
        for point in found['dir_at_far']:
            print(f'{rate_text(point["far"]):>9}{threshold_text(point["threshold"]):>12}{point["dir"]:9.2%}   '
                  f'{interval_text(point["interval"])}')
    if 'threshold_applied' in results:
        here = results['threshold_applied']
        print(f'Threshold {threshold_text(here["threshold"])} of {here["threshold_from"]} (FPR at most '
              f'{rate_text(here["chosen_at_fpr"])} there): FPR {here["fpr"]:.4%}, TPR {here["tpr"]:.2%} here'
              + (f', FAR {here["far"]:.2%}, DIR {here["dir"]:.2%}' if 'far' in here else ''))
    print()


def making_text(parameters):
    """Return in words how embeddings were made, given the parameters that their file records."""
    if 'checkpoint' not in parameters:
        return 'whose files do not record how they were made'
    flags = [f'--{name}' if parameters[name] is True else f'--{name} {parameters[name]}' for name in THRESHOLD_FLAGS
             if parameters.get(name) not in (None, False, 'none')]
    return ' '.join([f'by {parameters["checkpoint"]}', *(['with', *flags] if flags else ['without test-time augmentation'])])


def rate_text(rate):
    """Return a rate in percent."""
    return f'{100 * rate:g}%'


def threshold_text(threshold):
    """Return a threshold, or that there is none."""
    return 'none' if threshold is None else f'{threshold:.6g}'
