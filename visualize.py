#!/usr/bin/env python3
"""Look at results: ranked lists, a report to browse, embeddings in two dimensions, training curves.

    visualize.py rankings evaluation.json     the nearest images of some queries, as a picture
    visualize.py regions evaluation.json      the parts of images that make them near
    visualize.py report evaluation.json       an HTML page: scores, charts and all ranked lists
    visualize.py embeddings embeddings.h5     a scatter plot, and data for TensorBoard's projector
    visualize.py curves ROOT [ROOT ...]       loss, precision, active count, learning rate, …
    visualize.py clusters NAME.csv            a page to merge, split and name clusters
    visualize.py augmentation ROOT            some training images, as the net of a run sees them

An evaluation file names its csv and .h5 files, and an .h5 file names its images; flags replace the paths of files that were
moved. No display is needed. Only regions, report --regions and augmentation import TensorFlow.
"""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os
import sys

import numpy as np

from tripletreid import argument_types
from tripletreid.argument_types import EMBEDDINGS_OPTIONS, ArgumentParser, OneOrMore, non_negative_int, positive_int
from tripletreid.errors import InputError, exit_with
from tripletreid.files import check_output
from tripletreid.names import canonical_paths
from tripletreid.visualization.curves import picture_of_curves
from tripletreid.visualization.embedding_plot import (
    MOST_NAMED,
    check_projector,
    in_two_dimensions,
    rows_of_identities,
    scatter_plot,
    write_projector,
)
from tripletreid.visualization.figures import check_picture_name, save_picture, use_fonts_for
from tripletreid.visualization.html_page import MOST_MEGABYTES, check_megabytes
from tripletreid.visualization.rankings_plot import picture_of_lists

DRAWN_VARIANTS = 8  # Augmented variants per image.


def evaluation_flags():
    """Return a parser of the flags that name an evaluation and its files."""
    flags = ArgumentParser(add_help=False)
    add = flags.add_argument
    add('evaluation', metavar='EVALUATION', help='JSON file of evaluate.py')
    add('--query_dataset', metavar='CSV', help='csv file of the queries, if it was moved since the evaluation')
    add('--query_embeddings', **EMBEDDINGS_OPTIONS, help='embeddings of the queries, if they were moved since the '
        'evaluation')
    add('--gallery_dataset', metavar='CSV', help='csv file of the gallery, if it was moved since the evaluation')
    add('--gallery_embeddings', **EMBEDDINGS_OPTIONS, help='embeddings of the gallery, if they were moved since the '
        'evaluation')
    return flags


def list_flags():
    """Return a parser of the flag of ranked lists."""
    flags = ArgumentParser(add_help=False)
    flags.add_argument('--top_k', type=positive_int, default=10, metavar='K', help='length of a ranked list (default: '
                       '%(default)s)')
    return flags


def choice_flags():
    """Return a parser of the flags that choose queries."""
    flags = ArgumentParser(add_help=False)
    add = flags.add_argument
    add('--choose', choices=('worst', 'best', 'random'), default='worst', help='which queries: with the lowest or '
        'the highest AP, or any with a match (default: %(default)s)')
    add('--count', type=positive_int, default=8, metavar='N', help='number of queries (default: %(default)s)')
    add('--queries', nargs='+', metavar='FILE', help='exactly these queries, as the csv file names them')
    return flags


def image_flags():
    """Return a parser of the flags that name the images to show."""
    flags = ArgumentParser(add_help=False)
    add = flags.add_argument
    add('--image_root', metavar='DIR', help='folder of the images, if they were moved since they were embedded')
    add('--allow_outside_root', action='store_true', help='also show images that lie outside of the image root')
    add('--seed', type=non_negative_int, default=0, help='seed of random choices (default: %(default)s)')
    return flags


def make_parser():
    """Return the parser of visualize.py's command line."""
    parser = ArgumentParser(description=__doc__, example='python visualize.py report runs/first/evaluation.json\n'
                                                         'python visualize.py report --help')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    evaluated, ranked, chosen, pictured = evaluation_flags(), list_flags(), choice_flags(), image_flags()
    add = commands.add_parser('rankings', parents=[evaluated, ranked, chosen, pictured],
                              example='python visualize.py rankings runs/first/evaluation.json --count 4',
                              help='the nearest images of some queries, as a picture').add_argument
    add('--show_excluded', action='store_true', help='also show, greyed, the images that the protocol excludes')
    add('--filename', metavar='PNG', help='picture to write, .png, .pdf, .svg, … (default: EVALUATION_rankings.png)')

    add = commands.add_parser('regions', parents=[evaluated, chosen, pictured],
                              example='python visualize.py regions runs/first/evaluation.json --count 4',
                              help='the parts of queries and of their nearest images that make them near').add_argument
    add('--top_k', type=positive_int, default=3, metavar='K', help='number of nearest images per query (default: '
        '%(default)s)')
    add('--method', choices=('pairs', 'occlusion'), help='pairs: divide the similarity into pairs of places of the last '
        'feature map, exactly where the layers after it are linear, else by their gradient; occlusion: cover a cell of an '
        'image and measure the distance (default: pairs where the net has such a map)')
    add('--experiment_root', metavar='ROOT', help='experiment root of the embeddings, if it was moved since they '
        'were made')
    add('--filename', metavar='PNG', help='picture to write, .png, .pdf, .svg, … (default: EVALUATION_regions.png)')

    add = commands.add_parser('report', parents=[evaluated, ranked, pictured],
                              example='python visualize.py report runs/first/evaluation.json',
                              help="one HTML page with numbers, charts and every query's ranked list").add_argument
    add('--compare', metavar='OTHER', help='an earlier evaluation of the same queries and gallery: which queries got '
        'better or worse since')
    add('--link_images', action='store_true', help='refer to the image files, relative to the page, instead of '
        f'embedding thumbnails, which may take {MOST_MEGABYTES} MB in total')
    add('--regions', type=positive_int, metavar='N', help='add a layer to switch on: the parts of a query and of its '
        'nearest images that make them near, for the N queries with the lowest AP, or with the largest loss since OTHER '
        '(default: no layer)')
    add('--experiment_root', metavar='ROOT', needs='--regions', help='experiment root of the embeddings, if it was moved '
        'since they were made')
    add('--filename', metavar='HTML', help='page to write (default: EVALUATION.html)')

    add = commands.add_parser('embeddings', parents=[pictured],
                              example='python visualize.py embeddings runs/first/folder_test_embeddings.h5',
                              help="a scatter plot, and data for TensorBoard's projector").add_argument
    add('embeddings', nargs='+', metavar='EMBEDDINGS', help='.h5 file of embed.py, or all of its shards')
    add('--dataset', metavar='CSV', help='csv file of the embeddings, if it was moved since they were made')
    add('--projection', choices=('pca', 'tsne'), default='pca', help='projection to two dimensions: principal '
        'components or t-SNE (default: %(default)s)')
    add('--identities', type=non_negative_int, default=MOST_NAMED, metavar='N', help='number of identities, picked at '
        'random; 0: all (default: %(default)s)')
    add('--projector', metavar='DIR', help="folder to which the embeddings, names and thumbnails of these images are "
        "written for TensorBoard's projector")
    add('--filename', metavar='PNG', help='picture to write, .png, .pdf, .svg, … (default: EMBEDDINGS.png)')

    add = commands.add_parser('curves', example='python visualize.py curves runs/first runs/second',
                              help='loss, precision, active count, learning rate, … of runs').add_argument
    add('experiment_roots', nargs='+', metavar='EXPERIMENT_ROOT', help='experiment roots of the runs to draw')
    add('--smoothing', type=positive_int, metavar='N', help='number of iterations over which curves are '
        'averaged; 1: no smoothing (default: a hundredth of the run)')
    add('--filename', metavar='PNG', help='picture to write, .png, .pdf, .svg, … (default: curves.png in the first '
        'experiment root)')

    add = commands.add_parser('augmentation', example='python visualize.py augmentation runs/first --count 4',
                              help='some training images, as the net of a run gets to see them').add_argument
    add('experiment_root', metavar='ROOT', help='experiment root')
    add('--count', type=positive_int, default=6, metavar='N', help='number of images, picked at random (default: '
        '%(default)s)')
    add('--image_root', nargs='+', action=OneOrMore, metavar='DIR', help='folder of the images, if they were moved since '
        'the training; one for all sets, or one for each')
    add('--seed', type=non_negative_int, default=0, help='seed of random choices (default: %(default)s)')
    add('--filename', metavar='PNG', help='picture to write, .png, .pdf, .svg, … (default: augmentation.png in the '
        'experiment root)')

    add = commands.add_parser('clusters', example='python visualize.py clusters groups.csv',
                              help='one HTML page to merge, split, name or throw out clusters').add_argument
    add('clusters', metavar='CSV', help='csv file of cluster.py')
    add('--image_root', metavar='DIR', help='folder of the images (default: as given to cluster.py)')
    add('--allow_outside_root', action='store_true', help='also show images that lie outside of the image root')
    add('--link_images', action='store_true', help='refer to the image files, relative to the page, instead of embedding '
        'thumbnails')
    add('--filename', metavar='HTML', help='page to write (default: the name of the csv file + .html)')
    add('--serve', action='store_true', help='instead of writing the page, serve it on this machine and save its decisions '
        'in a file next to the csv file, NAME_decisions.csv')
    add('--port', type=argument_types.port, needs='--serve', metavar='N', help='port of the page (default: 8000)')

    draw = {'rankings': draw_rankings, 'regions': draw_regions, 'report': write_report, 'embeddings': draw_embeddings,
            'curves': draw_curves, 'augmentation': draw_augmentation, 'clusters': write_clusters}
    for name, function in draw.items():
        commands.choices[name].set_defaults(draw=function, parser=commands.choices[name])
    return parser


def main():
    args = make_parser().parse_args()
    args.parser.check(args)
    args.draw(args)


def draw_rankings(args):
    """Draw a picture with a row for each chosen query: the query, then its nearest images."""
    from tripletreid.visualization.ranked_lists import open_evaluation, ranked_lists
    filename = os.path.splitext(args.evaluation)[0] + '_rankings.png' if args.filename is None else args.filename
    check_picture_name(filename, read_by(args))
    evaluation, query, gallery = open_evaluation(args)
    queries = choose_queries(evaluation, args)
    lists = ranked_lists(evaluation, query, gallery, queries, args.top_k)
    if not args.show_excluded:
        lists = [[entry for entry in ranked if not entry.excluded] for ranked in lists]
    rows = [entry.row for ranked in lists for entry in ranked]
    warn_of_boxes({*query.dataset.pids[queries], *gallery.dataset.pids[rows]})
    figure, missing = picture_of_lists(evaluation, query, gallery, queries, lists)
    save_picture(figure, filename)
    warn_of_missing(missing)
    print(f'{len(queries)} ranked lists: {filename}')


def draw_regions(args):
    """Draw a picture with a row per query: the query, then for each of its nearest images the parts of both."""
    from tripletreid.visualization.ranked_lists import open_evaluation, ranked_lists
    from tripletreid.visualization.regions_plot import picture_of_regions, row_of_query
    filename = os.path.splitext(args.evaluation)[0] + '_regions.png' if args.filename is None else args.filename
    check_picture_name(filename, read_by(args))
    evaluation, query, gallery = open_evaluation(args)
    queries = choose_queries(evaluation, args)
    lists = [[entry for entry in ranked if not entry.excluded]
             for ranked in ranked_lists(evaluation, query, gallery, queries, args.top_k)]
    rows = [entry.row for ranked in lists for entry in ranked]
    warn_of_boxes({*query.dataset.pids[queries], *gallery.dataset.pids[rows]})
    explainer = open_explainer(args, evaluation, query, gallery, args.method)
    explained = [row_of_query(explainer, query, gallery, *each) for each in zip(queries, lists)]
    save_picture(picture_of_regions(explained), filename)
    print(f'{explainer.method_in_words()}\n{len(queries)} queries: {filename}')


def read_by(args):
    """Return the files that a command about an evaluation is given to read; None for those that are not given."""
    return [args.evaluation, args.query_dataset, args.query_embeddings, args.gallery_dataset, args.gallery_embeddings]


def choose_queries(evaluation, args):
    """Rows of the queries to draw, int64 [n]: those named by --queries, else worst, best or random ones with a match.

    Raises:
        InputError: a name that is not among the queries, or no query with a match.
    """
    if args.queries:
        chosen = canonical_paths(args.queries)
        unknown = sorted(set(chosen) - set(evaluation.fids))
        if unknown:
            raise InputError(f'{unknown[0]} is not a query of {args.evaluation}; use the names of the csv file.')
        return np.array([evaluation.fids.index(fid) for fid in chosen])
    matched = np.flatnonzero(~np.isnan(evaluation.ap))
    if not len(matched):
        raise InputError(f'No query of {args.evaluation} has a match; choose some by --queries.')
    if args.choose == 'random':
        return np.random.default_rng(args.seed).permutation(matched)[:args.count]
    rising = matched[np.argsort(evaluation.ap[matched], kind='stable')]
    return rising[:args.count] if args.choose == 'worst' else rising[::-1][:args.count]


def write_report(args):
    """Write one page with the evaluation's numbers, charts and every query's ranked list."""
    from tripletreid.visualization import regions_layer
    from tripletreid.visualization.ranked_lists import open_evaluation, open_other_evaluation
    from tripletreid.visualization.report import estimated_bytes, find, is_page, page_data, write_page
    filename = os.path.splitext(args.evaluation)[0] + '.html' if args.filename is None else args.filename
    check_output(filename, '--filename', 'a page of visualize.py report', is_page, [*read_by(args), args.compare])
    evaluation, query, gallery = open_evaluation(args)
    evaluations = [evaluation]
    if args.compare:
        evaluations.append(open_other_evaluation(args.compare, evaluation, query, gallery))
    explainer = open_explainer(args, evaluation, query, gallery) if args.regions else None
    found = find(evaluations, query, gallery, args.top_k, args.seed)
    if not args.link_images:
        check_megabytes(estimated_bytes(found) / 1e6)
    layer = regions_layer.layer(explainer, found, args.regions) if args.regions else None
    data, missing = page_data(found, evaluations, query, gallery, filename, args.link_images, layer)
    write_page(filename, data)
    warn_of_missing(missing)
    print(f'{len(query.dataset)} queries, {os.path.getsize(filename) / 1e6:.1f} MB: {filename}')


def open_explainer(args, evaluation, query, gallery, method=None):
    """Return the `Explainer` of an evaluation; arguments as `ranked_lists.open_evaluation` returns them."""
    from tripletreid import quiet
    with quiet.tensorflow_import():
        from tripletreid.visualization.explainer import Explainer
    return Explainer(evaluation, query, gallery, args.experiment_root, method)


def write_clusters(args):
    """Write or serve one page with all clusters and their possible errors."""
    from tripletreid.visualization.clusters_page import ClustersPage, is_page
    if args.serve:
        argument_types.refuse_given(args.parser, ['filename', 'link_images'], '--serve writes no page')
        from tripletreid import page_server
        from tripletreid.visualization import clusters_server
        listening = page_server.listen(port=args.port)
        page = ClustersPage(args.clusters, args.image_root, args.allow_outside_root)
        warn_of_missing(page.missing(page.paths))
        return clusters_server.serve(listening, page)
    filename = os.path.splitext(args.clusters)[0] + '.html' if args.filename is None else args.filename
    check_output(filename, '--filename', 'a page of visualize.py clusters', is_page, [args.clusters])
    page = ClustersPage(args.clusters, args.image_root, args.allow_outside_root)
    if not args.link_images:
        check_megabytes(page.estimated_bytes() / 1e6)
    warn_of_missing(page.write(filename, args.link_images))
    doubtful = sum(bool(each.doubts) for each in page.reviewed)
    print(f'{len(page.reviewed)} clusters, {doubtful} of them suspicious, {os.path.getsize(filename) / 1e6:.1f} MB: '
          f'{filename}')


def draw_embeddings(args):
    """Draw a scatter plot of some identities' embeddings; on request the same rows for TensorBoard's projector."""
    from tripletreid.dataset import load_dataset
    from tripletreid.embeddings.shards import name_of_whole, open_embeddings
    from tripletreid.embeddings.with_dataset import open_with_dataset
    from tripletreid.evaluation import chunks
    from tripletreid.visualization.ranked_lists import image_paths, stated
    whole = name_of_whole(args.embeddings)
    filename = os.path.splitext(whole)[0] + '.png' if args.filename is None else args.filename
    check_picture_name(filename, [args.embeddings, args.dataset])
    if args.projector:
        check_projector(args.projector)
    with open_embeddings(args.embeddings) as header:
        dataset_path = args.dataset or stated(header, 'dataset')
    if dataset_path is None:
        raise InputError(f'{whole} does not say which csv file has the identities of its rows: give it as --dataset.')
    if not (args.dataset or os.path.isfile(dataset_path)):
        raise InputError(f'The csv file of {whole}, {dataset_path}, is not there: give it as --dataset.')
    embeddings, dataset = open_with_dataset(args.embeddings, load_dataset(dataset_path))
    with embeddings:
        rows = rows_of_identities(dataset.pids, args.identities, args.seed)
        drawn, emb = dataset.take(rows), chunks.read_rows(embeddings, rows)
    points, how = in_two_dimensions(emb, args.projection, args.seed)
    name = os.path.basename(whole)
    warn_of_boxes({name, *(drawn.pids if len(set(drawn.pids)) <= MOST_NAMED else ())})
    save_picture(scatter_plot(points, drawn.pids, f'{name}: {how}'), filename)
    print(f'{len(drawn)} images of {len(set(drawn.pids))} of {len(set(dataset.pids))} identities, {how}: {filename}')
    if args.projector:
        missing = write_projector(args.projector, emb, drawn, image_paths(embeddings, drawn.fids, args))
        warn_of_missing(missing)
        print(f'To look at them: tensorboard --logdir {args.projector}')


def draw_curves(args):
    """Draw a panel per scalar, with all runs in it; then each run's loss distribution, where it kept detailed logs."""
    from tripletreid.experiment.detailed_logs import read_loss_quantiles
    from tripletreid.experiment.event_files import read_scalars
    filename = os.path.join(args.experiment_roots[0], 'curves.png') if args.filename is None else args.filename
    if all(map(os.path.isdir, args.experiment_roots)):  # Otherwise the error below names the wrong root.
        check_picture_name(filename, ())
    runs = {root: read_scalars(root) for root in args.experiment_roots}
    distributions = {root: quantiles for root in runs if (quantiles := read_loss_quantiles(root))}
    warn_of_boxes(runs)
    figure, count = picture_of_curves(runs, distributions, args.smoothing)
    save_picture(figure, filename)
    print(f'{count} scalars of {len(runs)} run(s): {filename}')


def draw_augmentation(args):
    """Draw a row for each of some training images: the image, then its variants with the augmentation of a run."""
    from tripletreid import quiet
    from tripletreid.dataset import load_sets
    from tripletreid.experiment import arguments
    from tripletreid.image_root import check_files
    root = args.experiment_root
    filename = os.path.join(root, 'augmentation.png') if args.filename is None else args.filename
    run, _ = arguments.load(root)
    check_picture_name(filename, ())
    arguments.check_stored_files(root, run)
    if not run.train_set:
        raise InputError(f'The args.json of {root} names no training set.')
    if args.image_root is None:
        arguments.check_stored_image_roots(root, run)
    image_root = args.image_root or run.image_root
    sets = arguments.as_list(run.train_set)
    if isinstance(image_root, list) and len(image_root) != len(sets):
        raise InputError(f'--image_root names {len(image_root)} folders for {len(sets)} training set(s): give one for all, '
                         f'or one for each.')
    train_set = load_sets(run.train_set)
    chosen = train_set.take(np.sort(np.random.default_rng(args.seed).permutation(len(train_set))[:args.count]))
    check_files(chosen, image_root, run.allow_outside_root)
    with quiet.tensorflow_import():
        from tripletreid.input_pipeline import images
        from tripletreid.visualization.augmentation_plot import drawn_images, flags_of, picture_of_augmentation
    drawn = drawn_images(images.paths(chosen, image_root), run, DRAWN_VARIANTS, args.seed)
    warn_of_boxes({root, *chosen.fids})
    flags = flags_of(run) or 'no augmentation'
    # The first folder of joined sets is the set.
    names = [f'{fid.partition("/")[0]}/{os.path.basename(fid)}' if chosen.sets else os.path.basename(fid)
             for fid in chosen.fids]
    save_picture(picture_of_augmentation(drawn, names, f'{root}: {flags}'), filename)
    print(f'{len(chosen)} images, each {DRAWN_VARIANTS} times with {flags}: {filename}')


def warn_of_missing(missing):
    """Say which images could not be shown, if any; `missing` is a `Missing`."""
    if missing.fids:
        print(f'Warning: {missing.sentence()} If they were moved, give their folder as --image_root; if they lie '
              f'outside of it, add --allow_outside_root.', file=sys.stderr)


def warn_of_boxes(names):
    """Choose the fonts that write some names, and say so where none can."""
    boxed = use_fonts_for(sorted(names))
    if boxed:
        more = f' and {len(boxed) - 1} more name{"s" * (len(boxed) > 2)}' if boxed[1:] else ''
        print(f'Warning: no installed font has all characters of {boxed[0]}{more}, so boxes replace them; Noto '
              f'fonts cover most languages.', file=sys.stderr)


if __name__ == '__main__':
    exit_with(main, lower='--top_k, --count or --identities')
