"""The trained model of a search, which embeds photos and gallery with the same flags."""
import io
import multiprocessing.pool
import os
from typing import NamedTuple

import tqdm
from PIL import Image

from tripletreid import provenance
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints
from tripletreid.input_pipeline import images
from tripletreid.modeling import inference, inference_flags, model_card, recorded_facts
from tripletreid.modeling.aggregators import AGGREGATORS


class Problem(NamedTuple):
    """Why an image cannot be embedded, and whether that is so until the file changes."""
    reason: str
    is_lasting: bool


class Embedder:
    """A trained model that embeds photos and the images of a gallery.

    Attributes:
        checkpoint: path of the checkpoint.
        dim: D.
        view: `inference_flags.View`.
        made_by: everything that the embeddings depend on, a JSON-serialisable dict, as embed.py records it too.
    """

    def __init__(self, args, trained, exported=None):
        """
        Args:
            args: `experiment_root`, `checkpoint` (a name or None), `weights`, `flip_augment`, `crop_augment`, `aggregator`,
                `batch_size`, `loading_threads`.
            trained: arguments of the training.
            exported: `ExportedModel` to embed with instead of the run's checkpoint, with its `trained`.

        Raises:
            InputError: no such checkpoint, or one that does not fit.
        """
        self.args, self.dim = args, trained.embedding_dim
        self.view = inference_flags.view(trained, args.crop_augment, args.flip_augment)
        if exported:
            self.network, self.checkpoint, self._folder = exported, exported.path, os.path.dirname(exported.path)
            sha256, facts = model_card.hash_of(exported.path), exported.facts()
        else:
            self._folder = args.experiment_root
            self.network, self.checkpoint = inference.from_experiment(args.experiment_root, args.checkpoint, self.view.net,
                                                                       args.weights)
            sha256 = provenance.file_hash(checkpoints.index_file(self.checkpoint))
            facts = recorded_facts.making(trained, self.view)
        self.made_by = {
            'checkpoint_sha256': sha256, 'weights': args.weights, 'flip_augment': args.flip_augment,
            'crop_augment': args.crop_augment, 'aggregator': args.aggregator, **facts}

    def photo(self, content, name=''):
        """Embed a photo.

        Args:
            content: bytes of the image file.
            name: path of the photo, for the message.

        Returns: float32 [D].

        Raises:
            InputError: it cannot be decoded.
        """
        try:
            variants = inference.embed_content(self.network, content, self.view)
        except InputError as error:
            raise InputError(f'The photo {name + " " if name else ""}cannot be read: {error}.') from error
        return self._aggregate(variants)[0]

    def warm_up(self):
        """Embed a blank photo, since TensorFlow's first one takes seconds."""
        file = io.BytesIO()
        Image.new('RGB', self.view.load[::-1]).save(file, 'jpeg')
        self.photo(file.getvalue())

    def files(self, paths):
        """Embed image files, with a progress bar.

        Yields: float32 arrays [B, D], the embeddings of the next B files, which may be NaN or infinite.

        Raises:
            InputError: a file that cannot be read.
        """
        batches = inference.embed_files(self.network, paths, self.view, self.args.batch_size, self.args.loading_threads,
                                        check_finite=False)
        with tqdm.tqdm(total=len(paths), desc='Embedding', unit=' images', delay=1, leave=False) as bar:
            for variants in batches:
                yield self._aggregate(variants)
                bar.update(variants.shape[1])

    def problems(self, paths):
        """Return the image files that cannot be read now or decoded, {path: `Problem`}."""
        with multiprocessing.pool.ThreadPool() as pool:
            found = pool.imap(self._problem, paths, chunksize=16)
            found = list(tqdm.tqdm(found, 'Checking images', len(paths), delay=2, leave=False))
        return {path: problem for path, problem in zip(paths, found) if problem}

    def _problem(self, path):
        try:
            with open(path, 'rb') as file:
                content = file.read()
        except OSError as error:
            return Problem(error.strerror, is_lasting=False)
        try:
            images.load_content(content, self.view.load)
        except InputError as error:
            return Problem(str(error), is_lasting=True)
        return None

    def _aggregate(self, variants):
        return AGGREGATORS[self.args.aggregator or 'mean'](variants)

    def index_name(self, gallery):
        """Return the default path of a gallery's index, given the path of the gallery."""
        stem, ending = os.path.splitext(os.path.basename(os.path.realpath(gallery)))
        name = stem if os.path.isfile(gallery) else stem + ending
        return os.path.join(self._folder, f'{name}_index.sqlite')
