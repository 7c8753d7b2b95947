"""The page of clusters: `clusters.html` with the pictures of each cluster, to merge, split, name or throw out clusters.

It is a file, whose browser downloads the decisions, or `clusters_server` serves it and saves them.
"""
import os
import pathlib

import numpy as np

from tripletreid.clustering import clusters_file, features, knowledge, review
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.differences import check_unchanged
from tripletreid.embeddings.shards import open_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks
from tripletreid.image_root import file_problems, image_path
from tripletreid.visualization import html_page
from tripletreid.visualization.thumbnails import Missing, data_address, linked, thumbnails

TEMPLATE = pathlib.Path(__file__).with_name('clusters.html')
WIDTH, HEIGHT = 120, 160  # Maximum size of a picture in pixels.
SAMPLED = 64  # Pictures from which the size of a page is estimated.


class ClustersPage:
    """The content of a page, before there are pictures.

    Attributes:
        dataset: `Dataset` of the clusters.
        reviewed: list of `review.Reviewed`, the most suspicious first.
        paths: of the image files, None for those that cannot be shown.
    """

    def __init__(self, clusters, image_root=None, allow_outside_root=False):
        """Read a clustering and review it.

        Args:
            clusters: path of the csv file of cluster.py.
            image_root: folder of the images; None: the one that cluster.py stored.

        Raises:
            InputError: not a csv file of cluster.py, or one that was changed; or embeddings that are missing.
        """
        self.dataset, facts = clusters_file.read_clusters(clusters)
        self.image_root = image_root or facts.get('image_root')
        if self.image_root is None:
            raise InputError(f'{clusters} does not say where its images are: give --image_root.')
        self.features = _features(self.dataset, facts)
        moments = facts.get('moment')
        moments = moments and knowledge.groups_by_pattern(self.dataset.fids, moments, '--moment')
        self.reviewed = review.review(self.features, self.dataset.pids, moments)
        usable = (None, 'outside') if allow_outside_root else (None,)
        problems = file_problems(self.dataset.fids, self.image_root)
        self.paths = [image_path(self.image_root, fid) if problem in usable else None
                      for fid, problem in zip(self.dataset.fids, problems)]

    def estimated_bytes(self):
        """Return the size of all thumbnails, estimated from some of them."""
        some = self.paths[::max(1, len(self.paths) // SAMPLED)]
        sizes = [len(data_address(picture)) for picture in thumbnails(some, WIDTH, HEIGHT) if picture]
        return len(self.paths) * sum(sizes) / len(some)

    def write(self, path, link_images):
        """Write the page; returns the `Missing` images.

        Args:
            path: of the HTML file.
            link_images: refer to the image files instead of holding thumbnails.
        """
        if link_images:
            addresses = linked(self.paths, WIDTH, HEIGHT, path)
        else:
            addresses = list(map(data_address, thumbnails(self.paths, WIDTH, HEIGHT)))
        html_page.write(path, TEMPLATE, {**self._data(addresses), 'served': False},
                        "data: 'self' file:" if link_images else 'data:')
        return self.missing(addresses)

    def missing(self, found):
        """Return the `Missing` images, given a path or an address per image, None where it cannot be shown."""
        return Missing([fid for fid, each in zip(self.dataset.fids, found) if each is None], len(found))

    def served(self, decisions, version):
        """Return the page that a server sends, with the image of each row at `image/ROW`.

        Args:
            decisions: {file id: identity} of earlier, which the page starts with.
            version: of these decisions, which the page sends with the next ones.
        """
        addresses = [path and f'image/{row}' for row, path in enumerate(self.paths)]
        data = {**self._data(addresses), 'served': True, 'version': version}
        for image in data['images']:
            if image['fid'] in decisions:
                image['decided'] = decisions[image['fid']]
        return html_page.served(TEMPLATE, data)

    def _data(self, addresses):
        """Return the data that the script reads, a dict, with an address or None per image."""
        second, notes = set(), {}
        for each in self.reviewed:
            if each.groups:
                second.update(each.rows[-each.groups[1]:])
            notes.update({row: f'closer to {other}' for row, other in each.closer.items()})
        images = [{'fid': fid, 'cluster': pid, 'address': address, 'second': row in second, 'note': notes.get(row)}
                  for row, (fid, pid, address) in enumerate(zip(self.dataset.fids, self.dataset.pids, addresses))]
        return {'about': f'{len(images)} images in {len(self.reviewed)} clusters of {self.dataset.path}',
                'hash': self.dataset.content_hash(), 'filename': os.path.basename(decisions_file(self.dataset.path)),
                'images': images, 'order': [row for each in self.reviewed for row in each.rows],
                'clusters': [{'name': each.name, 'spread': each.spread, 'doubts': each.doubts,
                              'nearest': [{'name': name, 'distance': distance} for name, distance in each.nearest]}
                             for each in self.reviewed]}


def decisions_file(clusters):
    """Return the path of the decisions about a csv file of clusters."""
    return f'{os.path.splitext(clusters)[0]}_decisions.csv'


def is_page(path):
    """Return whether a file is a page of clusters."""
    return html_page.is_made_from(TEMPLATE, path)


def _features(dataset, facts):
    """Return the features of the images of a clustering, float32 [N, D], in the order of the dataset."""
    with open_embeddings(facts['embeddings']) as embeddings:
        check_unchanged(embeddings, facts.get('embedding_parameters', {}), dataset.path)
        if embeddings.pooled:
            raise InputError(f'{embeddings.path} has one row per tracklet; the page shows images. Embed without '
                             f'--pool_tracklets.')
        fids = embeddings.fids if embeddings.has_fids else load_dataset(facts['dataset_path']).fids
        cameras = facts.get('camera') and knowledge.groups_by_pattern(fids, facts['camera'], '--camera')
        row_of = {fid: row for row, fid in enumerate(fids)}
        rows = np.array([row_of[fid] for fid in dataset.fids])
        return chunks.read_rows(features.features(embeddings, cameras, facts['settings']['whitening']), rows)
