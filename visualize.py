#!/usr/bin/env python3
"""Look at results: ranked lists, a report to browse, embeddings in two dimensions, training curves.

    visualize.py rankings evaluation.json      the nearest images of some queries, as a picture
    visualize.py report evaluation.json        one HTML page with numbers, charts and every query's ranked list
    visualize.py embeddings embeddings.h5      a scatter plot, and data for TensorBoard's projector
    visualize.py curves ROOT [ROOT ...]        loss, precision, active count, learning rate, … of runs

An evaluation file says which csv and .h5 files it was made from, and an .h5 file says where its images are; the flags
are for files that were moved since. Neither TensorFlow nor a display is needed.
"""
import argparse
import itertools
import math
import os
import sys

import numpy as np

from arguments import non_negative_int, positive_int
from errors import InputError, exit_with
from files import written_whole

# How an image of a ranked list is framed: colour, line, and the mark beside its rank.
FRAMES = {'query': ('#1c2127', '-', ''), 'match': ('#1a7f37', '-', '✓ '), 'no match': ('#c9252d', '--', '✗ '),
          'excluded': ('#8a929c', ':', '')}
PANELS_FIRST = ('loss', 'batch_top1', 'batch_prec_at_', 'active_count', 'learning_rate')
LINES = ('-', '--', '-.', ':')
MARKERS = 'os^DvPX*<>'
MOST_NAMED = 30  # With more identities their names would cover the points of a scatter plot.
LARGEST_SPRITE = 8192  # Pixels a side; TensorBoard's projector shows no larger one.


def make_parser():
    """The parser of visualize.py's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    evaluated = argparse.ArgumentParser(add_help=False)
    add = evaluated.add_argument
    add('evaluation', metavar='EVALUATION', help='JSON file of evaluate.py')
    add('--query_dataset', metavar='CSV', help='the csv file of the queries, if it was moved since')
    add('--query_embeddings', metavar='H5', help='their embeddings, likewise')
    add('--gallery_dataset', metavar='CSV', help='the csv file of the gallery, likewise')
    add('--gallery_embeddings', metavar='H5', help='its embeddings, likewise')
    add('--top_k', type=positive_int, default=10, metavar='K', help='length of a ranked list (%(default)s)')

    pictured = argparse.ArgumentParser(add_help=False)
    add = pictured.add_argument
    add('--image_root', metavar='DIR', help='folder of the images, if they were moved since they were embedded')
    add('--allow_outside_root', action='store_true', help='also show images that lie outside of the image root')
    add('--seed', type=non_negative_int, default=0, help='of all that is picked at random (%(default)s)')

    add = commands.add_parser('rankings', parents=[evaluated, pictured], allow_abbrev=False,
                              help='the nearest images of some queries, as a picture').add_argument
    add('--choose', choices=('worst', 'best', 'random'), default='worst', help='which queries: those of the lowest or '
        'the highest AP, or any with a match (%(default)s)')
    add('--count', type=positive_int, default=8, metavar='N', help='how many queries (%(default)s)')
    add('--queries', nargs='+', metavar='FILE', help='exactly these queries, as the csv file names them')
    add('--show_excluded', action='store_true', help='also show, greyed, the images that the protocol excludes')
    add('--filename', metavar='PNG', help='or .pdf, .svg, … (EVALUATION_rankings.png)')

    add = commands.add_parser('report', parents=[evaluated, pictured], allow_abbrev=False,
                              help="one HTML page with numbers, charts and every query's ranked list").add_argument
    add('--compare', metavar='OTHER', help='an earlier evaluation of the same queries and gallery: which queries got '
        'better or worse since')
    add('--link_images', action='store_true', help='refer to the image files, relative to the page, instead of '
        'holding thumbnails of them')
    add('--filename', metavar='HTML', help='(EVALUATION.html)')

    add = commands.add_parser('embeddings', parents=[pictured], allow_abbrev=False,
                              help="a scatter plot, and data for TensorBoard's projector").add_argument
    add('embeddings', metavar='EMBEDDINGS', help='.h5 file of embed.py')
    add('--dataset', metavar='CSV', help='its csv file, if it was moved since')
    add('--projection', choices=('pca', 'tsne'), default='pca', help='from more than two dimensions to two '
        '(%(default)s)')
    add('--identities', type=non_negative_int, default=MOST_NAMED, metavar='N', help='how many identities, picked at '
        'random; 0: all (%(default)s)')
    add('--projector', metavar='DIR', help="also write the same images' vectors, names and thumbnails for "
        "TensorBoard's projector")
    add('--filename', metavar='PNG', help='or .pdf, .svg, … (EMBEDDINGS.png)')

    add = commands.add_parser('curves', allow_abbrev=False,
                              help='loss, precision, active count, learning rate, … of runs').add_argument
    add('experiment_roots', nargs='+', metavar='EXPERIMENT_ROOT')
    add('--smoothing', type=positive_int, metavar='N', help='mean over N iterations; 1: none (a hundredth of the run)')
    add('--filename', metavar='PNG', help='or .pdf, .svg, … (curves.png in the first experiment root)')

    draw = {'rankings': draw_rankings, 'report': write_report, 'embeddings': draw_embeddings, 'curves': draw_curves}
    for name, function in draw.items():
        commands.choices[name].set_defaults(draw=function)
    return parser


def main():
    args = make_parser().parse_args()
    args.draw(args)


def draw_rankings(args):
    """A picture with a row for each chosen query: itself, then its nearest images."""
    from results import changed_ranks, open_evaluation, ranked_lists
    filename = args.filename or os.path.splitext(args.evaluation)[0] + '_rankings.png'
    check_picture_name(filename)
    evaluation, query, gallery = open_evaluation(args)
    queries = choose_queries(evaluation, args)
    lists = ranked_lists(evaluation, query, gallery, queries, args.top_k)
    if not args.show_excluded:
        lists = [[entry for entry in ranked if not entry.excluded] for ranked in lists]
    figure, missing, count = picture_of_lists(evaluation, query, gallery, queries, lists)
    save_picture(figure, filename)
    warn_of_missing(missing, count)
    for flag in changed_ranks(evaluation):
        print(f'Warning: {args.evaluation} was made with {flag}; the lists are those without.', file=sys.stderr)
    print(f'{len(queries)} ranked lists: {filename}')


def choose_queries(evaluation, args):
    """Rows of the queries to draw, int64 [n]: those named by --queries, else worst, best or random ones with a match.

    Raises:
        InputError: a name that is not among the queries, or no query with a match.
    """
    if args.queries:
        unknown = sorted(set(args.queries) - set(evaluation.fids))
        if unknown:
            raise InputError(f'{unknown[0]} is not a query of {args.evaluation}; names are those of the csv file.')
        return np.array([evaluation.fids.index(fid) for fid in args.queries])
    matched = np.flatnonzero(~np.isnan(evaluation.ap))
    if not len(matched):
        raise InputError(f'No query of {args.evaluation} has a match; choose some by --queries.')
    if args.choose == 'random':
        return np.random.default_rng(args.seed).permutation(matched)[:args.count]
    rising = matched[np.argsort(evaluation.ap[matched], kind='stable')]
    return rising[:args.count] if args.choose == 'worst' else rising[::-1][:args.count]


def picture_of_lists(evaluation, query, gallery, queries, lists):
    """Draw ranked lists, a row each.

    Returns: figure, file ids of the images that are missing, the number of images in all.
    """
    from matplotlib.patches import Rectangle
    from thumbnails import thumbnails
    cells = []  # row, column, path of the image, its file id, frame, caption
    for row, (q, ranked) in enumerate(zip(queries, lists)):
        query_pid = query.dataset.pids[q]
        ap = 'no match' if np.isnan(evaluation.ap[q]) else f'AP {evaluation.ap[q]:.1%}'
        cells.append((row, 0, query.paths[q], query.dataset.fids[q], 'query', f'{query_pid}\n{ap}'))
        ranks = itertools.count(1)
        for column, entry in enumerate(ranked, 1):
            pid = gallery.dataset.pids[entry.row]
            frame = 'excluded' if entry.excluded else 'match' if pid == query_pid else 'no match'
            place = 'excluded' if entry.excluded else f'{FRAMES[frame][2]}{next(ranks)}'
            cells.append((row, column, gallery.paths[entry.row], gallery.dataset.fids[entry.row], frame,
                          f'{place}   {entry.distance:.3f}\n{pid}'))

    # Sizes in points. All cells have the shape of a usual image of the picture, since most datasets have but one.
    width = 60
    pictures = list(thumbnails([path for _, _, path, *_ in cells], 3 * width, 6 * width))
    shapes = [picture.height / picture.width for picture in pictures if picture] or [2]
    height = width * np.clip(np.median(shapes), 0.5, 2)
    across, down = width + 16, height + 40
    page_width, page_height = (1 + max(map(len, lists))) * across + 20, len(lists) * down
    figure = new_figure(page_width / 72, page_height / 72, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    missing = []
    for (row, column, _, fid, frame, caption), picture in zip(cells, pictures):
        color, line, _ = FRAMES[frame]
        left, top = column * across + (20 if column else 8), row * down + 8
        x, y = left + width / 2, top + height / 2
        axes.add_patch(Rectangle((left - 2, top - 2), width + 4, height + 4, fill=False, color=color, linestyle=line,
                                 linewidth=2.5))
        axes.text(x, top + height + 6, caption, ha='center', va='top', size=7.5, color=color, linespacing=1.3)
        if picture is None:
            missing.append(fid)
            axes.text(x, y, 'no image', ha='center', va='center', size=7.5, color='gray')
            continue
        scale = min(width / picture.width, height / picture.height) / 2
        dx, dy = scale * picture.width, scale * picture.height
        if frame == 'excluded':
            picture = picture.convert('L').convert('RGB')
        axes.imshow(picture, extent=(x - dx, x + dx, y + dy, y - dy), alpha=0.4 if frame == 'excluded' else 1)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), aspect='auto')
    return figure, missing, len(cells)


def write_report(args):
    """One page with the evaluation's numbers, charts and every query's ranked list."""
    from report import page_data, write_page
    from results import open_evaluation, open_other_evaluation
    filename = args.filename or os.path.splitext(args.evaluation)[0] + '.html'
    evaluation, query, gallery = open_evaluation(args)
    evaluations = [evaluation]
    if args.compare:
        evaluations.append(open_other_evaluation(args.compare, evaluation, query, gallery))
    data, missing, count = page_data(evaluations, query, gallery, args.top_k, args.seed, filename, args.link_images)
    write_page(filename, data)
    warn_of_missing(missing, count)
    print(f'{len(query.dataset)} queries, {os.path.getsize(filename) / 1e6:.1f} MB: {filename}')


def draw_embeddings(args):
    """A scatter plot of some identities' embeddings; on request the same rows for TensorBoard's projector."""
    from dataset import load_dataset
    from embeddings import Embeddings, open_with_dataset
    from results import image_paths, read_rows, stated
    filename = args.filename or os.path.splitext(args.embeddings)[0] + '.png'
    check_picture_name(filename)
    with Embeddings(args.embeddings) as header:
        dataset_path = args.dataset or stated(header, 'dataset')
    if dataset_path is None or not os.path.isfile(dataset_path):
        raise InputError(f'The csv file of {args.embeddings} is not known or not there ({dataset_path}); give it as '
                         f'--dataset.')
    embeddings, dataset = open_with_dataset(args.embeddings, load_dataset(dataset_path))
    with embeddings:
        rows = rows_of_identities(dataset.pids, args.identities, args.seed)
        drawn, emb = dataset.take(rows), read_rows(embeddings, rows)
    points, how = in_two_dimensions(emb, args.projection, args.seed)
    save_picture(scatter_plot(points, drawn.pids, f'{os.path.basename(args.embeddings)}: {how}'), filename)
    print(f'{len(drawn)} images of {len(set(drawn.pids))} of {len(set(dataset.pids))} identities, {how}: {filename}')
    if args.projector:
        missing = write_projector(args.projector, emb, drawn, image_paths(embeddings, drawn.fids, args))
        warn_of_missing(missing, len(drawn))
        print(f'To look at them: tensorboard --logdir {args.projector}')


def rows_of_identities(pids, count, seed):
    """Rows of `count` identities that are picked at random, in order; all rows where there are no more, or for 0."""
    identities = np.unique(pids.astype(str))
    if 0 < count < len(identities):
        identities = np.random.default_rng(seed).choice(identities, count, replace=False)
    return np.flatnonzero(np.isin(pids.astype(str), identities))


def in_two_dimensions(emb, projection, seed):
    """Embeddings [N, D] as points [N, 2], and a few words that tell how they became that."""
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
    """Points [N, 2] with a colour and a marker for each identity, and its name where there are few."""
    import matplotlib
    from matplotlib.patheffects import withStroke
    identities, identity = np.unique(pids.astype(str), return_inverse=True)
    if len(identities) <= 10:
        colors = matplotlib.colormaps['tab10'](range(10))
    else:  # Steps of the golden ratio around the circle of hues: neighbours in the list differ most.
        colors = matplotlib.colormaps['hsv'](0.618 * np.arange(len(identities)) % 1) * (0.85, 0.85, 0.85, 1)
    figure = new_figure(8, 8)
    axes = figure.subplots()
    for i, name in enumerate(identities):
        x, y = points[identity == i].T
        axes.scatter(x, y, np.clip(20000 / len(points), 4, 40), color=colors[i], alpha=0.6, linewidths=0,
                     marker=MARKERS[i % len(MARKERS)])
        if len(identities) <= MOST_NAMED:
            axes.annotate(name, (np.median(x), np.median(y)), ha='center', va='center', weight='bold',
                          color=colors[i] * (0.7, 0.7, 0.7, 1),
                          path_effects=[withStroke(linewidth=3, foreground='white')])
    axes.set_title(title)
    axes.set_aspect('equal', 'datalim')
    axes.grid(alpha=0.2)
    return figure


def write_projector(folder, emb, dataset, paths):
    """Write what TensorBoard's projector reads: vectors, names, thumbnails in one sprite, and their description.

    Returns: file ids of the images that are missing.
    """
    from PIL import Image
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
    from thumbnails import thumbnails
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
    with written_whole(os.path.join(folder, 'projector_config.pbtxt')) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text_format.MessageToString(config))
    return missing


def draw_curves(args):
    """A panel for each scalar, with all runs in it; then each run's loss distribution, where it kept detailed logs."""
    from matplotlib.lines import Line2D
    from training_logs import read_loss_quantiles, read_scalars
    filename = args.filename or os.path.join(args.experiment_roots[0], 'curves.png')
    check_picture_name(filename)
    runs = {root: read_scalars(root) for root in args.experiment_roots}
    distributions = {root: quantiles for root in runs if (quantiles := read_loss_quantiles(root))}
    tags = sorted({tag for scalars in runs.values() for tag in scalars})
    tags.sort(key=lambda tag: next((i for i, start in enumerate(PANELS_FIRST) if tag.startswith(start)), 9))

    rows = math.ceil((len(tags) + len(distributions)) / 2)
    figure = new_figure(12, 3 * rows + 0.25 * len(runs))
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    styles = [{'color': f'C{i % 10}', 'linestyle': LINES[i % len(LINES)]} for i in range(len(runs))]
    for panel, tag in zip(panels, tags):
        for scalars, style in zip(runs.values(), styles):
            draw_scalar(panel, scalars.get(tag, {}), style, args.smoothing)
        panel.set(title=tag, xlabel='iteration')
        panel.grid(alpha=0.3)
        if tag == 'learning_rate':
            panel.set_yscale('log')
            panel.yaxis.set_major_formatter('{x:.0e}')
            panel.yaxis.set_minor_formatter('')
    for panel, (root, (steps, quantiles)) in zip(panels[len(tags):], distributions.items()):
        draw_quantiles(panel, steps, quantiles)
        panel.set(title=f'losses within the batches of {root}', xlabel='iteration')
    for panel in panels[len(tags) + len(distributions):]:
        panel.remove()
    figure.legend([Line2D([], [], **style) for style in styles], runs, loc='outside upper center', frameon=False)
    save_picture(figure, filename)
    print(f'{len(tags)} scalars of {len(runs)} run(s): {filename}')


def draw_scalar(panel, values, style, smoothing):
    """One run's scalar {step: value}: a moving mean, and the values themselves, pale."""
    steps = np.array(sorted(values))
    y = np.array([values[step] for step in steps])
    window = min(smoothing or max(1, len(y) // 100), len(y))
    if window > 1:
        panel.plot(steps, y, color=style['color'], alpha=0.2, linewidth=0.5)
        y = np.convolve(y, np.full(window, 1 / window), 'valid')
        steps = steps[(window - 1) // 2:][:len(y)]
    panel.plot(steps, y, **style)


def draw_quantiles(panel, steps, quantiles):
    """Bands between the quantiles [T, 7] of a distribution over time, around its median."""
    for i, (name, color) in enumerate({'all': '#d9e6f2', '5 to 95 %': '#a9c8e2', '25 to 75 %': '#6ba3cd'}.items()):
        panel.fill_between(steps, quantiles[:, i], quantiles[:, -1 - i], color=color, linewidth=0, label=name)
    panel.plot(steps, quantiles[:, 3], color='#1f3f66', label='median')
    panel.grid(alpha=0.3)
    panel.legend(loc='upper right', fontsize='small')


def warn_of_missing(fids, count):
    """Say which of `count` images could not be shown, if any."""
    from thumbnails import missing_sentence
    if fids:
        print(f'Warning: {missing_sentence(fids, count)} If they were moved, give their folder as --image_root; if they '
              f'lie outside of it, add --allow_outside_root.', file=sys.stderr)


def check_picture_name(filename):
    """Fail before the work, not after it, where the name's ending is none of a picture."""
    from matplotlib.backend_bases import FigureCanvasBase
    ending = os.path.splitext(filename)[1][1:].lower()
    if ending not in FigureCanvasBase.filetypes:
        raise InputError(f'{filename} does not end in the name of a picture format; use .png, .pdf or .svg.')


def new_figure(width, height, layout='constrained'):
    """A figure of a size in inches. It is made without pyplot, which would look for a display."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams['text.parse_math'] = False  # A $ in a file name is a $.
    return Figure(figsize=(width, height), layout=layout)


def save_picture(figure, filename):
    ending = os.path.splitext(filename)[1][1:].lower()
    most_pixels = 2 ** 16 - 1  # of matplotlib's renderer, a side
    with written_whole(filename) as temporary:
        figure.savefig(temporary, format=ending, dpi=min(150, most_pixels / max(figure.get_size_inches())))


if __name__ == '__main__':
    exit_with(main)
