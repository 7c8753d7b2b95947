"""Validation while training: embed and rank queries and galleries with the current weights or their average."""
import dataclasses

import numpy as np

from tripletreid import exclusion
from tripletreid.dataset import Dataset, load_dataset, set_name, warn_of_lookalikes
from tripletreid.errors import InputError
from tripletreid.evaluation import ranking
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.experiment.best_checkpoint import results
from tripletreid.image_root import OwnFileExcluder, check_files, paths_of_one_file
from tripletreid.modeling import inference_flags, recorded_facts

QUERIES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class ValidationSet:
    """Queries, the gallery to search, and the protocol: one value of --eval_query and of the other --eval flags.

    name: the queries' csv file, without folder and ending.
    query, gallery: `Dataset`s of the images.
    excluder: as `exclusion.load` returns it.
    image_root: folder of the images of both.
    """
    name: str
    query: Dataset
    gallery: Dataset
    excluder: object
    image_root: str

    @property
    def pools_tracklets(self):
        """True if tracklets are ranked instead of images, because both csv files name them."""
        return self.query.tracklets is not None and self.gallery.tracklets is not None

    def rows(self):
        """Return the ranked rows of queries and gallery, two `Dataset`s: all images, or the first frames of tracklets."""
        images = self.query, self.gallery
        return [each.first_frames() for each in images] if self.pools_tracklets else images

    def any_match(self):
        """Return whether any query has a match that the excluder leaves."""
        query, gallery = self.rows()
        excluded = self.excluder(gallery.fids)
        for start in range(0, len(query), QUERIES_AT_ONCE):
            some = query.take(slice(start, start + QUERIES_AT_ONCE))
            if ((some.pids[:, None] == gallery.pids) & ~excluded(some.fids)).any():
                return True
        return False


class Validation:
    """Embeds and evaluates the images of --eval_query and --eval_gallery with the project's own engine.

    Images are loaded as in embed.py: resized to the net's input; with --crop_augment, their centre is cropped, as
    `embed.py --crop_augment center` does. With --eval_flip the mean with their mirror image is taken.
    """

    def __init__(self, args):
        """Load the sets. Raises InputError when images are missing or do not fit the excluder, no query of a set has a
        match, or two sets have the same name.
        """
        self._args = args
        self._network = self._strategy = None
        self._sets = []
        per_set = [values if len(values) > 1 else values * len(args.eval_query)
                   for values in (args.eval_excluder, args.eval_image_root or [args.image_root])]
        files = zip(args.eval_query, args.eval_gallery, *per_set, strict=True)
        for query_path, gallery_path, excluder, image_root in files:
            name = set_name(query_path)
            if name in [other.name for other in self._sets]:
                raise InputError(f'Two files of --eval_query are called {name}, by which the log names their validation '
                                 f'sets. Rename one of them.')
            query, gallery = load_dataset(query_path), load_dataset(gallery_path)
            for images in (query, gallery):
                check_files(images, image_root, args.allow_outside_root)
            warn_of_lookalikes(query, gallery)
            by_name = exclusion.load(excluder)
            exclusion.warn_of_disagreement(excluder, by_name, query, gallery)
            without_own_file = OwnFileExcluder(by_name, paths_of_one_file([*query.fids, *gallery.fids], image_root))
            self._sets.append(ValidationSet(name, query, gallery, without_own_file, image_root))
            if not self._sets[-1].any_match():
                raise InputError(f'No query of {query_path} has a match in {gallery_path} that the excluder {excluder} '
                                 f'leaves.')

    def is_due(self, step):
        """Return whether the weights after `step` iterations are to be validated and have not been yet."""
        if step == 0 or step % self._args.eval_frequency:
            return False
        return step not in [entry['step'] for entry in results(self._args.experiment_root)]

    def build(self, names, strategy):
        """Build a network for validation; the training network is not touched.

        The devices of one host share the work. With several hosts, each does all of it on its first device, because the
        others could only wait; the numbers of the chief are stored.

        Args:
            names: of the variables of the training network, see `model.named_variables`.
            strategy: the `tf.distribute.Strategy` that trains.

        Raises:
            InputError: the net has layers whose names change with each build.
        """
        import tensorflow as tf

        from tripletreid.modeling import model
        model.set_precision('none')
        self._strategy = strategy if self._args.distribute != 'multi_worker' else tf.distribute.get_strategy()
        with self._strategy.scope():
            self._network = model.build_for(self._args)
        unknown = sorted(set(model.named_variables(self._network)) - set(names))
        if unknown:
            raise InputError(f'The weights {unknown[0]} of --model_name {self._args.model_name} or --head_name '
                             f'{self._args.head_name} have another name whenever the network is built; give each of '
                             f'its layers that has weights a name=….')

    def evaluate(self, step, values, interruption):
        """Evaluate weights with the network of `build`.

        Args:
            step: number of iterations after which the weights are validated.
            values: dict {TF1 name: array or tensor}, as in a checkpoint; averages (--ema) are preferred.
            interruption: `interruption.Interruption`.

        Returns: dict of mAP (scikit-learn's), top1, scores, {name: mean} of all files of scores/, and embed_flags, the
            flags of embed.py that give the same numbers. With several sets: dict of the means mAP, top1 and scores, and of
            `sets`, {name: such a dict}. None when an interruption was requested meanwhile.
        """
        from tripletreid.experiment import checkpoints
        from tripletreid.modeling import model
        for name, variable in model.named_variables(self._network).items():
            average = name + checkpoints.AVERAGE
            variable.assign(values[average if average in values else name])
        scores_by_set = {}
        for each in self._sets:
            embs = []
            for images in (each.query, each.gallery):
                embs.append(self._embed(images, each, interruption))
                if embs[-1] is None:
                    return None
            query, gallery = each.rows()
            ranks = ranking.rank(Retrieval(embs[0], query, embs[1], gallery, each.excluder,
                                           recorded_facts.run_metric(self._args)))
            # embed.py's default resizes, whatever the net was trained on, and gives other numbers.
            flags = inference_flags.flags_of_validation(self._args, checkpoints.prefix('', step), each.image_root,
                                                        each.pools_tracklets)
            scores_by_set[each.name] = {
                'mAP': float(np.nanmean(ranks.ap_sklearn)), 'top1': float(ranks.cmc(1)[0]), 'embed_flags': flags,
                'scores': {name: float(np.nanmean(values)) for name, values in ranks.scores.items()}}
        if len(scores_by_set) == 1:
            return scores_by_set[each.name]
        sets = scores_by_set.values()
        means = {key: float(np.mean([entry[key] for entry in sets])) for key in ('mAP', 'top1')}
        means['scores'] = {name: float(np.mean([entry['scores'][name] for entry in sets])) for name in ranks.scores}
        return {**means, 'sets': scores_by_set}

    def _embed(self, images, validation_set, interruption):
        """Embed the images of a set, pooled where it has tracklets: -> [N, D], or None when interrupted."""
        from tripletreid.modeling import inference
        row_batches = inference.embed_rows(
            self._network, images, validation_set.image_root, inference_flags.validation_view(self._args),
            pool_tracklets=validation_set.pools_tracklets, loading_threads=self._args.loading_threads,
            strategy=self._strategy)
        batches = []
        for embs in row_batches:
            if interruption.requested:
                return None
            batches.append(embs[0])
        return np.concatenate(batches)
