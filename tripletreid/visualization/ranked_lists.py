"""An evaluation with its inputs (csv, `.h5` and image files), opened and checked, and its ranked lists."""
import dataclasses
import os
import typing

import numpy as np

from tripletreid import exclusion
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.differences import check_unchanged
from tripletreid.embeddings.shards import in_order
from tripletreid.embeddings.with_dataset import open_with_dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks, neighbours
from tripletreid.evaluation.multi_query import mean_of_images
from tripletreid.evaluation.open_set import without_identities
from tripletreid.evaluation.reranking import k_reciprocal
from tripletreid.evaluation.results import read_evaluation
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.image_root import file_problems, image_path


@dataclasses.dataclass
class LocatedDataset:
    """A `Dataset` with the paths of its image files, None for a file that is missing or outside of the image root."""
    dataset: object
    paths: list


class Ranked(typing.NamedTuple):
    """An image of a ranked list: its row in the gallery, its distance (re-ranked, where the evaluation is), whether the
    protocol excludes it."""
    row: int
    distance: float
    excluded: bool


def open_evaluation(args):
    """Return the evaluation to look at, its queries and its gallery.

    Args:
        args: `evaluation`, a path; `query_dataset`, `query_embeddings`, `gallery_dataset`, `gallery_embeddings` and
            `image_root`, None where the evaluation and the embeddings are right about them; `allow_outside_root`.

    Returns: an `Evaluation`, two `LocatedDataset`.

    Raises:
        InputError: a file is not there, is broken, or is not of the same queries and gallery as the others.
    """
    evaluation = read_evaluation(args.evaluation)
    evaluation.query_embeddings, query = _open_located(
        args.query_embeddings or _file(evaluation, 'query_embeddings'),
        args.query_dataset or _file(evaluation, 'query_dataset'), args)
    evaluation.gallery_embeddings, gallery = _open_located(
        args.gallery_embeddings or _file(evaluation, 'gallery_embeddings'),
        args.gallery_dataset or _file(evaluation, 'gallery_dataset'), args)
    evaluation.check_queries(query.dataset)
    _check_making(evaluation)
    if evaluation.parameters.get('hold_out'):
        evaluation.gallery_embeddings, dataset = _without_held_out(evaluation, gallery.dataset, query.dataset)
        gallery = LocatedDataset(dataset, [gallery.paths[row] for row in evaluation.gallery_embeddings.kept])
    evaluation.check_gallery(gallery.dataset)
    _apply_protocol(evaluation, query.dataset)
    return evaluation, query, gallery


def open_other_evaluation(path, evaluation, query, gallery):
    """Return an evaluation by other embeddings of the same queries and gallery as `evaluation`.

    Raises:
        InputError: it is of other ones, by another definition of AP, or with another excluder.
    """
    other = read_evaluation(path)
    other.check_queries(query.dataset)
    other.check_gallery(gallery.dataset)
    if bool(other.parameters.get('use_market_ap')) != bool(evaluation.parameters.get('use_market_ap')):
        raise InputError(f'{path} and {evaluation.path} have different definitions of AP: only one of them was made '
                         f'with --use_market_ap. Evaluate one again.')
    excluders = [each.parameters['excluder'] for each in (evaluation, other)]
    if excluders[0] != excluders[1]:
        raise InputError(f'{evaluation.path} was made with --excluder {excluders[0]} and {path} with --excluder '
                         f'{excluders[1]}, so that their queries have different galleries. Evaluate one again.')
    other.query_embeddings, _ = open_with_dataset(_file(other, 'query_embeddings'), query.dataset)
    is_reduced = bool(other.parameters.get('hold_out'))
    dataset = load_dataset(_file(other, 'gallery_dataset')) if is_reduced else gallery.dataset
    other.gallery_embeddings, dataset = open_with_dataset(_file(other, 'gallery_embeddings'), dataset)
    _check_making(other)
    if is_reduced:
        other.gallery_embeddings, _ = _without_held_out(other, dataset, query.dataset)
    _apply_protocol(other, query.dataset)
    return other


def _without_held_out(evaluation, gallery_dataset, query_dataset):
    """Return gallery embeddings and `Dataset` without the identities that evaluate.py --hold_out removed."""
    return without_identities(evaluation.gallery_embeddings, gallery_dataset, query_dataset.pids,
                              evaluation.parameters['hold_out'])


def _apply_protocol(evaluation, query_dataset):
    """Process the opened embeddings as evaluate.py did, so that ranks equal the evaluation's."""
    parameters = evaluation.parameters
    if parameters.get('multi_query_dataset'):
        images, image_set = open_with_dataset(_file(evaluation, 'multi_query_embeddings'),
                                              load_dataset(_file(evaluation, 'multi_query_dataset')))
        evaluation.query_embeddings = mean_of_images(query_dataset, images, image_set,
                                                     exclusion.load(parameters['excluder']))
    if parameters.get('rerank'):
        evaluation.reranking = k_reciprocal(
            evaluation.query_embeddings, evaluation.gallery_embeddings, parameters['metric'], parameters['rerank_k1'],
            parameters['rerank_k2'], parameters['rerank_lambda'])


def _file(evaluation, flag):
    """Return the path of a csv file, or the list of paths of embeddings, that evaluate.py was given by a flag."""
    value = evaluation.parameters[flag]
    paths = in_order(value) if isinstance(value, list) else [value]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing:
        moved = '' if flag.startswith('multi_query') else '; there are flags for files that were moved'
        raise InputError(f'{evaluation.path} was made from {missing}, which is not there. Run this in the folder where '
                         f'evaluate.py was run, or evaluate again{moved}.')
    return value


def _open_located(embeddings_path, dataset_path, args):
    embeddings, dataset = open_with_dataset(embeddings_path, load_dataset(dataset_path))
    return embeddings, LocatedDataset(dataset, image_paths(embeddings, dataset.fids, args))


def _check_making(evaluation):
    for side, embeddings in (('query', evaluation.query_embeddings), ('gallery', evaluation.gallery_embeddings)):
        check_unchanged(embeddings, evaluation.made_with.get(side, {}), evaluation.path)


def image_paths(embeddings, fids, args):
    """Return the paths of image files, None for those that are missing or outside of the image root.

    Args:
        embeddings: open `Embeddings`; the image root is theirs where `args.image_root` is None.
        fids: file ids.
        args: `image_root`, `allow_outside_root`.
    """
    image_root = args.image_root or stated(embeddings, 'image_root')
    if image_root is None:
        raise InputError(f'{embeddings.path} does not say where its images are; add --image_root.')
    usable = (None, 'outside') if args.allow_outside_root else (None,)
    return [image_path(image_root, fid) if problem in usable else None
            for fid, problem in zip(fids, file_problems(fids, image_root))]


def stated(embeddings, name):
    """Return a text among embed.py's parameters in the `.h5` file; None where it has none of that name."""
    parameters = embeddings.parameters
    value = parameters.get(name) if isinstance(parameters, dict) else None
    return value if isinstance(value, str) else None


def ranked_lists(evaluation, query, gallery, queries, top_k):
    """Return the nearest gallery images of some queries.

    Args:
        queries: rows of the query dataset, int64 [n].
        top_k: number of images in each list, in addition to the excluded ones.

    Returns: n lists of `Ranked`, nearest first, in which the excluded images have a place but do not count.

    Raises:
        InputError: the first matches have other ranks than in the evaluation: these are other embeddings.
    """
    top_k = min(top_k, len(gallery.dataset))
    excluder = exclusion.load(evaluation.parameters['excluder'])
    retrieval = Retrieval(chunks.read_rows(evaluation.query_embeddings, queries), query.dataset.take(queries),
                          evaluation.gallery_embeddings, gallery.dataset, excluder, evaluation.parameters['metric'],
                          reranking=evaluation.reranking_of(queries))
    valid, seen = (neighbours.nearest(retrieval, k, keep_excluded=keep) for k, keep in ((top_k, False), (2 * top_k, True)))
    _check_first_matches(evaluation, query, gallery, queries, valid.rows)

    lists = []
    for i in range(len(queries)):
        ranked = [Ranked(row, distance, False) for row, distance in zip(valid.rows[i], valid.distances[i]) if row >= 0]
        among = seen.excluded[i] & (seen.distances[i] <= valid.distances[i, -1])
        ranked += [Ranked(row, distance, True) for row, distance in zip(seen.rows[i, among], seen.distances[i, among])]
        lists.append(sorted(ranked, key=lambda entry: entry.distance))
    return lists


def _check_first_matches(evaluation, query, gallery, queries, rows):
    """Check the ranks of first matches against the nearest gallery rows [n, k]; -1 is none."""
    hits = (gallery.dataset.pids[rows] == query.dataset.pids[queries][:, None]) & (rows >= 0)
    ranks = np.where(hits.any(axis=1), 1 + hits.argmax(axis=1), np.nan)
    expected = np.where(evaluation.first[queries] <= rows.shape[1], evaluation.first[queries], np.nan)
    different = ~((ranks == expected) | (np.isnan(ranks) & np.isnan(expected)))
    # Another processor may rank a few near-ties differently; other embeddings change most.
    if different.mean() > 0.1:
        query_path = getattr(evaluation.query_embeddings, 'path', evaluation.parameters.get('multi_query_embeddings'))
        raise InputError(f'{evaluation.path} is no evaluation of {query_path} and {evaluation.gallery_embeddings.path}: '
                         f'the first matches of {different.sum()} of {len(queries)} queries have other ranks. Evaluate '
                         f'again.')


def cameras(evaluation, fids):
    """Return the cameras of file ids, list of str, where the excluder reads them off the file names; else None."""
    excluder = exclusion.load(evaluation.parameters['excluder'])([])
    return [camera for _, camera in excluder.ids(fids)] if hasattr(excluder, 'ids') else None
