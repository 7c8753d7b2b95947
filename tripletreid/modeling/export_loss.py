"""The mAP that an export costs, on the queries and the gallery of an evaluation of its checkpoint."""
import numpy as np

from tripletreid import exclusion
from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import ranking, scores
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.evaluation.tables import interval_text
from tripletreid.image_root import check_files
from tripletreid.modeling import inference, inference_flags

BATCH_SIZE = 64
OTHER_PROTOCOLS = ('rerank', 'multi_query_dataset', 'hold_out')


def check(exported, evaluation, max_loss):
    """Embed and rank the images of an evaluation with an export.

    Args:
        exported: `ExportedModel`.
        evaluation: `results.Evaluation` of its checkpoint that passes `check_protocol`.
        max_loss: the most points of mAP, in percent, that the export may cost.

    Returns: its mAP and the difference, in words.

    Raises:
        InputError: it costs more, or the csv files or images are not as they were evaluated.
    """
    query, gallery = (load_dataset(evaluation.parameters[f'{side}_dataset']) for side in ('query', 'gallery'))
    evaluation.check_queries(query)
    evaluation.check_gallery(gallery)
    query_embs, gallery_embs = (embed(exported, dataset, evaluation.made_with[side]['image_root'])
                                for side, dataset in (('query', query), ('gallery', gallery)))
    parameters = evaluation.parameters
    ranks = ranking.rank(Retrieval(query_embs, query, gallery_embs, gallery, exclusion.load(parameters['excluder']),
                                   parameters['metric']))
    ap = ranks.ap_market1501 if parameters.get('use_market_ap') else ranks.ap_sklearn
    difference = scores.summary({'mAP': ap - evaluation.ap}, query.pids, lowest=-1)['mAP']
    found = (f'mAP {np.nanmean(ap):.2%}, where {evaluation.path} has {np.nanmean(evaluation.ap):.2%}: difference '
             f'{difference.mean:+.2%}, 95% interval {interval_text(difference.interval)}')
    if -100 * difference.mean > max_loss:
        raise InputError(f'The export is not kept: {found}; --max_loss allows {max_loss:g} points.')
    return found


def check_protocol(evaluation):
    """Raise InputError where an evaluation ranks by more than the embeddings of single images."""
    flags = [f'--{name}' for name in OTHER_PROTOCOLS if evaluation.parameters.get(name)]
    flags += ['--pool_tracklets'] * any(made.get('pool_tracklets') for made in evaluation.made_with.values())
    if flags:
        raise InputError(f'{evaluation.path} was made with {flags[0]}, and --max_loss compares embeddings of single images: '
                         f'evaluate without it.')


def embed(exported, dataset, image_root):
    """Embed the images of a `Dataset`, float32 [N, D]."""
    check_files(dataset, image_root)
    rows = inference.embed_rows(exported, dataset, image_root, inference_flags.view(exported.trained(), crop=None),
                                batch_size=BATCH_SIZE)
    return np.concatenate([embs[0] for embs in rows])
