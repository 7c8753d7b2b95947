"""The files of cluster.py: csv files of clusters and outliers, and a JSON file with the settings and the table.

Decisions of people about clusters are a csv file as well: a head `image,identity,SHA256` with the hash of the
reviewed clusters, then one line per image whose identity changes, `file id,identity`; images with an empty identity are
thrown out.
"""
import csv
import dataclasses
import io
import json
import os
import re
from typing import NamedTuple

import numpy as np

from tripletreid.clustering import knowledge
from tripletreid.dataset import load_dataset
from tripletreid.dataset_writer import save_datasets
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks
from tripletreid.files import write_json
from tripletreid.names import canonical_name

MARK = 'clusters_sha256'
HEAD = ['image', 'identity']


class Paths(NamedTuple):
    """The files of a clustering; embeddings are only written for images that were embedded for it."""
    clusters: str
    outliers: str
    facts: str
    embeddings: str


def paths_of(clusters):
    """Return the `Paths` of a clustering, given the path of its csv file."""
    stem = clusters.removesuffix('.csv')
    return Paths(clusters, f'{stem}_outliers.csv', f'{stem}.json', f'{stem}_embeddings.h5')


def is_own(path):
    """Return whether a file is one that `write` may replace: a file of a clustering."""
    stem = re.sub(r'(_outliers)?\.(csv|json)$', '', path)
    try:
        read_facts(f'{stem}.json')
    except InputError:
        return False
    return True


def read_facts(path):
    """Read the JSON file of a clustering, a dict. Raises InputError where it is missing or something else."""
    try:
        with open(path, encoding='utf-8') as file:
            facts = json.load(file)
    except OSError as error:
        raise InputError(f'There is no {path}, which cluster.py writes with its csv file: group again.') from error
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not valid JSON ({error}): group again.') from error
    if not isinstance(facts, dict) or not isinstance(facts.get(MARK), str):
        raise InputError(f'{path} is not a file of cluster.py.')
    return facts


def write(paths, dataset, rows, found, settings, known, embeddings, **facts):
    """Write the files of a clustering, complete or not at all.

    Args:
        paths: `Paths`.
        dataset: `Dataset` of the images.
        rows: `Dataset` of the grouped rows, images or one frame per tracklet.
        found: `clusterer.Clustering`. settings: `clusterer.Settings`.
        known: `KnownNames` of the rows, or None.
        embeddings: open `Embeddings`.
        facts: further JSON-serialisable facts: image_root, camera, moment, dataset_path.
    """
    labels = found.labels
    identities = identity_names(labels, known)
    if len(rows) < len(dataset):
        tracklet_numbers = dataset.tracklet_of_row()
        labels, identities = labels[tracklet_numbers], identities[tracklet_numbers]
    grouped = _with_identities(dataset, identities, labels >= 0)
    save_datasets({paths.clusters: _rows(grouped),
                   paths.outliers: _rows(_with_identities(dataset, identities, labels < 0))})
    _write_facts(paths, grouped, embeddings, settings=dataclasses.asdict(settings), threshold=found.threshold,
                 table=[dataclasses.asdict(row) for row in found.rows], **facts)


def write_labelled(paths, dataset, embeddings, **facts):
    """Write a labelled `Dataset` as a clustering, so that visualize.py clusters shows it.

    Args:
        paths: `Paths`. embeddings: open `Embeddings`.
        facts: as `write` stores them: image_root, settings, camera, moment.
    """
    save_datasets({paths.clusters: _rows(dataset)})
    _write_facts(paths, dataset, embeddings, **facts)


def _write_facts(paths, dataset, embeddings, **facts):
    files = getattr(embeddings, 'paths', None) or [embeddings.path]
    write_json(paths.facts, {**facts, MARK: dataset.content_hash(), 'embeddings': [os.path.abspath(path) for path in files],
                             'embedding_parameters': getattr(embeddings, 'parameters', {})})


class KnownNames(NamedTuple):
    """The known identities of some rows.

    numbers: number of the name of each row, int64 [N], `knowledge.UNKNOWN` for junk and rows without a name.
    names: list of the names.
    """
    numbers: np.ndarray
    names: list


def identity_names(labels, known=None):
    """Return the identity of each row: the known name in its cluster, else `cluster-00001`; `outlier-00001` for outliers.

    Args:
        labels: int64 [N]. known: `KnownNames`, or None.

    Returns: object array of str [N].
    """
    known = known or KnownNames(np.full(len(labels), knowledge.UNKNOWN), [])
    taken = set(known.names)
    texts = np.empty(len(labels), object)
    cluster_names = _numbered('cluster', labels.max(initial=-1) + 1, taken)
    outliers, named = labels < 0, known.numbers != knowledge.UNKNOWN
    for row in np.flatnonzero(named & ~outliers):
        cluster_names[labels[row]] = known.names[known.numbers[row]]
    texts[~outliers] = np.array([*cluster_names, None], object)[labels[~outliers]]
    texts[outliers] = _numbered('outlier', outliers.sum(), taken)
    for row in np.flatnonzero(named & outliers):
        texts[row] = known.names[known.numbers[row]]
    return texts


def _numbered(word, count, taken):
    digits = max(5, len(str(count)))
    numbered = [f'{word}-{number:0{digits}}' for number in range(1, count + 1)]
    return [f'{each}-new' if each in taken else each for each in numbered]


def _with_identities(dataset, identities, kept):
    return dataclasses.replace(dataset.take(kept), pids=identities[kept])


def _rows(dataset):
    return zip(*([dataset.pids, dataset.fids] + ([] if dataset.tracklets is None else [dataset.tracklets])))


def known_names(path, rows):
    """Read the known identities of some images.

    Args:
        path: csv file of a dataset.
        rows: `Dataset` of the grouped rows.

    Returns: `KnownNames`.

    Raises:
        InputError: an image that is not among the rows, or has two names.
    """
    given = load_dataset(path)
    given = given.take(~given.junk)
    row_of = {fid: row for row, fid in enumerate(rows.fids)}
    foreign = [fid for fid in given.fids if fid not in row_of]
    if foreign:
        raise InputError(f'{path} names {len(foreign)} images that are not among those to group, such as {foreign[0]}.')
    known, numbers = np.unique(given.pids.astype(str), return_inverse=True)
    names = np.full(len(rows), knowledge.UNKNOWN)
    for fid, number in zip(given.fids, numbers):
        row = row_of[fid]
        if names[row] not in (knowledge.UNKNOWN, number):
            raise InputError(f'{path} gives {fid} two names, {known[names[row]]} and {known[number]}.')
        names[row] = number
    return KnownNames(names, known.tolist())


def pooled(embeddings, dataset):
    """Return the mean embedding of each tracklet, float32 [T, D], in the order of `Dataset.first_frames`."""
    tracklet_numbers = dataset.tracklet_of_row()
    sums = np.zeros((tracklet_numbers.max() + 1, embeddings.shape[1]))
    for start in range(0, len(tracklet_numbers), chunks.GALLERY_AT_ONCE):
        embs = chunks.read(embeddings, start, min(start + chunks.GALLERY_AT_ONCE, len(tracklet_numbers)))
        np.add.at(sums, tracklet_numbers[start:start + len(embs)], embs)
    return (sums / np.bincount(tracklet_numbers)[:, None]).astype(np.float32)


def read_clusters(path):
    """Read the csv file of a clustering and check that it is as cluster.py wrote it; returns `Dataset` and facts."""
    clusters = f'{path.removesuffix("_outliers.csv")}.csv'
    if path.endswith('_outliers.csv') and is_own(clusters):
        raise InputError(f'{path} lists the images outside of all clusters: give the file of the clusters, {clusters}.')
    dataset, facts = load_dataset(path), read_facts(paths_of(path).facts)
    if dataset.content_hash() != facts[MARK]:
        raise InputError(f'{path} was changed since cluster.py wrote it: group again, or take the changed file as it is.')
    return dataset, facts


def read_decisions(path, dataset):
    """Read decisions about clusters, {file id: identity, '' for an image that is thrown out}.

    Args:
        path: csv file, see above.
        dataset: `Dataset` of the clusters.

    Raises:
        InputError: another file, or decisions about another clustering.
    """
    return parsed_decisions(read_decision_file(path), path, dataset)


def read_decision_file(path):
    """Return the bytes of a decision file. Raises InputError where it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        raise InputError(f'The decision file {path} cannot be read: {error.strerror}.') from error


def parsed_decisions(content, name, dataset):
    """Parse the bytes of a decision file; returns and raises as `read_decisions`. `name` stands in messages."""
    try:
        lines = list(csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{name} is not a csv file of decisions ({error}).') from error
    if not lines or lines[0][:2] != HEAD or len(lines[0]) != 3:
        raise InputError(f'{name} is not a decision file of visualize.py clusters: its first line is not '
                         f'{",".join(HEAD)} and a hash.')
    if lines[0][2] != dataset.content_hash():
        raise InputError(f'{name} holds decisions about another clustering than {dataset.path}: apply them to the csv file '
                         f'that they were made for.')
    known = set(dataset.fids)
    decisions = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != 2 or line[0] not in known:
            raise InputError(f'{name}: line {number} is not a file id of {dataset.path} and its identity.')
        decisions[line[0]] = canonical_name(line[1])
    return decisions


def decided(dataset, decisions):
    """Return the `Dataset` after the decisions, in the same order."""
    pids = np.array([decisions.get(fid, pid) for pid, fid in zip(dataset.pids, dataset.fids)], object)
    kept = pids != ''
    if not kept.any():
        raise InputError(f'The decisions throw out all images of {dataset.path}: nothing is left to write.')
    return dataclasses.replace(dataset.take(kept), pids=pids[kept])
