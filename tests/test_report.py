"""The report in a browser, with mouse and keyboard."""
import base64
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import _evaluated
from _browser import new_page
from conftest import run_script
from tripletreid.dataset import load_dataset
from tripletreid.dataset_writer import save_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import save_embeddings


@pytest.fixture
def look(browser):
    """A function that opens a page; at the end of the test none of them has logged an error or opened a dialog."""
    complaints, pages = [], []

    def open_page(path, width=1280, address=''):
        page = new_page(browser, viewport={'width': width, 'height': 900})
        page.on('console', lambda message: complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('dialog', lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri() + address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with the evaluations `new` and `old`, and new.html, linked.html and compared.html."""
    root = tmp_path_factory.mktemp('report')
    _evaluated.write_files(root)
    for run, noise, seed in (('new', 0.9, 0), ('old', 1.1, 1)):
        _evaluated.embed(root, run, noise, seed=seed)
        _evaluated.evaluate(root, run)
    for flags in ([], ['--link_images', '--filename', root / 'linked.html'],
                  ['--compare', root / 'old.json', '--filename', root / 'compared.html']):
        process = run_script('visualize.py', 'report', root / 'new.json', *flags)
        assert process.returncode == 0 and process.stderr == '', process.stderr
    return root


LONG = 'a-very-long_product_name_' + 'without_a_blank' * 6 + '_and-its-end'
NAMES = ['1', '10', '12', '21', LONG, '鞋子-红色-运动鞋', '한국어 신발 이름', 'حذاء-رياضي-أحمر' * 3,
         '<b>bold<img src=x onerror=alert(1)>']


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    """A folder with named.html, whose identities have the NAMES; files of the long one have long names too. The first
    image of the queries is wide."""
    root = tmp_path_factory.mktemp('named')
    _evaluated.write_files(root)
    pids = load_dataset(root / 'gallery.csv').pids
    name_of_pid = dict(zip([pid for pid in sorted(set(pids)) if pid != '-1'], NAMES))
    for name in ('query', 'gallery'):
        dataset = load_dataset(root / f'{name}.csv')
        for row, (pid, fid) in enumerate(zip(dataset.pids, dataset.fids)):
            if name_of_pid.get(pid) == LONG:
                dataset.fids[row] = fid.replace('.jpg', '_as_a_camera_names_it' * 3 + '.jpg')
                (root / 'images' / fid).rename(root / 'images' / dataset.fids[row])
            dataset.pids[row] = name_of_pid.get(pid, pid)
        save_dataset(root / f'{name}.csv', dataset)
    Image.new('RGB', (90, 40), 'teal').save(root / 'images' / load_dataset(root / 'query.csv').fids[0])
    _evaluated.embed(root, 'named', 0.9)
    _evaluated.evaluate(root, 'named')
    process = run_script('visualize.py', 'report', root / 'named.json')
    assert process.returncode == 0 and process.stderr == '', process.stderr
    return root


def results(root, run='new'):
    return json.loads((root / f'{run}.json').read_text())['queries']


def lists_by_hand(root, run='new'):
    """{query's file id: its whole ranked list}, by the definition."""
    sets = [load_dataset(root / f'{name}.csv') for name in ('query', 'gallery')]
    embs = []
    for name, dataset in zip(('query', 'gallery'), sets):
        with Embeddings(root / f'{name}_{run}.h5') as file:
            embs.append(file.rows(0, len(dataset)))
    return {fid: _evaluated.ranked_by_hand(row, sets[0], embs[0], sets[1], embs[1])
            for row, fid in enumerate(sets[0].fids)}


def rows(page):
    """File ids of the listed queries; the list of the tests is short enough to be drawn as a whole."""
    page.set_viewport_size({'width': 1280, 'height': 4000})
    # The browser reports its new size to a page just before it draws the next frame.
    page.wait_for_function('() => innerHeight === 4000')
    page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
    return page.locator('.row .name').evaluate_all('all => all.map(one => one.title)')


def row_of(page, fid):
    return page.locator('.row').filter(has=page.locator(f'.name[title="{fid}"]'))


def shown_list(page, number=0):
    """[(file name, kind, distance as shown)] of a ranked list on the page."""
    entries = page.locator('.ranked').nth(number).locator('li')
    return [(entry.locator('.name').get_attribute('title'), entry.get_attribute('class'),
             entry.locator('p span').inner_text()) for entry in entries.all()]


def as_shown(ranked, kinds=('match', 'miss')):
    return [(fid, kind, f'{distance:.3f}') for fid, distance, kind in ranked if kind in kinds]


def test_numbers_are_those_of_the_evaluation(root, look):
    evaluation = json.loads((root / 'new.json').read_text())
    page = look(root / 'new.html')
    assert page.title() == f'{root.name}/new'
    numbers = dict(zip(page.locator('#numbers dt').all_inner_texts(), page.locator('#numbers dd').all_inner_texts()))
    assert list(numbers) == ['mAP', 'mINP', 'rank-1', 'rank-5', 'rank-10', 'rank-20']
    assert numbers['mAP'].startswith(f'{evaluation["mAP"]:.1%}')
    assert numbers['rank-5'].startswith(f'{evaluation["CMC"][4]:.1%}')
    assert numbers['mINP'].startswith(f'{evaluation["mINP"]:.1%}')
    assert page.locator('.chart h2').all_inner_texts() == ['CMC', 'AP of the queries', 'Distances',
                                                               'Wrong first results by cameras']


def test_queries_are_sorted(root, look):
    page = look(root / 'new.html')
    queries = results(root)
    matched = [query for query in queries if query['matches']]
    unmatched = [query['fid'] for query in queries if not query['matches']]
    assert len(unmatched) == 1

    def by(key):
        return [query['fid'] for query in sorted(matched, key=key)] + unmatched

    assert rows(page) == by(lambda query: query['ap'])
    for choice, key in (('best AP first', lambda query: -query['ap']),
                        ('latest first match', lambda query: -query['first_match_rank'])):
        page.select_option('#sort', choice)
        assert rows(page) == by(key)
    page.select_option('#sort', 'camera')
    assert rows(page) == [query['fid'] for query in sorted(queries, key=lambda query: query['fid'].split('_c')[1][0])]
    page.select_option('#sort', 'file order')
    assert rows(page) == [query['fid'] for query in queries]


def test_queries_are_filtered(root, look):
    page = look(root / 'new.html')
    page.select_option('#sort', 'file order')
    fids = [query['fid'] for query in results(root)]
    page.fill('#identity', '0012')
    assert rows(page) == [fid for fid in fids if '/0012_' in fid] and len(rows(page)) == 2
    assert page.locator('#count').inner_text() == f'2 of {len(fids)} queries'
    page.fill('#identity', '')
    page.select_option('#camera', '2')
    assert rows(page) == [fid for fid in fids if '_c2s1' in fid]
    page.fill('#file', '_000000_00')
    page.select_option('#show', 'first result wrong')
    wrong = [query['fid'] for query in results(root) if query['matches'] and query['first_match_rank'] > 1]
    assert wrong and rows(page) == [fid for fid in wrong if '_c2s1' in fid]
    page.fill('#identity', 'nobody')
    assert rows(page) == []
    assert page.get_by_text('No query fits the filter.').is_visible()


def test_errors_by_pairs_of_cameras(root, look):
    """A cell counts by the definition, and a click shows its wrong queries."""
    page = look(root / 'new.html')
    wrong, counts = {}, {}
    for fid, ranked in lists_by_hand(root).items():
        nearest, _, kind = next(entry for entry in ranked if entry[2] != 'excluded')
        if not any(entry[2] == 'match' for entry in ranked):
            continue
        pair = tuple(each.split('_c')[1][0] for each in (fid, nearest))
        counts[pair] = counts.get(pair, 0) + 1
        wrong.setdefault(pair, set()).update([fid] if kind == 'miss' else [])
    shown = page.locator('#pairs button').evaluate_all('all => all.map(one => [one.title, one.textContent])')
    assert len(shown) == len(counts) > 1
    for (query, nearest), count in counts.items():
        title = (f'{len(wrong[query, nearest])} of {count} queries of camera {query} whose nearest image is of camera '
                 f'{nearest} are wrong')
        assert [title, str(len(wrong[query, nearest]))] in shown
    pair = max(wrong, key=lambda pair: len(wrong[pair]))
    page.locator(f'#pairs button[title*="of camera {pair[0]} whose nearest image is of camera {pair[1]} "]').click()
    assert wrong[pair] and set(rows(page)) == wrong[pair]


def test_an_identity_in_full_or_a_part(named, look):
    page = look(named / 'named.html')
    dataset = load_dataset(named / 'query.csv')

    def shown(typed):
        page.fill('#identity', typed)
        fids = dataset.fids.tolist()
        return {dataset.pids[fids.index(fid)] for fid in rows(page)}

    assert shown('1') == {'1'} and shown('12') == {'12'} and shown(' 10 ') == {'10'}
    assert shown('2') == {pid for pid in dataset.pids if '2' in pid} > {'12', '21'}
    assert shown('without_a') == {LONG} and shown('红色') == {'鞋子-红色-运动鞋'}
    assert shown('<b>') == {NAMES[-1]}
    assert shown('') == set(dataset.pids)
    assert page.locator('#identity').get_attribute('placeholder') == 'in full, or a part'


@pytest.mark.parametrize('width', [390, 1280])
def test_long_names(named, look, width):
    """They are shortened in their middle to the available space, complete on hover, and displace nothing."""
    page = look(named / 'named.html', width=width)
    dataset = load_dataset(named / 'query.csv')
    cut = set()
    for name in ('1', LONG, *NAMES[-2:]):
        page.fill('#identity', name)
        page.locator('.row').first.click()
        assert page.evaluate('document.documentElement.scrollWidth') == width
        assert page.locator('#detail').evaluate('detail => detail.scrollWidth <= detail.clientWidth')
        assert page.locator('#query h2').inner_text().startswith(name)
        assert page.locator('#query .muted').inner_text() in dataset.fids[dataset.pids == name]
        shown = page.locator('.short:visible').evaluate_all(
            'all => all.map(one => [one.textContent, one.title, one.scrollWidth <= one.clientWidth])')
        assert len(shown) > 20 and all(fits for _, _, fits in shown)
        for text, whole, _ in shown:
            if '…' in text:
                head, tail = text.split('…')
                assert whole.startswith(head) or whole.split('/')[-1].startswith(head)
                assert whole.endswith(tail) and 0 <= len(head) - len(tail) <= 1
                cut.add(whole)
        overlapping = page.locator('.ranked li').evaluate_all(
            'all => all.filter(one => [...one.querySelectorAll("*")].some(part => '
            'part.getBoundingClientRect().right > one.getBoundingClientRect().right + 1)).length')
        assert overlapping == 0
        if width < 760:
            page.locator('#back').click()
    assert LONG in cut and not cut & {'1', '10', '12', '21'}


@pytest.mark.parametrize('width', [390, 1280])
def test_the_frame_of_a_query_fits_its_picture(named, look, width):
    page = look(named / 'named.html', width=width)
    shapes = set()
    for name in ('1', LONG):
        page.fill('#identity', name)
        for row in page.locator('.row').all():
            row.click()
            image = page.locator('#query img')
            image.evaluate('image => image.decode()')
            page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
            box, natural = image.bounding_box(), image.evaluate('image => [image.naturalWidth, image.naturalHeight]')
            assert box['height'] == pytest.approx(box['width'] * natural[1] / natural[0], abs=1)
            assert box['width'] <= 121 and box['height'] <= 201
            shapes.add(natural[0] > natural[1])
            if width < 760:
                page.locator('#back').click()
    assert shapes == {True, False}


def test_a_query_opens_its_ranked_list(root, look):
    page = look(root / 'new.html')
    expected = lists_by_hand(root)
    for fid in rows(page)[3], rows(page)[0], rows(page)[-2]:
        row_of(page, fid).click()
        assert page.locator('#query .muted').inner_text() == fid
        assert shown_list(page) == as_shown(expected[fid])[:10]
        later = [entry for entry in as_shown(expected[fid])[10:] if entry[1] == 'match'][:5]
        assert (shown_list(page, 1) if later else []) == later


def test_excluded_images_are_shown_on_request(root, look):
    page = look(root / 'new.html')
    expected = lists_by_hand(root)
    fid = rows(page)[-2]
    row_of(page, fid).click()
    page.check('#excluded')
    kinds = ('match', 'miss', 'excluded')
    tenth = as_shown(expected[fid])[9]
    until = as_shown(expected[fid], kinds).index(tenth) + 1
    assert shown_list(page) == as_shown(expected[fid], kinds)[:until]
    assert any(kind == 'excluded' for _, kind, _ in shown_list(page))

    def border(kind):
        return page.locator(f'.ranked .{kind} .thumb').first.evaluate('image => getComputedStyle(image).borderTopStyle')

    assert [border(kind) for kind in kinds] == ['solid', 'dashed', 'dotted']
    assert page.locator('.ranked .match .badge').first.inner_text() == '✓'
    assert page.locator('.ranked .miss .badge').first.inner_text() == '✗'


@pytest.mark.parametrize('name', ['new.html', 'linked.html'])
def test_images_are_those_of_the_files(root, look, name):
    page = look(root / name)
    pixels = {fid: np.asarray(Image.open(root / 'images' / fid).convert('RGB'), int)
              for fid in load_dataset(root / 'gallery.csv').fids}
    for entry in page.locator('.ranked').first.locator('li').all():
        fid = entry.locator('.name').get_attribute('title')
        image = entry.locator('img')
        image.scroll_into_view_if_needed()
        image.evaluate('image => image.decode()')
        if name == 'linked.html':
            assert image.evaluate('image => image.src') == (root / 'images' / fid).as_uri()
            continue
        shown = Image.open(io.BytesIO(base64.b64decode(image.get_attribute('src').split(',')[1])))
        differences = {other: np.abs(np.asarray(shown, int) - pixels[other]).mean() for other in pixels}
        best = min(differences, key=differences.get)
        assert np.array_equal(pixels[best], pixels[fid])  # The junk image is a copy of another one.


def test_a_hostile_file_name_is_text(root, look):
    for name in ('new.html', 'linked.html'):
        page = look(root / name)
        page.fill('#identity', '0099')
        assert rows(page) == [f'query/{_evaluated.HOSTILE}']
        assert page.locator('#query .muted').inner_text() == f'query/{_evaluated.HOSTILE}'
        assert page.get_by_text('No match in the gallery.').is_visible()
        assert page.locator('#query img').evaluate('image => image.decode().then(() => image.naturalWidth)') == 32


def test_keyboard(root, look):
    page = look(root / 'new.html', width=390)
    by_ap = [query['fid'] for query in sorted(results(root), key=lambda query: (query['ap'] is None, query['ap']))]
    shown = page.locator('#query .muted')

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)

    page.locator('#list').focus()
    press('ArrowDown', 'j', 'j', 'k')
    assert shown.text_content() == by_ap[2] and not shown.is_visible()  # On a narrow screen it is not opened yet.
    press('Enter')
    assert shown.is_visible() and page.locator('#back').is_visible()
    press('j')
    assert shown.inner_text() == by_ap[3]
    press('Escape', 'End')
    assert not shown.is_visible() and shown.text_content() == by_ap[-1]
    press('Home')
    assert shown.text_content() == by_ap[0]
    press('/')
    page.keyboard.type('0013')
    assert page.locator('#identity').input_value() == '0013'
    assert shown.text_content().startswith('query/0013')
    press('Escape', 'e')
    assert page.locator('#excluded').is_checked()


@pytest.mark.parametrize('width', [390, 1280])
def test_layout(root, look, width):
    page = look(root / 'compared.html', width=width)
    assert page.evaluate('document.documentElement.scrollWidth') == width
    assert page.locator('#detail').is_visible() == (width > 760)
    page.locator('.row').nth(1).click()
    detail = page.locator('#detail')
    assert detail.is_visible()
    assert detail.evaluate('detail => detail.scrollWidth <= detail.clientWidth')
    if width < 760:
        page.locator('#back').click()
        assert not detail.is_visible()


def test_an_address_opens_its_query(root, look):
    fid = results(root)[5]['fid']
    page = look(root / 'new.html', address='#' + fid.replace('/', '%2F'))
    assert page.locator('#query .muted').inner_text() == fid


def test_comparison(root, look):
    page = look(root / 'compared.html')
    assert page.title() == f'{root.name}/new compared with {root.name}/old'
    new, old = results(root, 'new'), results(root, 'old')
    change = {now['fid']: now['ap'] - before['ap'] for now, before in zip(new, old) if now['matches']}
    unmatched = [query['fid'] for query in new if not query['matches']]
    assert rows(page) == sorted(change, key=change.get) + unmatched
    page.select_option('#sort', 'file order')
    for choice, kept in (('got worse', lambda value: value < 0), ('got better', lambda value: value > 0)):
        page.select_option('#show', choice)
        assert rows(page) == [fid for fid in change if kept(change[fid])]
    fid = rows(page)[0]
    row_of(page, fid).click()
    headings = page.locator('#lists h2, #lists .ranked').evaluate_all('all => all.map(one => one.tagName)')
    assert headings.count('H2') == 2
    second = headings[:headings.index('H2', 1)].count('OL')
    assert shown_list(page, 0) == as_shown(lists_by_hand(root, 'new')[fid])[:10]
    assert shown_list(page, second) == as_shown(lists_by_hand(root, 'old')[fid])[:10]


def test_verification(root, look):
    _evaluated.evaluate(root, 'new', '--verification', '--filename', root / 'verified.json')
    process = run_script('visualize.py', 'report', root / 'verified.json', '--filename', root / 'verified.html')
    assert process.returncode == 0, process.stderr
    points = json.loads((root / 'verified.json').read_text())['verification']['tpr_at_fpr']
    assert [point['fpr'] for point in points] == [0.1, 0.01]
    counts = []
    for point, name in zip(points, ('10%', '1%')):
        page = look(root / 'verified.html')
        assert 'ROC' in page.inner_text('#charts') and '(sample)' not in page.inner_text('#charts')
        page.select_option('#show', f'accepted wrongly at FPR {name}')
        expected = set()
        for fid, ranked in lists_by_hand(root).items():
            _, distance, kind = next(entry for entry in ranked if entry[2] != 'excluded')
            if kind == 'miss' and distance <= point['threshold']:
                expected.add(fid)
        assert set(rows(page)) == expected
        counts.append(len(expected))
    assert counts[0] > counts[1]


def test_a_page_holds_all_it_needs(root, browser):
    """It asks for itself and for linked images, which have relative addresses; a policy forbids anything else."""
    asked = {}
    for name in ('compared.html', 'linked.html'):
        page = new_page(browser)
        page.on('request', lambda request: asked.setdefault(name, []).append(request.url))
        page.goto((root / name).as_uri())
        page.wait_for_function('() => [...document.images].filter(image => image.naturalWidth).length > 10')
        page.close()
        asked[name] = [url for url in asked[name] if not url.startswith('data:')]
    assert asked['compared.html'] == [(root / 'compared.html').as_uri()]
    assert asked['linked.html'][0] == (root / 'linked.html').as_uri() and len(asked['linked.html']) > 10
    assert all(url.startswith((root / 'images').as_uri()) for url in asked['linked.html'][1:])
    linked = (root / 'linked.html').read_text(encoding='utf-8')
    assert "default-src 'none'" in linked and str(root) not in linked


def test_images_moved_after_the_report(root, browser, tmp_path):
    shutil.copy(root / 'linked.html', tmp_path)
    page = new_page(browser)
    page.goto((tmp_path / 'linked.html').as_uri())
    page.wait_for_selector('#query .gone')
    assert page.locator('#query .gone').inner_text() == 'no image'
    page.close()


def test_market1501_in_size(tmp_path, look):
    """3368 queries and 19732 gallery images: the page stays small, and draws no more rows than are seen."""
    random = np.random.default_rng(0)
    picture = tmp_path / 'images' / 'one.jpg'
    picture.parent.mkdir()
    Image.new('RGB', (64, 128), 'teal').save(picture)
    pids = {'query': np.arange(3368) % 750, 'gallery': np.r_[np.arange(13000) % 750, np.full(6732, 9999)]}
    for name, numbers in pids.items():
        fids = [f'{pid:04}_c{random.integers(1, 7)}s1_{row:06}_{name}.jpg' for row, pid in enumerate(numbers)]
        for fid in fids:
            os.link(picture, picture.parent / fid)
        (tmp_path / f'{name}.csv').write_text(''.join(f'{fid[:4]},{fid}\n' for fid in fids))
    points = random.normal(size=(10000, 16))
    for name, numbers in pids.items():
        embs = (points[numbers] + random.normal(size=(len(numbers), 16))).astype(np.float32)
        save_embeddings(tmp_path / f'{name}_big.h5', load_dataset(tmp_path / f'{name}.csv'), embs,
                        {'image_root': str(tmp_path / 'images')})
    _evaluated.evaluate(tmp_path, 'big')
    process = run_script('visualize.py', 'report', tmp_path / 'big.json', '--link_images')
    assert process.returncode == 0, process.stderr
    assert (tmp_path / 'big.html').stat().st_size < 60e6
    page = look(tmp_path / 'big.html')
    assert page.locator('#count').inner_text() == '3368 of 3368 queries'
    assert page.locator('.row').count() < 40
    page.locator('#list').focus()
    page.keyboard.press('End')
    last = page.locator('.row[aria-selected=true]')
    assert last.get_attribute('aria-posinset') == '3368' and last.is_visible()
    assert page.locator('.row').count() < 40
