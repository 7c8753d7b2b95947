"""The trained model as a search needs it: photos and gallery are embedded alike, and what that depends on is known."""
import os

import tqdm

from tripletreid import provenance
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints, train_flags
from tripletreid.input_pipeline import images
from tripletreid.modeling import inference, inference_flags
from tripletreid.modeling.aggregators import AGGREGATORS


class Embedder:
    """Embeds photos and the images of a gallery.

    Attributes:
        checkpoint: path of the checkpoint.
        dim: D.
        size: (height, width) that images are resized to first.
        made_by: what the embeddings depend on, a JSON-serialisable dict; embed.py has the first five names as well.
    """

    def __init__(self, args, trained):
        """
        Args:
            args: `experiment_root`, `checkpoint` (a name or None), `weights`, `flip_augment`, `crop_augment`, `aggregator`,
                `batch_size`, `loading_threads`.
            trained: arguments of the training.

        Raises:
            InputError: no such checkpoint, or one that does not fit.
        """
        self.args, self.dim = args, trained.embedding_dim
        self.size, net_size, self.pixels = inference_flags.sizes(trained, args.crop_augment)
        self.network, self.checkpoint = inference.from_experiment(args.experiment_root, args.checkpoint, net_size,
                                                                   args.weights)
        self.made_by = {
            'checkpoint_sha256': provenance.file_hash(checkpoints.index_file(self.checkpoint)),
            'weights': args.weights, 'flip_augment': args.flip_augment, 'crop_augment': args.crop_augment,
            'aggregator': args.aggregator,
            'net': [trained.model_name, trained.head_name, trained.last_stride, trained.pooling,
                    *(f'{name}={value}' for name, value in train_flags.net_options(trained).items()
                      if name not in ('last_stride', 'pooling', 'drop_path'))],
            'sizes': [*self.size, *net_size], **self.pixels._asdict()}

    def photo(self, content, name=''):
        """Embed a photo.

        Args:
            content: bytes of the image file.
            name: of it, for the message.

        Returns: float32 [D].

        Raises:
            InputError: it cannot be decoded.
        """
        try:
            variants = inference.embed_content(self.network, content, self.size, self.args.flip_augment,
                                               self.args.crop_augment, self.pixels)
        except InputError as error:
            raise InputError(f'The photo {name + " " if name else ""}cannot be read: {error}.') from error
        return self._aggregate(variants)[0]

    def files(self, paths):
        """Embed image files, with a progress bar; yields float32 arrays [B, D] of the next ones.

        Raises:
            InputError: one that cannot be read.
        """
        of_batches = inference.embed_files(
            self.network, paths, self.size, self.args.batch_size, self.args.loading_threads, self.args.flip_augment,
            self.args.crop_augment, pixels=self.pixels)
        with tqdm.tqdm(total=len(paths), desc='Embedding', unit=' images', delay=1, leave=False) as bar:
            for variants in of_batches:
                yield self._aggregate(variants)
                bar.update(variants.shape[1])

    def why_broken(self, paths):
        """Of some image files, those that cannot be read: {path: reason}."""
        return images.why_broken(paths)

    def _aggregate(self, variants):
        return AGGREGATORS[self.args.aggregator or 'mean'](variants)

    def index_name(self, gallery):
        """Path of the index of a gallery, given the path of that, where no other one is wanted."""
        stem, ending = os.path.splitext(os.path.basename(os.path.realpath(gallery)))
        name = stem if os.path.isfile(gallery) else stem + ending
        return os.path.join(self.args.experiment_root, f'{name}_index.h5')
