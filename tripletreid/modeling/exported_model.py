"""An export as `inference.embed_files` takes a network: ours with its card, or another project's with a few flags."""
import argparse
import math

import numpy as np

from tripletreid.errors import InputError
from tripletreid.modeling import exports, model_card
from tripletreid.modeling.pixel_statistics import PIXEL_STATISTICS

# Choices of --pixels: (mean, standard deviation) of RGB 0..255 by which an export wants pixels scaled.
PIXELS = {'rgb255': (0.0, 1.0), 'unit': (0.0, 255.0), **PIXEL_STATISTICS}
# Other people's exports were trained with these pixels of a file, unless flags differ: Pillow's.
OTHERS_PIXELS = {'resize': 'bilinear', 'jpeg': 'accurate'}
SETTINGS = ('pixels', 'layout', 'net_input_height', 'net_input_width', *OTHERS_PIXELS)


class ExportedModel:
    """An export that embeds batches of images.

    Attributes:
        path: of the export.
        settings: of the export, {name: value}: pixels, layout, net_input_height, net_input_width, resize, jpeg.
        has_card: whether the settings come from a model card.
        metric: of the model, by its card; None where it has none.
        input_shape: (None, H, W, 3), the images that `embed_variants` takes.
        embedding_dim: D.
    """

    def __init__(self, path, given):
        """
        Args:
            path: of the export.
            given: {name: value} of the settings that the user gave; None for each other one.

        Raises:
            InputError: not an export of an embedding, settings that contradict its card, or missing ones.
        """
        self.path, self._export = path, exports.load(path)
        card = model_card.read(path, self._export.metadata)
        self.has_card, self.metric = card is not None, card and card.get('metric')
        known = _card_settings(card) if card else _graph_settings(path, self._export, given)
        for name, value in given.items():
            if value is not None and known.get(name) not in (None, value):
                source = 'its model card' if card else 'its graph'
                raise InputError(f'--{name} {value} contradicts {path}: by {source} it is {known[name]}.')
        self.settings = {name: value if given.get(name) is None else given[name] for name, value in known.items()}
        missing = [f'--{name}' for name, value in self.settings.items() if value is None]
        if missing:
            raise InputError(f'{path} has no model card and its graph does not determine {" and ".join(missing)}: give '
                             f'{"them" if missing[1:] else "it"}.')
        self._set_shapes()

    @classmethod
    def from_card(cls, path, export, card):
        """Return the model of an `exports.Loaded` that has no name yet, given its card and the path that it will have."""
        model = cls.__new__(cls)
        model.path, model._export, model.has_card, model.metric = path, export, True, card.get('metric')
        model.settings = _card_settings(card)
        model._set_shapes()
        return model

    def _set_shapes(self):
        """Set the shapes of images and embeddings."""
        size = self.settings['net_input_height'], self.settings['net_input_width']
        self.input_shape = (None, *size, 3)
        self.embedding_dim = self._embed(np.zeros((1, *size, 3), np.float32)).shape[1]

    def trained(self):
        """Return the settings as arguments of a training run, with the names that embedding needs."""
        return argparse.Namespace(**self.settings, embedding_dim=self.embedding_dim, crop_augment=False, image_root=None,
                                  train_set=(), initial_checkpoint=None, eval_metric=None, metric=self.metric)

    def facts(self):
        """Return the settings that embeddings depend on, as embedding files record them."""
        return {**self.settings, 'metric': self.metric}

    def embed_variants(self, batch):
        """Embed variants of images, [B, A, H, W, 3] float32 of RGB 0..255 -> [A, B, D] float32."""
        batch = np.asarray(batch)
        embs = self._embed(batch.reshape(-1, *batch.shape[2:]))
        return embs.reshape(*batch.shape[:2], -1).transpose(1, 0, 2)

    def _embed(self, batch):
        """Embed images [B, H, W, 3] of RGB 0..255: [B, D]; in parts where the export takes a fixed number at a time."""
        fixed = self._export.input_shape[0]
        parts = [batch] if not fixed else [batch[start:start + fixed] for start in range(0, len(batch), fixed)]
        return np.concatenate([self._embed_part(part, fixed) for part in parts])

    def _embed_part(self, batch, fixed):
        count = len(batch)
        if fixed and count < fixed:
            batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - count, axis=0)])
        mean, std = (np.asarray(value, np.float32) for value in PIXELS[self.settings['pixels']])
        if self.settings['pixels'] != 'rgb255':
            batch = (batch - mean) / std
        if self.settings['layout'] == 'nchw':
            batch = batch.transpose(0, 3, 1, 2)
        dtype = self._export.input_dtype
        batch = np.rint(batch) if np.issubdtype(dtype, np.integer) else batch
        try:
            embs = np.asarray(self._export.embed(np.ascontiguousarray(batch, dtype)), np.float32)
        except Exception as error:  # Each library has its own kinds.
            reason = ' '.join(str(error).split())[:200].rstrip('.')
            raise InputError(f'{self.path} does not embed images [{", ".join(map(str, batch.shape))}]: {reason}.') from error
        if len(embs) != len(batch) or math.prod(embs.shape[1:]) != max(embs.shape[1:], default=0):
            raise InputError(f'{self.path} gives an array {list(embs.shape)} for {len(batch)} images, not one embedding per '
                             f'image.')
        return embs.reshape(len(embs), -1)[:count]


def _card_settings(card):
    """Return the settings that a model card has."""
    taken = card['input']
    height, width = card['input']['size']
    return {'pixels': taken['pixels'], 'layout': taken['layout'], 'net_input_height': height, 'net_input_width': width,
            'resize': taken['resize'], 'jpeg': taken['jpeg']}


def _graph_settings(path, export, given):
    """Return the settings that a graph determines; None for settings that it leaves open."""
    shape = export.input_shape
    channels = {'nchw': shape[1], 'nhwc': shape[3]}
    fitting = [layout for layout, count in channels.items() if count == 3]
    layout = fitting[0] if len(fitting) == 1 else given.get('layout')
    if layout is None and not any(count is None for count in channels.values()) and not fitting:
        raise InputError(f'{path} takes arrays of {list(shape)}, which are not images of three channels.')
    height, width = (shape[2:] if layout == 'nchw' else shape[1:3]) if layout else (None, None)
    is_integer = np.issubdtype(export.input_dtype, np.integer)
    return {'pixels': 'rgb255' if is_integer else None, 'layout': layout, 'net_input_height': height,
            'net_input_width': width, **{name: given.get(name) or value for name, value in OTHERS_PIXELS.items()}}
