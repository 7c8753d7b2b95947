"""Validation while training: the weights of the moment embed and rank a query and a gallery set."""
import numpy as np

import excluders
from reid.dataset import check_files, image_path, load_dataset
from reid.errors import InputError
from reid.evaluation import ranking
from reid.experiment.best_checkpoint import results
from reid.modeling import inference_flags

QUERIES_AT_ONCE = 256


class Validation:
    """Embeds and evaluates the images of --eval_query and --eval_gallery with the project's own engine.

    Images are loaded as in embed.py: resized to the net's input; with --crop_augment, their centre is cropped, as
    `embed.py --crop_augment center` does.
    """

    def __init__(self, args):
        """Raises InputError when images are missing, do not fit the excluder, or no query has a match."""
        self._args = args
        self._network = None
        self._sets = load_dataset(args.eval_query), load_dataset(args.eval_gallery)
        self._excluder = excluders.load(args.eval_excluder)
        for images_of in self._sets:
            check_files(images_of, args.image_root, args.allow_outside_root)
        if not self._any_match():
            raise InputError(f'No query of {args.eval_query} has a match in {args.eval_gallery} that the excluder '
                             f'{args.eval_excluder} leaves.')

    def _any_match(self):
        query, gallery = self._sets
        excluded = self._excluder(gallery.fids)
        for start in range(0, len(query), QUERIES_AT_ONCE):
            some = query.take(slice(start, start + QUERIES_AT_ONCE))
            if ((some.pids[:, None] == gallery.pids) & ~excluded(some.fids)).any():
                return True
        return False

    def is_due(self, step):
        """Whether the weights after `step` iterations are to be validated, and have not been yet."""
        if step == 0 or step % self._args.eval_frequency:
            return False
        return step not in [entry['step'] for entry in results(self._args.experiment_root)]

    def build(self, names):
        """Build the network that is validated: the one that trains is not touched.

        Args:
            names: of the variables that are trained, see `model.named_variables`.

        Raises:
            InputError: the net has layers that are called otherwise whenever it is built.
        """
        from reid.modeling import model
        model.set_precision('none')
        self._network = model.build_for(self._args)
        unknown = sorted(set(model.named_variables(self._network)) - set(names))
        if unknown:
            raise InputError(f'The weights {unknown[0]} of --model_name {self._args.model_name} or --head_name '
                             f'{self._args.head_name} have another name whenever the network is built; give each of '
                             f'its layers that has weights a name=….')

    def evaluate(self, values, interruption):
        """Evaluate weights with the network of `build`.

        Args:
            values: dict {TF1 name: array or tensor}, as a checkpoint has them.
            interruption: `interruption.Interruption`.

        Returns: dict of mAP (scikit-learn's) and top1, or None when an interruption was requested meanwhile.
        """
        from reid.modeling import inference, model
        args = self._args
        for name, variable in model.named_variables(self._network).items():
            variable.assign(values[name])
        crop = inference_flags.validation_crop(args)
        load_size = inference_flags.sizes(args, crop).load
        embs = []
        for images_of in self._sets:
            paths = [image_path(args.image_root, fid) for fid in images_of.fids]
            batches = []
            for batch in inference.embed_files(self._network, paths, load_size, loading_threads=args.loading_threads,
                                               crop=crop):
                if interruption.requested:
                    return None
                batches.append(batch[0])
            embs.append(np.concatenate(batches))
        query, gallery = self._sets
        ranks = ranking.rank(embs[0], query, embs[1], gallery, self._excluder, args.metric)
        return {'mAP': float(np.nanmean(ranks.ap_sklearn)), 'top1': float(ranks.cmc(1)[0])}
