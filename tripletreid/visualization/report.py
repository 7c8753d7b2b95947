"""The report: one HTML page that needs no server and no network, `report.html` with its data inside."""
import dataclasses
import os
import pathlib

import numpy as np

from tripletreid import exclusion
from tripletreid.evaluation import chunks, neighbours
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.evaluation.scores import Score
from tripletreid.visualization import html_page
from tripletreid.visualization.ranked_lists import cameras, ranked_lists
from tripletreid.visualization.thumbnails import Missing, data_address, linked, thumbnails

TEMPLATE = pathlib.Path(__file__).with_name('report.html')
SAMPLE = 1000  # Queries and gallery images between which the distances of different identities are measured.
WIDTH, HEIGHT = 128, 160  # Maximum size of a picture in pixels.
WEIGHED = 64  # Pictures by which the size of a page is estimated.


@dataclasses.dataclass
class Found:
    """The content of a page, without its pictures.

    names: names of the evaluations.
    runs: per evaluation, the data that the page's script reads; gallery images are numbers in `shown`.
    shown: rows of the gallery images in any of the lists, list [G].
    fids, paths: file ids of the Q queries and of those gallery images, and the paths of their files, lists [Q + G].
    """
    names: list
    runs: list
    shown: list
    fids: list
    paths: list

    def files(self):
        """Return the distinct paths, None among them where an image is missing."""
        return list(dict.fromkeys(self.paths))


def find(evaluations, query, gallery, top_k, seed):
    """Find the content of a page.

    Args:
        evaluations: one `Evaluation`, or the one to look at and an earlier one to compare it with.
        query, gallery: `LocatedDataset` of all of them.
        top_k: length of the ranked lists.
        seed: of the sample of distances.

    Returns: `Found`.

    Raises:
        InputError: an evaluation is not one of its embeddings.
    """
    names = _names(evaluations)
    runs = [{'name': name, **_run(evaluation, query, gallery, top_k, seed)}
            for name, evaluation in zip(names, evaluations)]

    # The page contains only the gallery images of some list, with new numbers.
    shown = sorted({row for run in runs for ranked in run['lists'] + run['further'] for row, *_ in ranked})
    number_of_row = {row: number for number, row in enumerate(shown)}
    for run in runs:
        for ranked in run['lists'] + run['further']:
            ranked[:] = [(number_of_row[row], *rest) for row, *rest in ranked]
    return Found(names, runs, shown, [*query.dataset.fids, *gallery.dataset.fids[shown]],
                 query.paths + [gallery.paths[row] for row in shown])


def estimated_bytes(found):
    """Estimate the bytes of the thumbnails on a page from a sample: float."""
    files = found.files()
    some = files[::max(1, len(files) // WEIGHED)]
    return len(files) / len(some) * sum(len(data_address(picture)) for picture in _small(some) if picture)


def page_data(found, evaluations, query, gallery, page, link_images, regions=None):
    """Return the data of a page, as the template's script reads them.

    Args:
        found: result of `find` for these `evaluations`, `query` and `gallery`.
        page: path that the page will have.
        link_images: whether it refers to the image files or holds thumbnails of them.
        regions: layer to switch on, as `regions_layer.layer` returns it, or None.

    Returns: a JSON-serialisable dict, `Missing`.
    """
    now, names, files = evaluations[0], found.names, found.files()
    if link_images:
        images = linked(files, WIDTH, HEIGHT, page)
    else:
        images = list(map(data_address, _small(files)))
    image_of_path = {path: number for number, path in enumerate(files)}
    image = [image_of_path[path] for path in found.paths]
    missing = Missing([fid for number, fid in zip(image, found.fids) if images[number] is None], len(found.fids))

    def table(dataset, image):
        return {'fid': dataset.fids.tolist(), 'pid': dataset.pids.tolist(), 'camera': cameras(now, dataset.fids),
                'image': image}

    data = {
        'title': ' compared with '.join(names),
        'about': _about(now, query.dataset, gallery.dataset),
        'warnings': [f'The distances of {name} are of another kind ({_kind_of_distance(evaluation)}) than of '
                     f'{names[0]} ({_kind_of_distance(now)}).' for name, evaluation in zip(names, evaluations)
                     if _kind_of_distance(evaluation) != _kind_of_distance(now)]
        + ([missing.sentence()] if missing.fids else []),
        'numbers': _summary(*evaluations),
        'images': images,
        'queries': table(query.dataset, image[:len(query.dataset)]),
        'gallery': table(gallery.dataset.take(found.shown), image[len(query.dataset):]),
        'runs': found.runs,
        'regions': regions,
    }
    return data, missing


def _small(files):
    return thumbnails(files, WIDTH, HEIGHT)


def is_page(path):
    """Check whether a file is a page of `write_page`."""
    return html_page.is_made_from(TEMPLATE, path)


def write_page(path, data):
    """Write the page with the data of `page_data`, atomically."""
    html_page.write(path, TEMPLATE, data, image_sources="data: file: 'self'")


def _names(evaluations):
    """Name the evaluations by folder and name of their files, or by the complete path if that is ambiguous."""
    paths = [os.path.splitext(os.path.abspath(evaluation.path))[0] for evaluation in evaluations]
    names = ['/'.join(pathlib.Path(path).parts[-2:]) for path in paths]
    return names if len(set(names)) == len(names) else paths


def _run(evaluation, query, gallery, top_k, seed):
    """Return the data of one evaluation for the page; gallery images are still rows."""
    lists = ranked_lists(evaluation, query, gallery, np.arange(len(query.dataset)), top_k)
    matches = _matches(evaluation, query, gallery)
    same = np.concatenate([distances for _, distances in matches])
    different = _distances_of_others(evaluation, query, gallery, seed)
    edges = np.histogram_bin_edges(np.concatenate([same, different]), 60)
    further = []
    for ranked, (rows, distances) in zip(lists, matches):
        listed = {entry.row for entry in ranked}
        further.append([(row, distance) for row, distance in zip(rows, distances) if row not in listed][:5])
    return {
        'cmc': evaluation.numbers['CMC'][:50],
        'ap': _or_none(evaluation.ap.round(6)),
        'first': _or_none(evaluation.first),
        'last': _or_none(evaluation.last),
        'matches': evaluation.matches.tolist(),
        'lists': [[(int(entry.row), round(float(entry.distance), 4), int(entry.excluded)) for entry in ranked]
                  for ranked in lists],
        'further': [[(int(row), round(float(distance), 4)) for row, distance in ranked] for ranked in further],
        'distances': {'edges': edges.round(6).tolist(), 'same': np.histogram(same, edges)[0].tolist(),
                      'different': np.histogram(different, edges)[0].tolist()},
        'verification': evaluation.verification and _verification(
            evaluation.verification, lists, query.dataset.pids, gallery.dataset.pids),
    }


def _verification(verification, lists, query_pids, gallery_pids):
    """Return the data of a `Verification` for the page, given the ranked lists of all queries and the identities."""
    points = [point for point in verification.tpr_at_fpr if point.threshold is not None]
    accepted_at = []  # Per query the smallest FPR at which its nearest image, of another identity, is accepted.
    for pid, ranked in zip(query_pids, lists):
        nearest = next((entry for entry in ranked if not entry.excluded), None)
        wrong = nearest is not None and gallery_pids[nearest.row] != pid
        accepted_at.append(min((point.fpr for point in points if wrong and nearest.distance <= point.threshold),
                               default=None))
    return {
        'auc': verification.auc, 'eer': verification.eer,
        'roc': [(point.fpr, point.tpr) for point in verification.curve if point.fpr > 0],
        'points': [(point.fpr, point.tpr, point.threshold) for point in points],
        'edges': verification.edges.tolist(), 'same': verification.genuine.tolist(),
        'different': verification.impostor.tolist(),
        'acceptedAt': accepted_at,
    }


def _or_none(numbers):
    return [None if np.isnan(number) else number for number in numbers.tolist()]


def _matches(evaluation, query, gallery):
    """Return all matches of each query: a list [Q] of (gallery rows, distances), nearest first."""
    excluder = exclusion.load(evaluation.parameters['excluder'])
    query_embs = chunks.read_rows(evaluation.query_embeddings, np.arange(len(query.dataset)))
    queries_of, rows_of = {}, {}
    for q, pid in enumerate(query.dataset.pids):
        queries_of.setdefault(pid, []).append(q)
    for row, pid in enumerate(gallery.dataset.pids):
        if pid in queries_of:
            rows_of.setdefault(pid, []).append(row)
    candidates = np.concatenate([np.empty(0, np.int64), *rows_of.values()])
    candidate_embs = chunks.read_rows(evaluation.gallery_embeddings, candidates)
    matches = [(np.empty(0, np.int64), np.empty(0))] * len(query.dataset)
    start = 0
    for pid, rows in rows_of.items():
        queries, rows, embs = queries_of[pid], np.array(rows), candidate_embs[start:start + len(rows)]
        start += len(rows)
        retrieval = Retrieval(query_embs[queries], query.dataset.take(queries), embs, gallery.dataset.take(rows), excluder,
                              evaluation.parameters['metric'], reranking=evaluation.reranking_of(queries, rows))
        found = neighbours.nearest(retrieval, len(rows))
        for q, near, distances in zip(queries, found.rows, found.distances):
            matches[q] = rows[near[near >= 0]], distances[near >= 0]
    return matches


def _distances_of_others(evaluation, query, gallery, seed):
    """Distances between images of different identities, float [n], within a sample of queries and gallery."""
    rng = np.random.default_rng(seed)
    excluder = exclusion.load(evaluation.parameters['excluder'])
    queries = rng.permutation(len(query.dataset))[:SAMPLE]
    rows = rng.permutation(len(gallery.dataset))[:SAMPLE]
    retrieval = Retrieval(chunks.read_rows(evaluation.query_embeddings, queries), query.dataset.take(queries),
                          chunks.read_rows(evaluation.gallery_embeddings, rows), gallery.dataset.take(rows), excluder,
                          evaluation.parameters['metric'], reranking=evaluation.reranking_of(queries, rows))
    found = neighbours.nearest(retrieval, len(rows))
    others = gallery.dataset.pids[rows][found.rows] != query.dataset.pids[queries][:, None]
    return found.distances[others & (found.rows >= 0)]


def _about(evaluation, query_dataset, gallery_dataset):
    counts, parameters = evaluation.numbers['counts'], evaluation.parameters
    words = [f'{len(query_dataset)} queries of {os.path.basename(query_dataset.path)}',
             f'{len(gallery_dataset)} gallery images of {os.path.basename(gallery_dataset.path)}',
             _kind_of_distance(evaluation), f'excluder {parameters["excluder"]}']
    if parameters.get('multi_query_dataset'):
        words.append(f'multi-query with {os.path.basename(parameters["multi_query_dataset"])}')
    if counts.get('queries_without_match'):
        words.append(f'{counts["queries_without_match"]} queries without a match, which count nowhere')
    return ' · '.join(words)


def _kind_of_distance(evaluation):
    parameters = evaluation.parameters
    reranked = ''
    if parameters.get('rerank'):
        reranked = (f', re-ranked with k1 {parameters["rerank_k1"]}, k2 {parameters["rerank_k2"]} and '
                    f'λ {parameters["rerank_lambda"]}')
    return f'{parameters["metric"]} distance{reranked}'


def _scores(evaluation):
    """Return {name: `Score`}: mAP by the evaluation's own definition, and all other scores of scores/."""
    mean_ap = Score(evaluation.numbers['mAP'], evaluation.numbers['confidence']['mAP'])
    return {'mAP': mean_ap, **{name: score for name, score in evaluation.scores.items() if not name.startswith('mAP_')}}


def _summary(now, before=None):
    """Return the numbers at the top of the page: name, value, and a note with the earlier value or the interval."""
    earlier = _scores(before) if before else {}
    summary = []
    for name, score in _scores(now).items():
        note = ''
        if name in earlier:
            note = f'{100 * (score.mean - earlier[name].mean):+.1f}; before {earlier[name].mean:.1%}'
        elif score.interval:
            note = '{:.1%} to {:.1%} (95%)'.format(*score.interval)
        elif name == 'mAP':
            note = 'too few identities for an interval'
        summary.append((name, f'{score.mean:.1%}', note))
    return summary
