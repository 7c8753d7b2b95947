"""Pictures of rankings, embeddings and training curves, and messages of visualize.py about wrong files."""
import base64
import io
import json
import shutil
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

import _evaluated
import visualize
from conftest import assert_one_sentence, run_main, run_script
from test_ranking import dense_reranking
from tripletreid import exclusion
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation.results import read_evaluation
from tripletreid.experiment import detailed_logs, event_files
from tripletreid.visualization import curves, embedding_plot, figures, html_page, rankings_plot, report, thumbnails
from tripletreid.visualization.ranked_lists import open_evaluation, ranked_lists

pytestmark = pytest.mark.long


@pytest.fixture(scope='module', autouse=True)
def bare_machine(tmp_path_factory):
    """Scripts run where TensorFlow cannot be imported and where there is no display.

    A t-SNE has one thread: its threads wait for one another by spinning, a minute long where other tests have the cores.
    """
    import sklearn.manifold  # noqa: F401  # Only threads of loaded libraries can be limited.
    from threadpoolctl import threadpool_limits
    folder = tmp_path_factory.mktemp('modules')
    (folder / 'tensorflow.py').write_text('raise AssertionError("nothing of this needs TensorFlow")')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(folder))
        patch.setenv('MPLBACKEND', 'TkAgg')
        patch.delenv('DISPLAY', raising=False)
        patch.setenv('OMP_NUM_THREADS', '1')
        with threadpool_limits(1, 'openmp'):
            yield


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with the evaluation `run` of 21 queries."""
    root = tmp_path_factory.mktemp('visualize')
    _evaluated.write_files(root)
    _evaluated.embed(root, 'run', 0.9)
    _evaluated.evaluate(root, 'run')
    return root


@pytest.fixture
def copy(root, tmp_path):
    """A copy of that folder, whose files may be spoilt; its evaluation and embeddings name the files of `root`."""
    shutil.copytree(root, tmp_path / 'copy')
    return tmp_path / 'copy'


def visualize_script(*arguments):
    return run_script('visualize.py', *arguments)


def visualize_main(*arguments):
    return run_main('visualize.py', *arguments)


def flags(folder):
    """The flags that name the files of a folder."""
    return ['--query_dataset', folder / 'query.csv', '--query_embeddings', folder / 'query_run.h5',
            '--gallery_dataset', folder / 'gallery.csv', '--gallery_embeddings', folder / 'gallery_run.h5',
            '--image_root', folder / 'images']


def opened(root, name='run.json'):
    names = ('query_dataset', 'query_embeddings', 'gallery_dataset', 'gallery_embeddings', 'image_root')
    args = types.SimpleNamespace(evaluation=root / name, allow_outside_root=False, **dict.fromkeys(names))
    return open_evaluation(args)


def lists_by_hand(root, query, gallery):
    embs = []
    for name in ('query', 'gallery'):
        with Embeddings(root / f'{name}_run.h5') as file:
            embs.append(file.rows(0, len(file)))
    return [_evaluated.ranked_by_hand(row, query.dataset, embs[0], gallery.dataset, embs[1])
            for row in range(len(query.dataset))]


# --- Rankings ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('top_k', [1, 10, 1000])
def test_ranked_lists(root, top_k):
    evaluation, query, gallery = opened(root)
    lists = ranked_lists(evaluation, query, gallery, np.arange(len(query.dataset)), top_k)
    for ranked, by_hand in zip(lists, lists_by_hand(root, query, gallery)):
        valid = [entry for entry in by_hand if entry[2] != 'excluded'][:top_k]
        assert [gallery.dataset.fids[entry.row] for entry in ranked if not entry.excluded] == [fid for fid, *_ in valid]
        excluded = [gallery.dataset.fids[entry.row] for entry in ranked if entry.excluded]
        last = valid[-1][1] if top_k < len(by_hand) else np.inf
        assert excluded == [fid for fid, distance, kind in by_hand if kind == 'excluded' and distance <= last][:2 * top_k]


def test_picture_of_lists(root):
    evaluation, query, gallery = opened(root)
    queries = np.array([3, 1])
    lists = ranked_lists(evaluation, query, gallery, queries, 10)
    figure, missing = rankings_plot.picture_of_lists(evaluation, query, gallery, queries, lists)
    axes = figure.axes[0]
    expected = []
    for row in queries:
        by_hand = lists_by_hand(root, query, gallery)[row]
        tenth = [entry for entry in by_hand if entry[2] != 'excluded'][9]
        expected.append((f'{query.dataset.pids[row]}\nAP {evaluation.ap[row]:.1%}', '#1c2127', '-'))
        rank = 0
        for fid, distance, kind in by_hand[:by_hand.index(tenth) + 1]:
            rank += kind != 'excluded'
            place, color, line = {'match': (f'✓ {rank}', '#1a7f37', '-'), 'miss': (f'✗ {rank}', '#c9252d', '--'),
                                  'excluded': ('excluded', '#8a929c', ':')}[kind]
            pid = fid.split('/')[1].split('_')[0]
            expected.append((f'{place}   {distance:.3f}\n{pid}', color, line))
    drawn = [(text.get_text(), text.get_color(), frame.get_linestyle())
             for text, frame in zip(axes.texts, axes.patches)]
    assert drawn == expected
    assert missing.fids == [] and missing.images == len(expected) == len(axes.images)
    # Excluded images are grey, others are not.
    for image, (_, _, line) in zip(axes.images, drawn):
        pixels = np.asarray(image.get_array())[..., :3]
        assert (np.ptp(pixels, axis=-1).max() == 0) == (line == ':')


def test_long_names_in_a_picture_of_lists(root):
    """Each caption stays in its column, and is the whole name or its two ends; a name of two lines is one."""
    evaluation, query, gallery = opened(root)
    queries = np.arange(10)
    lists = ranked_lists(evaluation, query, gallery, queries, 5)
    names = ['a-very-long-product-name-running-shoes-men-2024-size-42', 'W' * 80, 'i' * 16, 'two\nlines', '$x_1$' * 9]
    pids = dict(zip(sorted(set(gallery.dataset.pids) | set(query.dataset.pids)), names * 9))
    for dataset in (query.dataset, gallery.dataset):
        dataset.pids[:] = [pids[pid] for pid in dataset.pids]
    figure, _ = rankings_plot.picture_of_lists(evaluation, query, gallery, queries, lists)
    points = 72 / figure.dpi
    extents = [text.get_window_extent() for text in figure.axes[0].texts]
    assert max(extent.width for extent in extents) * points < rankings_plot.WIDTH + rankings_plot.GAP
    assert not any(one.overlaps(other) for one, other in zip(extents, extents[1:]))
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert all(text.count('\n') == 1 for text in drawn)
    captions = {line for text in drawn for line in text.split('\n')}
    assert {'i' * 16, 'two lines'} < captions
    for name in (names[0], names[1], names[4]):
        ends = [caption.split('…') for caption in captions if caption.startswith(name[:3])]
        assert ends and all(len(parts) == 2 and name.startswith(parts[0]) and name.endswith(parts[1]) and
                            0 <= len(parts[0]) - len(parts[1]) <= 1 for parts in ends)


def embeddings_of(root, name):
    with Embeddings(root / f'{name}_run.h5') as file:
        return file.rows(0, len(file))


@pytest.fixture(scope='module')
def protocols(root):
    """Return the distances [Q, G] of the evaluations `reranked` and `multi` by their definition."""
    queries, gallery = embeddings_of(root, 'query'), embeddings_of(root, 'gallery')
    _evaluated.evaluate(root, 'run', '--rerank', '--rerank_k1', 9, '--rerank_k2', 3, '--rerank_lambda', 0.4,
                        '--filename', root / 'reranked.json')
    # More images of the queries: they themselves and the gallery's.
    (root / 'more.csv').write_text((root / 'query.csv').read_text() + (root / 'gallery.csv').read_text())
    more, both = load_dataset(root / 'more.csv'), np.concatenate([queries, gallery])
    save_embeddings(root / 'more.h5', more, both)
    _evaluated.evaluate(root, 'run', '--multi_query_dataset', root / 'more.csv', '--multi_query_embeddings',
                        root / 'more.h5', '--filename', root / 'multi.json')
    person_and_camera = [fid.split('/')[1][:7] for fid in more.fids]
    means = [both[[other == key for other in person_and_camera]].mean(axis=0)
             for key in person_and_camera[:len(queries)]]
    return {'reranked': dense_reranking(queries, gallery, 'euclidean', 9, 3, 0.4),
            'multi': np.sqrt(np.square(np.stack(means)[:, None] - gallery).sum(axis=2))}


@pytest.mark.parametrize('name', ['reranked', 'multi'])
def test_lists_are_those_that_were_evaluated(root, protocols, name):
    evaluation, query, gallery = opened(root, f'{name}.json')
    lists = ranked_lists(evaluation, query, gallery, np.arange(len(query.dataset)), 8)
    ignored = exclusion.load('market1501')(gallery.dataset.fids)(query.dataset.fids)
    plain = ranked_lists(*opened(root), np.arange(len(query.dataset)), 8)
    assert [[entry.row for entry in ranked] for ranked in lists] != [[entry.row for entry in ranked] for ranked in plain]
    for q, ranked in enumerate(lists):
        shown = [entry for entry in ranked if not entry.excluded]
        valid = np.flatnonzero(~ignored[q])
        expected = valid[np.argsort(protocols[name][q, valid], kind='stable')]
        assert [entry.row for entry in shown] == expected[:8].tolist()
        assert [entry.distance for entry in ranked] == pytest.approx(
            [protocols[name][q, entry.row] for entry in ranked], abs=1e-6)
        hits = np.flatnonzero(gallery.dataset.pids[expected] == query.dataset.pids[q])
        assert evaluation.first[q] == hits[0] + 1 if len(hits) else np.isnan(evaluation.first[q])


def test_report_of_identities_held_out(root, tmp_path):
    """Lists are of the gallery that was evaluated, without these identities."""
    _evaluated.evaluate(root, 'run', '--verification', '--hold_out', 0.3, '--filename', root / 'held_out.json')
    results = json.loads((root / 'held_out.json').read_text())
    assert results['counts']['gallery'] < len(load_dataset(root / 'gallery.csv'))
    _, query, gallery = opened(root, 'held_out.json')
    held_out = {entry['pid'] for entry in results['queries'] if not entry['matches']}
    assert len(gallery.dataset) == results['counts']['gallery'] and not held_out & set(gallery.dataset.pids)
    process = visualize_script('report', root / 'held_out.json', '--compare', root / 'held_out.json', '--filename',
                               tmp_path / 'out.html')
    assert process.returncode == 0 and process.stderr == '', process.stderr


@pytest.mark.parametrize('name', ['reranked', 'multi'])
def test_report_of_another_protocol(root, protocols, tmp_path, name):
    evaluation, query, gallery = opened(root, f'{name}.json')
    evaluations = [evaluation, opened(root)[0]]
    page, _ = report.page_data(report.find(evaluations, query, gallery, 5, 0), evaluations, query, gallery,
                               tmp_path / 'page.html', True)
    assert {'reranked': 're-ranked with k1 9, k2 3 and λ 0.4', 'multi': 'multi-query with more.csv'}[name] in page['about']
    assert len(page['warnings']) == (name == 'reranked')  # The distances are not to be compared.
    distances = protocols[name]
    ignored = exclusion.load('market1501')(gallery.dataset.fids)(query.dataset.fids)
    same = (gallery.dataset.pids == query.dataset.pids[:, None]) & ~ignored
    run = page['runs'][0]
    for kind, mask in (('same', same), ('different', ~same & ~ignored)):
        expected = np.histogram(distances[mask], run['distances']['edges'])[0]
        assert abs(np.array(run['distances'][kind]) - expected).sum() <= 4  # Edges are rounded.
    for q, (ranked, further) in enumerate(zip(run['lists'], run['further'])):
        listed = {page['gallery']['fid'][number] for number, *_ in ranked}
        later = sorted((distances[q, row], fid) for row, fid in enumerate(gallery.dataset.fids)
                       if same[q, row] and fid not in listed)[:5]
        assert [page['gallery']['fid'][number] for number, _ in further] == [fid for _, fid in later]
    for command, suffix in (('report', 'html'), ('rankings', 'png')):
        process = visualize_script(command, root / f'{name}.json', '--filename', tmp_path / f'out.{suffix}')
        assert process.returncode == 0 and process.stderr == '', process.stderr


@pytest.mark.parametrize('choice', [['--choose', 'worst'], ['--choose', 'best'], ['--choose', 'random', '--seed', '3']])
def test_choice_of_queries(root, choice):
    evaluation, _, _ = opened(root)
    args = visualize.make_parser().parse_args(['rankings', str(root / 'run.json'), '--count', '5', *choice])
    chosen = visualize.choose_queries(evaluation, args)
    matched = [row for row in range(len(evaluation.fids)) if evaluation.matches[row]]
    aps = sorted((evaluation.ap[row] for row in matched), reverse=choice[1] == 'best')
    assert len(set(chosen)) == 5 and set(chosen) <= set(matched)
    if choice[1] != 'random':
        assert [evaluation.ap[row] for row in chosen] == aps[:5]


def test_rankings_script(root, tmp_path):
    fids = opened(root)[0].fids
    process = visualize_script('rankings', root / 'run.json', '--queries', fids[4], fids[0], '--show_excluded',
                               '--filename', tmp_path / 'lists.png')
    assert process.returncode == 0 and process.stderr == '', process.stderr
    with Image.open(tmp_path / 'lists.png') as picture:
        assert picture.height == 2 * 160 / 72 * 150 // 1
    unknown = visualize_script('rankings', root / 'run.json', '--queries', 'query/nobody.jpg')
    assert_one_sentence(unknown, 'query/nobody.jpg')


# --- Fonts ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def fonts(monkeypatch):
    """A function that leaves only some of matplotlib's own font families, and other font files to be found."""
    import matplotlib
    from matplotlib import font_manager
    monkeypatch.setitem(matplotlib.rcParams, 'font.family', ['sans-serif'])
    own = [entry for entry in font_manager.fontManager.ttflist if 'mpl-data' in entry.fname]

    def leave(*families, files=()):
        monkeypatch.setattr(font_manager.fontManager, 'ttflist', [entry for entry in own if entry.name in families])
        monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [str(file) for file in files])
        forget()

    def forget():
        figures._characters_of.cache_clear()
        font_manager.fontManager._findfont_cached.cache_clear()

    yield leave
    forget()


def only_in(family):
    """A letter for which a family of matplotlib's has a glyph, and its usual font none."""
    from matplotlib import font_manager
    usual, other = (font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[name])))
                    for name in ('DejaVu Sans', family))
    return next(char for char in map(chr, sorted(set(other.get_charmap()) - set(usual.get_charmap()))) if char.isalpha())


def pictured(name):
    """The pixels of a name as figures write it."""
    figure = figures.new_figure(1, 1, layout=None)
    figure.text(0.1, 0.4, name)
    figure.savefig(content := io.BytesIO())
    return np.asarray(Image.open(content))


@pytest.mark.filterwarnings('error')
def test_a_font_that_has_the_characters(fonts, tmp_path):
    import matplotlib
    from matplotlib import font_manager
    letter = only_in('STIXGeneral')
    fonts('DejaVu Sans')
    assert figures.use_fonts_for(['0012', letter, f'{letter}2', 'żółć']) == [letter, f'{letter}2']
    box = pictured(letter)
    fonts('DejaVu Sans', 'STIXGeneral')
    assert figures.use_fonts_for([letter]) == []
    assert matplotlib.rcParams['font.family'] == ['sans-serif', 'STIXGeneral']
    written = pictured(letter)
    assert not np.array_equal(written, box)
    # One that was installed after matplotlib listed the fonts.
    file = tmp_path / 'new.ttf'
    shutil.copy(font_manager.findfont(font_manager.FontProperties(family=['STIXGeneral'])), file)
    broken = tmp_path / 'broken.ttf'
    broken.write_bytes(b'none')
    fonts('DejaVu Sans', files=[broken, file])
    assert figures.use_fonts_for([letter]) == [] and np.array_equal(pictured(letter), written)
    # Without a need for another font there is none; a line's end needs no glyph.
    assert figures.use_fonts_for(['0012\n']) == [] and matplotlib.rcParams['font.family'] == ['sans-serif']


def test_characters_without_a_font_are_reported_once(root, copy, fonts, monkeypatch, capfd):
    letter = only_in('STIXGeneral')
    (copy / 'gallery.csv').write_text((copy / 'gallery.csv').read_text().replace('0012,', f'{letter}12,')
                                      .replace('0013,', f'{letter}13,'))
    fonts('DejaVu Sans')
    run = ['embeddings', copy / 'gallery_run.h5', '--dataset', copy / 'gallery.csv']
    monkeypatch.setattr('sys.argv', ['visualize.py', *map(str, run)])
    visualize.main()
    warning = capfd.readouterr().err
    assert warning.startswith(f'Warning: no installed font has all characters of {letter}12 and 1 more name,')
    assert warning.count('\n') == 1 and (copy / 'gallery_run.png').exists()


# --- Files that do not fit --------------------------------------------------------------------------------------------

def test_images_moved_away(copy, tmp_path):
    fids = load_dataset(copy / 'gallery.csv').fids
    gone = copy / 'images' / fids[0]
    gone.unlink()
    broken = copy / 'images' / fids[1]
    broken.write_bytes(broken.read_bytes()[:300])
    outside = copy / 'images' / fids[2]
    outside.rename(tmp_path / 'elsewhere.jpg')
    outside.symlink_to(tmp_path / 'elsewhere.jpg')
    queries = len(load_dataset(copy / 'query.csv'))
    # Each list is as long as the gallery, so that all images are shown.
    report = ['report', copy / 'run.json', *flags(copy), '--top_k', 1000]
    process = visualize_main(*report)
    assert process.returncode == 0
    assert process.stderr.startswith(f'Warning: 3 of {queries + len(fids)} images are missing, broken or outside of the '
                                     f'image root, the first of them {fids[0]}')
    process = visualize_main(*report, '--allow_outside_root')
    assert process.stderr.startswith('Warning: 2 of')
    process = visualize_main('rankings', copy / 'run.json', *flags(copy), '--image_root', tmp_path / 'nowhere')
    assert process.returncode == 0 and process.stderr.startswith('Warning: 88 of 88 images')


def test_a_folder_where_a_file_is_expected(root, copy):
    """The error says that it is a folder, and names the files in it that may be meant."""
    experiment = copy / 'images'
    for name in ('args.json', 'provenance.json', 'new.json', *(f'{i}.h5' for i in range(7))):
        (experiment / name).write_text('{}')
    for arguments, parts in (
            (['report', experiment], (f'{experiment} is an experiment root, not the expected evaluation file',
                                     'it holds new.json.')),
            (['rankings', copy / 'images' / 'query'], ('is a folder, not the expected evaluation file',
                                                       'it holds no .json file')),
            (['report', root / 'run.json', '--compare', experiment], ('is an experiment root', 'new.json')),
            (['embeddings', experiment], ('not the expected embedding file', 'it holds 0.h5, 1.h5, 2.h5, 3.h5, 4.h5, ….')),
            (['embeddings', root / 'query_run.h5', '--dataset', copy],
             (f'{copy} is a folder', 'the csv file of a dataset is expected')),
            (['curves', root / 'run.json'], ('run.json is a file, not an experiment root',))):
        assert_one_sentence(visualize_main(*arguments), *parts)


def test_evaluation_of_other_files(root, copy):
    swapped = ['--query_embeddings', copy / 'gallery_run.h5']
    assert_one_sentence(visualize_main('report', copy / 'run.json', *swapped), 'gallery_run.h5', 'rows')
    queries = load_dataset(root / 'query.csv')
    save_embeddings(copy / 'fewer.h5', queries.take(slice(1, None)), np.zeros((len(queries) - 1, 8)))
    (copy / 'fewer.csv').write_text(''.join((copy / 'query.csv').read_text().splitlines(keepends=True)[1:]))
    fewer = ['--query_dataset', copy / 'fewer.csv', '--query_embeddings', copy / 'fewer.h5', *flags(root)[-2:]]
    assert_one_sentence(visualize_main('report', copy / 'run.json', *fewer), 'run.json', 'other queries', 'fewer.csv')
    # The same images, embedded in another way.
    evaluation = json.loads((copy / 'run.json').read_text())
    evaluation['embedding_parameters']['gallery']['mixed_precision'] = 'bfloat16'
    (copy / 'other.json').write_text(json.dumps(evaluation))
    other = visualize_main('rankings', copy / 'other.json', *flags(root))
    assert_one_sentence(other, 'other.json', str(root / 'gallery_run.h5'), 'mixed_precision was bfloat16 and is none')
    # The same images, embedded by another model.
    _evaluated.embed(copy, 'run', 0.9, seed=1)
    other = visualize_main('rankings', copy / 'run.json', *flags(copy))
    assert_one_sentence(other, 'run.json', str(copy / 'query_run.h5'), 'Evaluate again')


def test_evaluations_that_cannot_be_compared(root, copy):
    for parameter, value, part in (('use_market_ap', True, '--use_market_ap'), ('excluder', 'mars', '--excluder mars')):
        other = dict(json.loads((root / 'run.json').read_text()))
        other['parameters'][parameter] = value
        (copy / 'other.json').write_text(json.dumps(other))
        process = visualize_main('report', root / 'run.json', '--compare', copy / 'other.json')
        assert_one_sentence(process, 'other.json', part)


def test_evaluation_of_another_gallery(root, copy):
    """By its number of images in files that are older than the hash, and in any case by that."""
    content = json.loads((root / 'run.json').read_text())
    lines = (root / 'gallery.csv').read_text().splitlines()
    assert content['counts']['gallery'] == len(lines)
    hashed, older = dict(content, gallery_hash='0' * 64), dict(content, counts={**content['counts'], 'gallery': 7})
    del older['gallery_hash']
    for other in (hashed, older):
        (copy / 'other.json').write_text(json.dumps(other))
        for arguments in ([copy / 'other.json'], [root / 'run.json', '--compare', copy / 'other.json']):
            assert_one_sentence(visualize_main('report', *arguments, '--filename', copy / 'page.html'), 'other.json',
                                'gallery.csv', 'another gallery')
    del older['counts']['gallery']
    (copy / 'other.json').write_text(json.dumps(older))
    assert visualize_main('rankings', copy / 'other.json').returncode == 0


def test_report_without_intervals(root, tmp_path):
    content = json.loads((root / 'run.json').read_text())
    content['confidence'].update(mAP=None, top1=None)
    (tmp_path / 'run.json').write_text(json.dumps(content))
    assert visualize_main('report', tmp_path / 'run.json').returncode == 0
    assert (tmp_path / 'run.html').read_text().count('too few identities for an interval') == 1


@pytest.mark.parametrize('parameters, part', [
    ({'rerank': True, 'rerank_k1': 0}, 'rerank_k1 is 0'), ({'rerank': True, 'rerank_k2': '6'}, "rerank_k2 is '6'"),
    ({'rerank': True, 'rerank_lambda': 7}, '7 is not a number from 0 to 1'), ({'rerank': True}, 'other ranks'),
    ({'multi_query_dataset': 'more.csv'}, 'multi_query_embeddings is None'),
    ({'multi_query_dataset': 'gone.csv', 'multi_query_embeddings': 'gone.h5'}, 'gone.h5, which is not there'),
])
def test_parameters_that_evaluate_cannot_have_had(root, tmp_path, parameters, part):
    evaluation = json.loads((root / 'run.json').read_text())
    evaluation['parameters'].update(parameters)
    (tmp_path / 'run.json').write_text(json.dumps(evaluation))
    assert_one_sentence(visualize_main('report', tmp_path / 'run.json'), 'run.json', part)


def test_collapsed_embeddings(tmp_path):
    """All images in one point: every rank is a tie, and the lists still equal the evaluation's."""
    _evaluated.write_files(tmp_path)
    for name in ('query', 'gallery'):
        dataset = load_dataset(tmp_path / f'{name}.csv')
        save_embeddings(tmp_path / f'{name}_flat.h5', dataset, np.zeros((len(dataset), 3)),
                        {'image_root': str(tmp_path / 'images')})
    _evaluated.evaluate(tmp_path, 'flat')
    process = visualize_main('report', tmp_path / 'flat.json')
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize('content, part', [
    ('', 'not valid JSON'), ('{"mAP": 1', 'not valid JSON'), ('[' * 100000, 'not valid JSON'), ('7', 'not an evaluation'),
    ('{"mAP": 0.5, "CMC": [0.5], "aps": [0.5]}', 'original'), ('{"queries": [], "parameters": {}}', 'not an evaluation'),
])
def test_no_evaluation(tmp_path, content, part):
    (tmp_path / 'run.json').write_text(content)
    with pytest.raises(InputError, match=f'run.json .*{part}'):
        read_evaluation(tmp_path / 'run.json')


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_any_change_of_an_evaluation_is_read_or_refused(root, tmp_path, data):
    content = json.loads((root / 'run.json').read_text())
    place = content
    while isinstance(place, (dict, list)) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    (tmp_path / 'changed.json').write_text(json.dumps(content))
    try:
        evaluation = read_evaluation(tmp_path / 'changed.json')
    except InputError:
        return
    json.dumps(evaluation.numbers, allow_nan=False)
    assert evaluation.parameters['metric'] == 'euclidean'  # No other one is drawn that exists.
    assert len(evaluation.fids) == len(evaluation.ap) == len(evaluation.matches)


def test_size_of_a_report_is_estimated_before_its_pictures(root, tmp_path, monkeypatch, capsys):
    def run(*flags):
        arguments = ['report', root / 'run.json', '--filename', page, *flags]
        monkeypatch.setattr('sys.argv', ['visualize.py', *map(str, arguments)])
        visualize.main()
        return capsys.readouterr()

    page = tmp_path / 'page.html'
    assert 'MB of pictures' not in run().out
    data = json.loads(page.read_text(encoding='utf-8').split('id="data">')[1].split('</script>')[0])
    size = sum(map(len, data['images'])) / 1e6
    page.unlink()
    monkeypatch.setattr(html_page, 'MOST_MEGABYTES', size * 0.99)
    with pytest.raises(InputError, match=f'about {size:.0f} MB of pictures.* --link_images'):
        run()
    assert list(tmp_path.iterdir()) == []
    assert 'MB of pictures' not in run('--link_images').out
    monkeypatch.setattr(html_page, 'MOST_MEGABYTES', size * 1.01)
    monkeypatch.setattr(html_page, 'NOTED_MEGABYTES', size * 0.99)
    assert run().out.startswith(f'The page will hold about {size:.0f} MB of pictures; with --link_images')


def test_estimate_of_many_pictures(tmp_path):
    """It reads a sample only and is still right; a missing picture counts 0 bytes."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(300):
        image = random.integers(0, 256, (64, 32, 3), np.uint8) // np.uint8(random.integers(1, 9))
        paths.append(str(tmp_path / f'{number}.jpg') if number % 5 else None)
        Image.fromarray(image).save(tmp_path / f'{number}.jpg')
    found = report.Found([], [], [], [], paths)
    small = [picture for picture in report.thumbnails(list(filter(None, paths)), 128, 160)]
    exact = sum(len(report.data_address(picture)) for picture in small)
    assert report.estimated_bytes(found) == pytest.approx(exact, rel=0.15)
    assert report.estimated_bytes(report.Found([], [], [], [], [None, None])) == 0


def test_pictures_that_a_browser_would_turn_are_not_linked(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [str(tmp_path / 'a folder' / f'{number}#.jpg') for number in range(2)]
    (tmp_path / 'a folder').mkdir()
    for path, tags in zip(paths, ({}, {'exif': exif})):
        Image.fromarray(pixels).save(path, **tags)
    link, nothing, shown = thumbnails.linked([paths[0], None, paths[1]], 60, 60, tmp_path / 'page.html')
    assert (link, nothing) == ('a%20folder/0%23.jpg', None)
    seen = Image.open(io.BytesIO(base64.b64decode(shown.partition('base64,')[2])))
    assert seen.size == (60, 20) and not seen.getexif()
    assert np.abs(np.asarray(seen, int) - pixels).max() < 20


def test_names_of_files_to_write(root, tmp_path):
    assert_one_sentence(visualize_main('rankings', root / 'run.json', '--filename', 'lists.doc'), 'lists.doc', '.png')
    nowhere = tmp_path / 'nowhere' / 'page.html'
    assert_one_sentence(visualize_main('report', root / 'run.json', '--filename', nowhere), 'there is no folder')
    assert list(tmp_path.iterdir()) == []


# --- Embeddings -------------------------------------------------------------------------------------------------------

def test_two_dimensions_stay_as_they_are():
    emb = np.random.default_rng(0).normal(size=(30, 2))
    points, how = embedding_plot.in_two_dimensions(emb, 'tsne', 0)
    pids = np.array([f'p{i % 3}' for i in range(30)], object)
    axes = embedding_plot.scatter_plot(points, pids, how).axes[0]
    assert [text.get_text() for text in axes.texts] == ['p0', 'p1', 'p2']
    for i, collection in enumerate(axes.collections):
        assert np.array_equal(collection.get_offsets(), emb[i::3])
    assert len({tuple(collection.get_facecolor()[0]) for collection in axes.collections}) == 3


def test_names_of_a_scatter_plot():
    """A legend lists all names if they are few, shortened; only short names are drawn among their points."""
    long = 'a-very-long-product-name-running-shoes-men-black-2024-size-42'
    points = np.random.default_rng(0).normal(size=(40, 2))
    for names, written in ((['1', '_2', '0345'], True), (['1', '_2', long], False), (list(map(str, range(31))), False)):
        figure = embedding_plot.scatter_plot(points, np.resize(np.array(names, object), 40), 'points')
        assert bool(figure.axes[0].texts) == written
        if len(names) > embedding_plot.MOST_NAMED:
            assert not figure.legends
            continue
        figure.draw_without_rendering()
        legend, = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        for text, name in zip(texts, sorted(names), strict=True):
            head, *tail = text.split('…')
            assert text == name or name == long and name.startswith(head) and name.endswith(tail[0]) and len(head) > 9
        colors = [handle.get_facecolor()[0].tolist() for handle in legend.legend_handles]
        assert colors == [cloud.get_facecolor()[0].tolist() for cloud in figure.axes[0].collections]
        box = legend.get_window_extent()
        assert box.x0 > figure.axes[0].get_window_extent().x1 and box.x1 <= figure.bbox.x1


@pytest.mark.filterwarnings('error')
def test_projections():
    random = np.random.default_rng(0)
    emb = random.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + 10
    points, how = embedding_plot.in_two_dimensions(emb, 'pca', 0)
    centred = emb - emb.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(u[:, :2] * s[:2]))
    assert how == f'PCA, {(s[:2] ** 2).sum() / (s ** 2).sum():.0%} of the variance'
    # t-SNE keeps two far groups apart, also where there are fewer images than its usual perplexity.
    emb[:20] += 100
    points, _ = embedding_plot.in_two_dimensions(emb, 'tsne', 0)
    within = max(np.ptp(points[:20], axis=0).max(), np.ptp(points[20:], axis=0).max())
    assert np.linalg.norm(points[:20].mean(axis=0) - points[20:].mean(axis=0)) > within / 2
    points, how = embedding_plot.in_two_dimensions(np.ones((9, 4)), 'tsne', 0)
    assert np.array_equal(points, np.zeros((9, 2))) and how == 'all in one point'
    for shape in ((1, 6), (4, 1)):
        with pytest.raises(InputError):
            embedding_plot.in_two_dimensions(np.zeros(shape), 'pca', 0)


def test_some_identities():
    pids = np.array([str(i // 3) for i in range(30)], object)
    rows = embedding_plot.rows_of_identities(pids, 4, seed=0)
    assert len(rows) == 12 and len(set(pids[rows])) == 4 and (np.diff(rows) > 0).all()
    assert len(embedding_plot.rows_of_identities(pids, 0, seed=0)) == 30
    assert len(embedding_plot.rows_of_identities(pids, 99, seed=0)) == 30


def test_projector(root, tmp_path):
    """TensorBoard's projector finds the vectors; names and thumbnails belong to their rows."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
    folder = tmp_path / 'projector'
    process = visualize_script('embeddings', root / 'gallery_run.h5', '--projector', folder, '--identities', '7',
                               '--filename', tmp_path / 'points.png')
    assert process.returncode == 0 and process.stderr == '', process.stderr
    config = text_format.Parse((folder / 'projector_config.pbtxt').read_text(), ProjectorConfig()).embeddings[0]
    header, *names = [line.split('\t') for line in (folder / config.metadata_path).read_text().splitlines()]
    assert header == ['identity', 'file'] and len({pid for pid, _ in names}) == 7
    dataset = load_dataset(root / 'gallery.csv')
    rows = [dataset.fids.tolist().index(fid) for _, fid in names]
    with Embeddings(root / 'gallery_run.h5') as embeddings:
        emb = embeddings.rows(0, len(dataset))[rows]
    assert np.allclose(np.loadtxt(folder / config.tensor_path, delimiter='\t'), emb, rtol=1e-6)
    sprite = np.asarray(Image.open(folder / config.sprite.image_path))
    width, height = config.sprite.single_image_dim
    columns = sprite.shape[1] // width
    assert sprite.shape[1] == sprite.shape[0] and columns == np.ceil(np.sqrt(len(rows)))
    for i, (_, fid) in enumerate(names):
        top, left = i // columns * height, i % columns * width
        image = np.asarray(Image.open(root / 'images' / fid))
        margin = (width - image.shape[1]) // 2
        assert np.array_equal(sprite[top:top + height, left + margin:left + width - margin, :3], image)


def test_a_name_with_a_tab_stays_one_cell(tmp_path):
    dataset = Dataset('x.csv', np.array(['a\tb'], object), np.array(['c\nd.jpg'], object))
    missing = embedding_plot.write_projector(tmp_path, np.zeros((1, 3)), dataset, [None])
    assert (tmp_path / 'names.tsv').read_text() == 'identity\tfile\na b\tc d.jpg\n'
    assert missing == (['c\nd.jpg'], 1)


def test_embeddings_of_the_original(root, tmp_path):
    """They do not say which csv file and image root they belong to."""
    import h5py
    with h5py.File(tmp_path / 'old.h5', 'w') as file:
        file['emb'] = np.random.default_rng(0).normal(size=(21, 4)).astype(np.float32)
    assert_one_sentence(visualize_main('embeddings', tmp_path / 'old.h5'), 'old.h5', '--dataset')
    process = visualize_script('embeddings', tmp_path / 'old.h5', '--dataset', root / 'query.csv')
    assert process.returncode == 0 and (tmp_path / 'old.png').exists(), process.stderr


# --- Training curves --------------------------------------------------------------------------------------------------

LOG_LINE = ('2026-01-31 12:34:56,789 [INFO] train: iter:{:6d}, loss min|avg|max: 0.123|{:.3f}| 1.234, '
            'batch-p@3: {:.2f}%, ETA: 1:23:45 (0.12s/it)\n')


def write_events(root, scalars, resumed_at=None):
    """Write an event file with the scalars {tag: {step: value}}, by TensorBoard's own writer; returns its path."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    before = set(root.glob('*tfevents*'))
    writer = EventFileWriter(str(root), filename_suffix=f'.{len(before)}')
    if resumed_at:
        writer.add_event(Event(step=resumed_at, session_log=SessionLog(status=SessionLog.START)))
    for tag, values in scalars.items():
        for step, value in values.items():
            writer.add_event(Event(step=step, summary=scalar_pb(tag, np.float32(value))))
            writer.add_event(Event(step=step, summary=histogram_pb(f'{tag}_distribution', np.arange(9))))
    writer.close()
    path, = set(root.glob('*tfevents*')) - before
    return path


def test_scalars_of_events(tmp_path):
    (tmp_path / 'train.log').write_text(LOG_LINE.format(1, 9, 9))
    write_events(tmp_path, {'loss': {1: 0.5, 2: 0.25, 3: 9, 4: 9}, 'learning_rate': {1: 0.125}})
    assert event_files.read_scalars(tmp_path) == {'loss': {1: 0.5, 2: 0.25, 3: 9, 4: 9}, 'learning_rate': {1: 0.125}}
    # Resumed at step 3: steps 3 and 4 of the first part did not become part of the run.
    write_events(tmp_path, {'loss': {3: 0.125}}, resumed_at=3)
    assert event_files.read_scalars(tmp_path)['loss'] == {1: 0.5, 2: 0.25, 3: 0.125}


def test_scalars_of_tensorflow1_events(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    writer = EventFileWriter(str(tmp_path))
    writer.add_event(Event(step=7, summary=Summary(value=[Summary.Value(tag='loss', simple_value=0.5)])))
    writer.close()
    assert event_files.read_scalars(tmp_path) == {'loss': {7: 0.5}}


def test_event_file_cut_anywhere(tmp_path):
    """A run may be active, or have been killed: complete records are read, and the rest is no error."""
    path = write_events(tmp_path, {'loss': {step: step / 8 for step in range(1, 9)}})
    whole = path.read_bytes()
    counts = []
    for size in range(len(whole) - 1, -1, -7):
        path.write_bytes(whole[:size])
        try:
            scalars = event_files.read_scalars(tmp_path)['loss']
        except InputError:
            scalars = {}
        assert scalars == {step: step / 8 for step in range(1, len(scalars) + 1)}
        counts.append(len(scalars))
    assert counts == sorted(counts, reverse=True) and counts[0] == 8 and counts[-1] == 0
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(InputError):
        event_files.read_scalars(tmp_path)


def test_scalars_of_a_log(tmp_path):
    (tmp_path / 'train.log').write_text('2026-01-31 12:34:56,789 [INFO] train: Starting.\n'
                                        + ''.join(LOG_LINE.format(step, step / 8, step) for step in (1, 2, 3)))
    assert event_files.read_scalars(tmp_path) == {
        'loss': {1: 0.125, 2: 0.25, 3: 0.375}, 'batch_prec_at_3': {1: 0.01, 2: 0.02, 3: 0.03},
        'secs_per_iter': {1: 0.12, 2: 0.12, 3: 0.12}}


def write_detailed_logs(root, losses, iterations):
    """Write the losses of the iterations that were run, and zeros for the others."""
    done, batch = losses.shape
    all_losses, fids = np.zeros((iterations, batch), np.float32), np.zeros((iterations, batch), 'S8')
    all_losses[:done], fids[:done] = losses, b'a.jpg'
    np.save(root / 'log_losses.npy', all_losses)
    np.save(root / 'log_fids.npy', fids)


def test_loss_quantiles(tmp_path):
    assert detailed_logs.read_loss_quantiles(tmp_path) is None
    losses = np.random.default_rng(0).gamma(1, size=(50, 12)).astype(np.float32)
    losses[20:] = 0  # No loss is active from here on; these iterations were run all the same.
    write_detailed_logs(tmp_path, losses, 80)
    steps, quantiles = detailed_logs.read_loss_quantiles(tmp_path)
    assert steps.tolist() == list(range(1, 51))
    for row, expected in zip(quantiles, losses):
        assert np.allclose(row, [np.quantile(expected, q) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)])
    steps, quantiles = detailed_logs.read_loss_quantiles(tmp_path, bins=7)
    assert len(steps) == 7 and steps[-1] == 50
    assert np.allclose(quantiles[0], np.quantile(losses[:steps[0]], detailed_logs.QUANTILES))


def test_losses_below_zero(tmp_path):
    """As without a margin."""
    line = 'iter:     7, loss min|avg|max: -0.512|-0.123| 0.300, batch-p@3: 90.00%, ETA: 0:00:01 (0.12s/it)\n'
    (tmp_path / 'train.log').write_text(line)
    assert event_files.read_scalars(tmp_path)['loss'] == {7: -0.123}


def test_loss_quantiles_of_a_part_and_of_tracklets(tmp_path):
    """A run that the original began has its first iterations elsewhere; with tracklets there are more files."""
    losses = np.random.default_rng(0).gamma(1, size=(80, 12)).astype(np.float32)
    fids = np.full((80, 36), b'a.jpg')
    fids[:30] = b''
    np.save(tmp_path / 'log_losses.npy', losses)
    np.save(tmp_path / 'log_fids.npy', fids)
    steps, quantiles = detailed_logs.read_loss_quantiles(tmp_path)
    assert steps.tolist() == list(range(31, 81))
    assert np.allclose(quantiles[0], np.quantile(losses[30], detailed_logs.QUANTILES))


def test_curves_script(tmp_path):
    runs = [tmp_path / name for name in ('with $igns', 'from_log')]
    for run in runs:
        run.mkdir()
    steps = range(1, 301)
    write_events(runs[0], {'loss': {step: 1 / step for step in steps}, 'learning_rate': {1: 1e-3, 300: 1e-6}})
    write_detailed_logs(runs[0], np.ones((300, 4)), 400)
    (runs[1] / 'train.log').write_text(''.join(LOG_LINE.format(step, 2 / step, 50) for step in steps))
    process = visualize_script('curves', *runs)
    assert process.returncode == 0 and process.stderr == '', process.stderr
    assert process.stdout.startswith('4 scalars of 2 run(s)')
    assert Image.open(runs[0] / 'curves.png').width == 1800
    assert_one_sentence(visualize_main('curves', runs[0], tmp_path / 'nowhere'), 'nowhere')
    (tmp_path / 'empty').mkdir()
    assert_one_sentence(visualize_main('curves', tmp_path / 'empty'), 'empty', 'no training curves')
    (runs[0] / 'log_fids.npy').write_bytes(b'\x93NUMPY')
    assert_one_sentence(visualize_main('curves', runs[0]), 'log_fids.npy')


def test_a_single_value_is_a_point():
    """As of a run with one validation; a line through one point would not be seen."""
    from matplotlib.figure import Figure
    style = {'color': 'C0', 'linestyle': '-'}
    for values, points in (({100: 0.5}, 1), ({50: 0.25, 100: 0.5}, 0)):
        panel = Figure().subplots()
        curves.draw_scalar(panel, values, style, None)
        assert [line.get_marker() for line in panel.lines].count('o') == points
    panel = Figure().subplots()
    curves.draw_quantiles(panel, np.array([1]), np.ones((1, 7)))
    assert panel.lines[0].get_marker() == 'o'


def test_smoothing():
    from matplotlib.figure import Figure
    panel = Figure().subplots()
    y = np.random.default_rng(0).normal(size=20)
    curves.draw_scalar(panel, dict(enumerate(y, 1)), {'color': 'C0', 'linestyle': '-'}, 5)
    raw, smooth = panel.lines
    assert np.array_equal(raw.get_ydata(), y)
    assert np.allclose(smooth.get_ydata(), [y[i:i + 5].mean() for i in range(16)])
    assert smooth.get_xdata().tolist() == list(range(3, 19))  # The middles of the windows.
    curves.draw_scalar(panel, {}, {'color': 'C0', 'linestyle': '-'}, None)
