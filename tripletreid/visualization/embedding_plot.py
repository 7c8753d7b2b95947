"""Embeddings as points of a plane, and as data for TensorBoard's projector."""
import math
import os

import numpy as np

from tripletreid.errors import InputError
from tripletreid.files import written_whole
from tripletreid.names import is_junk
from tripletreid.visualization.figures import new_figure, shortened, text_width

MARKERS = 'os^DvPX*<>'
MOST_NAMED = 30  # More identities have no place in the legend of a scatter plot.
WIDEST_LABEL = 45  # Points; longer names would cover those that they name.
LARGEST_SPRITE = 8192  # Pixels a side; TensorBoard's projector shows no larger one.


def rows_of_identities(pids, count, seed):
    """Return the rows of `count` identities that are picked at random, in order; all rows where there are no more, or for 0.

    Junk, which is nobody's identity, is not picked.
    """
    identities = np.unique([pid for pid in pids if not is_junk(pid)])
    if 0 < count < len(identities):
        identities = np.random.default_rng(seed).choice(identities, count, replace=False)
    return np.flatnonzero(np.isin(pids.astype(str), identities))


def in_two_dimensions(emb, projection, seed):
    """Project embeddings [N, D] to points [N, 2]; return them and a short description of the projection."""
    if emb.shape[1] == 2:
        return emb, 'as embedded'
    if min(emb.shape) < 2:
        raise InputError(f'Embeddings of shape {emb.shape} cannot be projected to two dimensions; at least two images '
                         f'and two dimensions are needed.')
    if (emb == emb[0]).all():
        return np.zeros((len(emb), 2)), 'all in one point'
    if projection == 'pca':
        from sklearn.decomposition import PCA
        pca = PCA(2, random_state=seed)
        points = pca.fit_transform(emb)
        return points, f'PCA, {pca.explained_variance_ratio_.sum():.0%} of the variance'
    from sklearn.manifold import TSNE
    perplexity = min(30, len(emb) / 4)
    points = TSNE(perplexity=perplexity, random_state=seed).fit_transform(emb)
    return points, f't-SNE of perplexity {perplexity:g}'


def scatter_plot(points, pids, title):
    """Points [N, 2] with a colour and a marker for each identity; where there are few, a legend, and short names on them."""
    import matplotlib
    from matplotlib.patheffects import withStroke
    identities, identity = np.unique(pids.astype(str), return_inverse=True)
    if len(identities) <= 10:
        colors = matplotlib.colormaps['tab10'](range(10))
    else:  # Steps of the golden ratio around the circle of hues: neighbours in the list differ most.
        colors = matplotlib.colormaps['hsv'](0.618 * np.arange(len(identities)) % 1) * (0.85, 0.85, 0.85, 1)
    figure = new_figure(8, 8)
    axes = figure.subplots()
    clouds = [axes.scatter(*points[identity == i].T, np.clip(20000 / len(points), 4, 40), color=colors[i], alpha=0.6,
                           linewidths=0, marker=MARKERS[i % len(MARKERS)]) for i in range(len(identities))]
    if len(identities) <= MOST_NAMED:
        names = [shortened(name, 9, 180) for name in identities]
        widest = max(text_width(name, 9) for name in names)
        figure.set_figwidth(8.5 + widest / 72)
        figure.legend(clouds, names, loc='outside right upper', fontsize=9, frameon=False, markerscale=1.2)
        for i, name in enumerate(names if widest <= WIDEST_LABEL else ()):
            axes.annotate(name, np.median(points[identity == i], axis=0), ha='center', va='center', weight='bold',
                          color=colors[i] * (0.7, 0.7, 0.7, 1),
                          path_effects=[withStroke(linewidth=3, foreground='white')])
    axes.set_title(title)
    axes.set_aspect('equal', 'datalim')
    axes.grid(alpha=0.2)
    return figure


PROJECTOR = 'projector_config.pbtxt'
PROJECTOR_DATA = ('sprite.png', 'vectors.tsv', 'names.tsv')


def check_projector(folder):
    """Raises InputError when `write_projector` would replace files that are not its own."""
    others = [name for name in PROJECTOR_DATA if os.path.exists(os.path.join(folder, name))]
    if others and not os.path.exists(os.path.join(folder, PROJECTOR)):
        raise InputError(f'{folder} has a file {others[0]} that is not of a projector, since there is no {PROJECTOR}, so it '
                         f'is not overwritten: name another folder.')


def write_projector(folder, emb, dataset, paths):
    """Write the files of TensorBoard's projector: vectors, names, thumbnails in one sprite, and their description.

    Returns: `Missing`.
    """
    from google.protobuf import text_format
    from PIL import Image
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    from tripletreid.visualization.thumbnails import Missing, thumbnails
    columns = math.ceil(math.sqrt(len(dataset)))
    side = min(64, LARGEST_SPRITE // columns)
    if side < 8:
        raise InputError(f'{len(dataset)} images do not fit into the sprite of a projector; draw fewer --identities.')
    sprite = Image.new('RGBA', (columns * side, columns * side))
    missing = []
    for i, (fid, picture) in enumerate(zip(dataset.fids, thumbnails(paths, side, side))):
        if picture is None:
            missing.append(fid)
            continue
        left, top = i % columns * side, i // columns * side
        sprite.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))

    os.makedirs(folder, exist_ok=True)
    with written_whole(os.path.join(folder, 'sprite.png')) as temporary:
        sprite.save(temporary, 'png')
    with written_whole(os.path.join(folder, 'vectors.tsv')) as temporary:
        np.savetxt(temporary, emb, '%.7g', '\t')
    with written_whole(os.path.join(folder, 'names.tsv')) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            for row in [('identity', 'file'), *zip(dataset.pids, dataset.fids)]:
                file.write('\t'.join(' '.join(name.split()) for name in row) + '\n')  # A name may hold a tab.
    config = ProjectorConfig()
    described = config.embeddings.add(tensor_path='vectors.tsv', metadata_path='names.tsv')
    described.sprite.image_path = 'sprite.png'
    described.sprite.single_image_dim.extend([side, side])
    with written_whole(os.path.join(folder, PROJECTOR)) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text_format.MessageToString(config))
    return Missing(missing, len(dataset))
