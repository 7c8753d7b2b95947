#!/usr/bin/env python3
"""Search a gallery, a folder, a csv file or an .h5 file, with photos: the nearest images and their names, or nobody."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os
import sys
import zlib

import h5py
import numpy as np

from tripletreid import argument_types, exclusion, pictures, quiet
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.embeddings.differences import difference
from tripletreid.embeddings.shards import in_order, open_embeddings
from tripletreid.errors import InputError, exit_with, printable, some
from tripletreid.evaluation import verification
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.experiment import arguments
from tripletreid.files import check_file, check_output
from tripletreid.metrics import METRICS
from tripletreid.modeling import inference_flags, recorded_facts
from tripletreid.names import canonical_paths

PAGE_FLAGS = ('host', 'port')
FILE_FLAGS = ('filename', 'report', 'together')
ROOT_FLAGS = ('checkpoint', 'weights', 'crop_augment')
INDEX_FLAGS = ('index', 'batch_size', 'loading_threads')


def make_parser():
    """Return the parser of search.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Search a gallery with photos. They should show the same kind of crop as the training images: nothing\n'
                    'is detected or cropped here.',
        usage='%(prog)s --experiment_root DIR --gallery FOLDER PHOTO [PHOTO ...] [more flags]\n'
              '       %(prog)s --experiment_root DIR --gallery FOLDER --serve [more flags]\n'
              '       %(prog)s --exported MODEL --gallery FOLDER PHOTO [PHOTO ...] [more flags]',
        example='python search.py --experiment_root runs/first --gallery photos photo.jpg --report found.html\n'
                'python search.py --experiment_root runs/first --gallery photos photo.jpg \\\n'
                '    --threshold_from runs/first/evaluation.json --fpr 1e-3\n'
                'python search.py --experiment_root runs/first --gallery people.csv --validation_set photos.csv\n'
                'python search.py --experiment_root runs/first --gallery photos --serve')
    add = parser.add_argument_group('input').add_argument
    add('photos', nargs='*', metavar='PHOTO', help='image file to search with')
    add('--experiment_root', metavar='DIR', help='folder of the training run')
    add('--exported', metavar='MODEL', help='search with an export of freeze.py and its model card instead')
    add('--gallery', required=True, metavar='FOLDER', help='images to search: a folder and its sub-folders, a csv file '
        '(results then have names), or an .h5 file of embed.py (several shards: a pattern in quotes)')

    add = parser.add_argument_group('results').add_argument
    add('--count', type=argument_types.positive_int, default=10, metavar='K', help='number of nearest images per photo, '
        'which also vote for a name (default: %(default)s)')
    add('--together', action='store_true', help='search with the mean of all photos, which show one identity')
    add('--threshold', type=argument_types.non_negative_float, metavar='D', help='largest distance that means the same '
        'identity (default: accept and reject nothing)')
    add('--threshold_from', metavar='JSON', help='take the threshold of an evaluation with --verification, at the rate '
        '--fpr or --far')
    add('--fpr', type=argument_types.fraction, metavar='RATE', needs='--threshold_from', help='fraction of impostor pairs '
        'that the threshold may accept, e.g. 1e-3')
    add('--far', type=argument_types.fraction, metavar='RATE', needs='--threshold_from', help='fraction of photos of '
        'unknown identities that the threshold may accept (open-set identification), e.g. 1e-1')
    add('--validation_set', metavar='FILE', help='labelled photos, a csv file or an .h5 file of embed.py, on which the '
        'accuracy of the vote is measured, also at other thresholds (default: measured within the gallery)')
    add('--excluder', type=argument_types.excluder, needs='--validation_set', metavar='NAME', help='which gallery images a '
        'labelled photo ignores, as for evaluate.py, e.g. images of its own camera (default: the photo itself)')
    add('--metric', choices=METRICS, help="distance of embeddings (default: the run's)")
    add('--filename', metavar='JSON', help='JSON file to write the results to')
    add('--report', metavar='HTML', help='page to write the results to, with pictures')

    add = parser.add_argument_group('instead of photos').add_argument
    add('--serve', action='store_true', help='serve a page to search by dropping a photo on it')
    add('--host', metavar='ADDRESS', help='address of this machine at which others may open the page, with a token '
        '(default: this machine only)')
    add('--port', type=argument_types.port, metavar='N', help='port of the page (default: 8000)')

    add = parser.add_argument_group('test-time augmentation, of photos and gallery').add_argument
    inference_flags.add_flags(add)

    add = parser.add_argument_group('more').add_argument
    add('--checkpoint', metavar='NAME', help='name of a checkpoint in the experiment root (default: the last one)')
    inference_flags.add_weights(add)
    add('--index', metavar='FILE', help="database that keeps the gallery's embeddings, so that the next search embeds only "
        "new and changed images (default: in the experiment root, the gallery's name + _index.sqlite)")
    add('--image_root', metavar='DIR', help='folder that the paths of a csv or .h5 file are relative to (default: the '
        "training run's, or the .h5 file's)")
    add('--allow_outside_root', action='store_true', help='also read images outside of the image root')
    add('--batch_size', type=argument_types.positive_int, default=16, metavar='B', help='number of gallery images per '
        'batch; larger ones take more memory and are faster on a GPU (default: %(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='number of images loaded in '
        'parallel (default: %(default)s)')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_flags(args, parser)
    exported = open_export(args) if args.exported else None
    trained = exported.trained() if exported else arguments.load(args.experiment_root)[0]
    run_metric = recorded_facts.run_metric(trained)
    metric = args.metric or run_metric
    if metric != run_metric:
        warn(f'The run was trained and validated with the {run_metric} distance, and --metric is {metric}.')
    threshold, curve = threshold_and_curve(args, metric)
    check_gallery(args, parser)
    check_outputs(args)
    from tripletreid.search import gallery, photos
    for path in args.photos:
        photos.check(path)
    if args.serve:
        from tripletreid import page_server
        listening = page_server.listen(args.host, args.port)

    # The model and the photos come first, so that their errors are reported before a gallery is embedded for hours.
    with quiet.tensorflow_import():
        from tripletreid.search import embedder
    model = embedder.Embedder(args, trained, exported)
    if note := arguments.import_note(trained):
        report(f'Searching with {model.checkpoint}{note}.')
    doubt = args.threshold_from and verification.doubt(args.threshold_from, model.made_by)
    if doubt:
        warn(doubt)
    contents = [photos.read(path) for path in args.photos]
    embs = [model.photo(content, path) for content, path in zip(contents, args.photos)]
    for path, content in zip(args.photos, contents):
        for doubt in photos.doubts(content, model.view.load):
            warn(f'{path} {doubt}.')

    embeddings, image_root, names = open_images(args.gallery, args.index, args, trained, model)
    try:
        opened = gallery.Gallery(args.gallery.rstrip('/'), embeddings, metric, threshold, image_root,
                                 args.allow_outside_root, names)
    except InputError as error:  # Rows that are not finite; an index has none.
        raise InputError(f'{error} Embed these images again, or give the csv file as --gallery, whose index skips them.'
                         ) from error
    if args.validation_set:
        measure_votes(opened, args, trained, model)
    if args.serve:
        from tripletreid.search import server
        return server.serve(listening, opened, model, args.count, curve, args.host)

    # Search.
    photo_names, photo_paths, photo_contents = args.photos, [[path] for path in args.photos], [[each] for each in contents]
    if args.together:
        photo_names, photo_paths, photo_contents = [' + '.join(args.photos)], [args.photos], [contents]
        embs = [gallery.mean_of(embs)]
    queries = [search(opened, *query, args.count) for query in zip(photo_names, embs, photo_contents)]
    print_results(queries, opened, args.count)
    if args.filename:
        gallery.write_found(args.filename, queries)
        report(f'Saved {args.filename}.')
    if args.report:
        from tripletreid.search import page
        page.write_page(args.report, opened, queries, photo_paths, curve, args.count)
        report(f'Saved {args.report}.')


def open_export(args):
    """Return the `ExportedModel` of --exported. Raises InputError where it has no model card."""
    with quiet.tensorflow_import():
        from tripletreid.modeling import exported_model
    exported = exported_model.ExportedModel(args.exported, {})
    if not exported.has_card:
        raise InputError(f'{args.exported} has no model card, which freeze.py writes: give the .h5 file that embed.py '
                         f'--exported makes to evaluate.py instead.')
    return exported


def search(opened, name, emb, contents, count):
    """Search a `Gallery` with the embedding of one or several photos; return the `Query`."""
    from tripletreid.search.gallery import Query
    copies = opened.copies(emb, contents)
    found = opened.search(emb, count, copies)
    return Query(name, found, [opened.fid(row) for row in copies], opened.vote(found))


def measure_votes(opened, args, trained, model):
    """Measure the accuracy of the vote on --validation_set; print it at several thresholds, store it in the `Gallery`."""
    from tripletreid.search import votes
    if opened.names is None:
        raise InputError(f'{args.gallery} has no identities, so that nothing votes: give a csv file as --gallery.')
    embeddings, image_root, names = open_images(args.validation_set, index_of_photos(args, model), args, trained, model)
    if names is None:
        raise InputError(f'{args.validation_set} has no identities: give the csv file of its photos.')
    sets = []
    for path, pids, each, root in ((args.validation_set, names, embeddings, image_root),
                                   (args.gallery, opened.names, opened.embeddings, opened.image_root)):
        fids = list(each.fids)
        if not args.excluder:  # A photo is itself wherever the paths of its file start.
            fids = canonical_paths([os.path.join(os.path.realpath(root or ''), fid) for fid in fids])
        sets.append(Dataset(path, np.array(pids, object), np.array(fids, object)))
    retrieval = Retrieval(embeddings, sets[0], opened.embeddings, sets[1], exclusion.load(args.excluder or 'diagonal'),
                          opened.metric)
    photos = votes.labelled_photos(retrieval, args.count)
    measured = [votes.accuracy(photos, limit)
                for limit in dict.fromkeys([opened.threshold, None, *votes.thresholds(photos)])]
    name = os.path.basename(args.validation_set)
    opened.accuracy = votes.sentence(measured[0], f'photos of {name} with a known identity', args.count)
    for line in votes.table(measured):
        report(line)


def index_of_photos(args, model):
    """Return the path of the index of --validation_set, or None for the default one of the gallery.

    It is the gallery's index if both are one file. Else its name has a hash, because csv files in two folders may have the
    same name.
    """
    path = os.path.realpath(args.validation_set)
    if path == os.path.realpath(args.gallery):
        return args.index
    stem, ending = os.path.splitext(model.index_name(path))
    return f'{stem}_{zlib.crc32(os.fsencode(path)):08x}{ending}'


def print_results(queries, opened, count):
    """Print the results of each `Query`, and the accuracy of the votes."""
    from tripletreid.search import gallery
    for name, found, copies, vote in queries:
        for fid in copies:
            report(f'{name} is in the gallery as {fid}, which is skipped.')
        for line in (f'{name}: {gallery.verdict(found, opened.threshold, vote)}', *gallery.table(found)):
            report(line)
    if opened.names is not None:
        report(opened.vote_accuracy(count))


def check_flags(args, parser):
    """End through `parser.error` if flags do not fit together."""
    parser.check(args)
    if bool(args.experiment_root) == bool(args.exported):
        parser.error('name an --experiment_root or an --exported model, not both')
    if args.exported:
        argument_types.refuse_given(parser, ROOT_FLAGS, '--exported is one model that takes images of one size')
    if args.serve and args.photos:
        parser.error('--serve searches with the photos that are dropped on its page: give no PHOTO')
    if not args.serve and not args.photos:
        if not args.validation_set:
            parser.error('a photo to search with is missing: give a PHOTO, --validation_set or --serve')
        argument_types.refuse_given(parser, FILE_FLAGS, '--validation_set alone only prints the accuracy of the vote')
    if args.serve:
        argument_types.refuse_given(parser, FILE_FLAGS, '--serve shows its results on its page')
    else:
        argument_types.refuse_given(parser, PAGE_FLAGS, 'no page is served without --serve')
    if args.threshold is not None and args.threshold_from is not None:
        parser.error('--threshold and --threshold_from are two thresholds: give one')
    if args.threshold_from is not None and (args.fpr is None) == (args.far is None):
        parser.error('--threshold_from needs one rate, --fpr or --far')
    outputs = [os.path.realpath(path) for path in (args.filename, args.report, args.index) if path is not None]
    if len(set(outputs)) < len(outputs):
        parser.error('--filename, --report and --index are three files: give each a name of its own')


def check_gallery(args, parser):
    """Check that the gallery exists, and that no flag is given that has no effect on it."""
    if os.path.isdir(args.gallery):
        argument_types.refuse_given(parser, ['image_root'], 'the images are in the folder --gallery')
        argument_types.refuse_given(parser, ['validation_set'], 'the images of a folder have no identities that vote; give '
                                    'a csv file as --gallery')
        return
    if is_embedded(args.gallery):
        for path in in_order([args.gallery]):
            check_file(path, 'embedding file', '.h5')
        without_effect = INDEX_FLAGS[:1] if args.validation_set else INDEX_FLAGS
        argument_types.refuse_given(parser, without_effect, f'the images of {args.gallery} are embedded already')
    else:
        check_file(args.gallery, 'gallery', '.csv')
    if args.validation_set:
        check_file(args.validation_set, 'validation set', '.csv')


def check_outputs(args):
    """Check that --filename and --report can be written."""
    from tripletreid.search import gallery
    inputs = [*args.photos, args.gallery, args.threshold_from, args.validation_set]
    if args.filename is not None:
        check_output(args.filename, '--filename', 'a result of search.py', gallery.is_found, inputs)
    if args.report is not None:
        from tripletreid.search import page
        check_output(args.report, '--report', 'a page of search.py', page.is_page, inputs)


def is_embedded(path):
    """Check whether a gallery is given as an embedding file, or as a pattern of its shards."""
    return not os.path.isdir(path) and (path.endswith('.h5') or h5py.is_hdf5(path))


def threshold_and_curve(args, metric):
    """Return the threshold, or None; and the ROC points of the evaluation, a list, empty without an evaluation."""
    if args.threshold_from is None:
        return args.threshold, []
    curve = list(verification.operating_points(args.threshold_from, metric))
    if args.far is not None:
        point = verification.threshold_at_far(args.threshold_from, args.far, metric)
    else:
        point = verification.threshold_at(args.threshold_from, args.fpr, metric)
        curve.append(point)
    return point.threshold, sorted((each for each in curve if each.threshold is not None), key=lambda each: each.threshold)


def open_images(path, index_path, args, trained, model):
    """Open a gallery or labelled photos, and embed new and changed images.

    Args:
        path: folder, csv file or .h5 file.
        index_path: database of the embeddings; None: in the folder of the model.
        args, trained, model: of the command.

    Returns: open `Embeddings`; the folder of its images, or None; the identities of its rows [N], or None.
    """
    from tripletreid.search import image_files, index
    if is_embedded(path):
        embeddings = open_embedded(path, model)
        image_root = args.image_root or embeddings.parameters.get('image_root')
        return embeddings, image_root if isinstance(image_root, str) else None, names_of(embeddings)
    if os.path.isdir(path):
        files, warnings = image_files.in_folder(path, args.allow_outside_root)
    else:
        if args.exported and not args.image_root:
            raise InputError(f'--exported needs an --image_root for the images of {path}.')
        image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
        files, warnings = image_files.in_dataset(path, image_root, args.allow_outside_root), []
    index_path = index_path or model.index_name(path)
    check_output(index_path, '--index', 'an index of search.py', lambda path: True, [path, *args.photos])
    embeddings = index.up_to_date(index_path, files, model, report)
    if problems := embeddings.problems:
        first = min(problems)
        warnings.append(f'Images that cannot be read are skipped: {some(problems)}; {first}: {problems[first]}.')
    warnings += pictures.doubts_of_files(list(embeddings.fids), lambda fid: os.path.join(files.root, fid))
    for sentence in warnings:
        warn(sentence)
    names = None if files.pids is None else [files.pids[fid] for fid in embeddings.fids]
    return embeddings, files.root, names


def names_of(embeddings):
    """Return the identities of an embedding file's rows, by the csv file that it was made from; None if that is gone."""
    path = embeddings.parameters.get('dataset')
    if not (isinstance(path, str) and os.path.isfile(path)):
        return None
    try:
        dataset = load_dataset(path)
        embeddings.check_matches(dataset)
    except InputError as error:
        warn(f'The results have no names: {error}')
        return None
    return dataset.pids


def report(sentence):
    """Print a sentence in one line."""
    print(printable(sentence))


def warn(sentence):
    """Print a warning in one line on standard error."""
    print(f'Warning: {printable(sentence)}', file=sys.stderr)


def open_embedded(path, model):
    """Open a gallery's `Embeddings`, and check that they were made like the photos' embeddings."""
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
        raise InputError(f'{path} was made with {how} than the photos, which use {os.path.basename(model.checkpoint)}: '
                         f'give the flags with which it was embedded, or embed it again.')
    if 'checkpoint_sha256' not in embeddings.parameters:
        warn(f'{path} does not name its checkpoint. If it was not made by {model.checkpoint}, its distances to the photos '
             f'mean nothing.')
    return embeddings


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')
