#!/usr/bin/env python3
"""Who is this? Search a gallery with photos: a folder of images, a csv file or an .h5 file → the nearest, or nobody."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os
import sys

import h5py

from tripletreid import argument_types, quiet
from tripletreid.embeddings.differences import difference
from tripletreid.embeddings.shards import in_order, open_embeddings
from tripletreid.errors import InputError, exit_with, printable, some
from tripletreid.evaluation import verification
from tripletreid.experiment import arguments
from tripletreid.files import check_file, check_output
from tripletreid.metrics import METRICS
from tripletreid.modeling import inference_flags, recorded_facts

OF_THE_PAGE = ('host', 'port')
OF_THE_FILES = ('filename', 'report', 'together')
OF_THE_INDEX = ('index', 'batch_size', 'loading_threads')


def make_parser():
    """The parser of search.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Who is this? Search a gallery with photos. They should show what the net was trained on and little\n'
                    'else: nothing is detected or cropped here.',
        usage='%(prog)s --experiment_root DIR --gallery FOLDER PHOTO [PHOTO ...] [more flags]\n'
              '       %(prog)s --experiment_root DIR --gallery FOLDER --serve [more flags]',
        example='python search.py --experiment_root runs/first --gallery photos photo.jpg --report found.html\n'
                'python search.py --experiment_root runs/first --gallery photos photo.jpg \\\n'
                '    --threshold_from runs/first/evaluation.json --fpr 1e-3\n'
                'python search.py --experiment_root runs/first --gallery photos --serve')
    add = parser.add_argument_group('what is needed').add_argument
    add('photos', nargs='*', metavar='PHOTO', help='image file to search with')
    add('--experiment_root', required=True, metavar='DIR', help='where the training run is kept')
    add('--gallery', required=True, metavar='FOLDER', help='what to search: a folder of images and its sub-folders, a '
        'csv file, or an .h5 file of embed.py (of its parts: a pattern in quotes)')

    add = parser.add_argument_group('what is found').add_argument
    add('--count', type=argument_types.positive_int, default=10, metavar='K', help='how many of the nearest '
        '(%(default)s)')
    add('--together', action='store_true', help='the photos show one identity: search with the mean of their embeddings')
    add('--threshold', type=argument_types.non_negative_float, metavar='D', help='the same identity is at this distance '
        'at most')
    add('--threshold_from', metavar='JSON', needs='--fpr',
        help='the threshold of evaluate.py --verification, at the rate --fpr')
    add('--fpr', type=argument_types.fraction, metavar='RATE', needs='--threshold_from', help='share of pairs of '
        'different identities that may pass for the same, e.g. 1e-3')
    add('--metric', choices=METRICS, help='distance of embeddings (that of the training)')
    add('--filename', metavar='JSON', help='file to write what is found to')
    add('--report', metavar='HTML', help='page to write with pictures of what is found')

    add = parser.add_argument_group('instead of photos').add_argument
    add('--serve', action='store_true', help='a page in the browser, to search by dropping a photo on it')
    add('--host', metavar='ADDRESS', help='let others reach the page at this address of this machine, with a token '
        '(this machine alone)')
    add('--port', type=argument_types.port, metavar='N', help='(8000)')

    add = parser.add_argument_group('test-time augmentation, of photos and gallery').add_argument
    inference_flags.add_flags(add)

    add = parser.add_argument_group('more').add_argument
    add('--checkpoint', metavar='NAME', help='name of a checkpoint in the experiment root (the last one)')
    inference_flags.add_weights(add)
    add('--index', metavar='FILE', help="database that keeps the gallery's embeddings, so that the next search embeds only "
        "new and changed images (default: in the experiment root, the gallery's name + _index.sqlite)")
    add('--image_root', metavar='DIR', help='folder that the paths of a csv or .h5 file are relative to (that of the '
        'training run, or of the .h5 file)')
    add('--allow_outside_root', action='store_true', help='also read images that lie outside of the image root')
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='images of the gallery at a '
        'time (%(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='images loaded at a time '
        '(%(default)s)')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_flags(args, parser)
    trained, _ = arguments.load(args.experiment_root)
    metric = args.metric or recorded_facts.run_metric(trained)
    threshold, curve = threshold_and_curve(args, metric)
    check_gallery(args, parser)
    from tripletreid.search import gallery, photos
    if args.filename is not None:
        check_output(args.filename, '--filename', 'a result of search.py', gallery.is_found,
                     [*args.photos, args.gallery, args.threshold_from])
    if args.report is not None:
        from tripletreid.search import page
        check_output(args.report, '--report', 'a page of search.py', page.is_page,
                     [*args.photos, args.gallery, args.threshold_from])
    for path in args.photos:
        photos.check(path)
    if args.serve:
        from tripletreid.search import server
        listening = server.listen(args.host, args.port)

    # The model, and the photos with it: what is wrong with them is told before a gallery is embedded for hours.
    with quiet.tensorflow_import():
        from tripletreid.search import embedder
    model = embedder.Embedder(args, trained)
    doubt = args.threshold_from and verification.doubt(args.threshold_from, model.made_by)
    if doubt:
        warn(doubt)
    embs = []
    for path in args.photos:
        content = photos.read(path)
        embs.append(model.photo(content, path))
        for doubt in photos.doubts(content, model.size):
            warn(f'{path} {doubt}.')

    # The gallery.
    embeddings, image_root = open_gallery(args, trained, model)
    opened = gallery.Gallery(args.gallery.rstrip('/'), embeddings, metric, threshold, image_root, args.allow_outside_root)
    if args.serve:
        return server.serve(listening, opened, model, args.count, curve, args.host)

    # Search.
    names, shown = args.photos, [[path] for path in args.photos]
    if args.together:
        names, shown, embs = [' + '.join(args.photos)], [args.photos], [gallery.mean_of(embs)]
    queries = [(name, opened.search(emb, args.count)) for name, emb in zip(names, embs)]
    for name, found in queries:
        for line in (f'{name}: {gallery.verdict(found, threshold)}', *gallery.table(found)):
            report(line)
    if args.filename:
        gallery.write_found(args.filename, queries)
        print(f'Saved {args.filename}.')
    if args.report:
        page.write_page(args.report, opened, queries, shown, curve)
        print(f'Saved {args.report}.')


def check_flags(args, parser):
    """End through `parser.error` where flags do not go together."""
    parser.check(args)
    if args.serve and args.photos:
        parser.error('--serve searches with the photos that are dropped on its page: give no others')
    if not args.serve and not args.photos:
        parser.error('there is nothing to search with: give a PHOTO, or --serve')
    if args.serve:
        argument_types.refuse_given(parser, OF_THE_FILES, 'what --serve finds stands on its page')
    else:
        argument_types.refuse_given(parser, OF_THE_PAGE, 'no page is served without --serve')
    if args.threshold is not None and args.threshold_from is not None:
        parser.error('--threshold and --threshold_from are two thresholds: give one')
    outputs = [os.path.realpath(path) for path in (args.filename, args.report, args.index) if path is not None]
    if len(set(outputs)) < len(outputs):
        parser.error('--filename, --report and --index are three files: give each a name of its own')


def check_gallery(args, parser):
    """Check that the gallery is there, and that no flag is given that such a one has no use for."""
    if os.path.isdir(args.gallery):
        argument_types.refuse_given(parser, ['image_root'], 'the images are in the folder --gallery')
        return
    if is_embedded(args.gallery):
        for path in in_order([args.gallery]):
            check_file(path, 'embedding file', '.h5')
        argument_types.refuse_given(parser, OF_THE_INDEX, f'the images of {args.gallery} are embedded already')
    else:
        check_file(args.gallery, 'gallery', '.csv')


def is_embedded(path):
    """Whether a gallery is given as an embedding file, or a pattern of its parts."""
    return not os.path.isdir(path) and (path.endswith('.h5') or h5py.is_hdf5(path))


def threshold_and_curve(args, metric):
    """The threshold, or None; and the points of the evaluation's ROC, a list, empty where there is no evaluation."""
    if args.threshold_from is None:
        return args.threshold, []
    point = verification.threshold_at(args.threshold_from, args.fpr, metric)
    curve = [*verification.operating_points(args.threshold_from, metric), point]
    return point.threshold, sorted((each for each in curve if each.threshold is not None), key=lambda each: each.threshold)


def open_gallery(args, trained, model):
    """The open `Embeddings` of the gallery, embedded where that is needed, and the folder of its images, or None."""
    from tripletreid.search import image_files, index
    if is_embedded(args.gallery):
        embeddings = open_embedded(args.gallery, model)
        image_root = args.image_root or embeddings.parameters.get('image_root')
        return embeddings, image_root if isinstance(image_root, str) else None
    if os.path.isdir(args.gallery):
        files, warnings = image_files.in_folder(args.gallery, args.allow_outside_root)
    else:
        image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
        files, warnings = image_files.in_dataset(args.gallery, image_root, args.allow_outside_root), []
    path = model.index_name(args.gallery) if args.index is None else args.index
    check_output(path, '--index', 'an index of search.py', lambda path: True, [args.gallery, *args.photos])
    embeddings = index.up_to_date(path, files, model, report)
    if problems := embeddings.problems:
        first = min(problems)
        warnings.append(f'Images that cannot be read are skipped: {some(problems)}; {first}: {problems[first]}.')
    for sentence in warnings:
        warn(sentence)
    return embeddings, files.root


def report(sentence):
    """Print a sentence in one line."""
    print(printable(sentence))


def warn(sentence):
    """Print a warning in one line on standard error."""
    print(f'Warning: {printable(sentence)}', file=sys.stderr)


def open_embedded(path, model):
    """Open a gallery's `Embeddings`, which have to be made as the photos' are."""
    from tripletreid.search import gallery
    embeddings = open_embeddings([path])
    gallery.check_names(embeddings)
    if not len(embeddings):
        raise InputError(f'{path} has no images.')
    if embeddings.shape[1] != model.dim:
        raise InputError(f'{path} has embeddings of {embeddings.shape[1]} dimensions, and this model gives {model.dim}: '
                         f'embed the gallery with this model.')
    how = difference(embeddings.parameters, model.made_by)
    if how:
        raise InputError(f'{path} was made with {how} than that of the photos, {os.path.basename(model.checkpoint)}: '
                         f'give the flags with which it was embedded, or embed it again.')
    if 'checkpoint_sha256' not in embeddings.parameters:
        warn(f'{path} does not name its checkpoint. If it was not made by {model.checkpoint}, its distances to the photos '
             f'mean nothing.')
    return embeddings


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')
