// The report of visualize.py, in addition to ranked_page.js, report_charts.js and report_regions.js.
const {runs, queries, gallery, images} = data;
const compared = runs.length > 1;
const percent = x => x === null ? 'no match' : (100 * x).toFixed(1) + '%';
const rate = x => +(100 * x).toPrecision(6) + '%';
const verified = runs.filter(run => run.verification);
const signed = x => (x < 0 ? '−' : '+') + Math.abs(100 * x).toFixed(1);

// An image is a number in the table `images`, whose entries are addresses or null.
function thumbnail(number, description) {
  return picture(images[number], description, {loading: 'lazy', decoding: 'async'});
}

// A name out of a file, whole on hover. `fit` shortens its middle where it does not fit.
function short(tag, name, kind = '', shown = name) {
  const made = element(tag, {class: `short ${kind}`, title: name, dir: 'auto'}, shown);
  made.letters = [...shown];
  return made;
}

function fit(parent) {
  for (const made of parent.querySelectorAll('.short')) {
    const letters = made.letters;
    made.textContent = letters.join('');
    let kept = Math.ceil(letters.length * made.clientWidth / made.scrollWidth);
    for (; made.scrollWidth > made.clientWidth && kept > 1; kept -= 1)
      made.textContent = [...letters.slice(0, Math.ceil(kept / 2)), '…', ...letters.slice(-Math.floor(kept / 2))].join('');
  }
}

function drawCharts() {
  byId('charts').replaceChildren();
  const styles = [{color: 'accent', dashed: false}, {color: 'second', dashed: true}];
  const lowest = Math.floor(10 * Math.min(...runs.map(run => run.cmc[0]), 0.99)) / 10;
  const changes = queries.fid.map((_, q) => change(q)).filter(value => value !== null);
  const drawings = [
    chart('CMC', 'rank', 'queries with a match up to this rank', runs.map((run, i) => ({
      ...styles[i], name: run.name, points: run.cmc.map((share, rank) => [rank + 1, share])})),
      lowest, 1, share => (100 * share).toFixed(0) + '%'),
    histogram('AP of the queries', 'AP', 'queries', runs.map((run, i) => ({
      ...styles[i], name: run.name, filled: i === 0, points: counted(run.ap.filter(ap => ap !== null), 0, 1, 20)}))),
    ...(compared ? [histogram('Change of AP', 'AP now − AP before', 'queries', [{
      ...styles[0], name: 'change', filled: true, points: counted(changes, -1, 1, 40)}])] : []),
    ...runs.map(({name, verification, distances}) => {
      const {edges, same, different} = verification ?? distances;
      return histogram('Distances' + (compared ? ', ' + name : ''), 'distance', 'pairs', [
        {name: 'genuine pairs', color: 'match', filled: true, points: outline(same, edges)},
        {name: verification ? 'impostor pairs' : 'impostor pairs (sample)', color: 'miss', dashed: true, filled: true,
         points: outline(different, edges)}],
        {marks: verification ? verification.points.filter((_, i) => i < 3).map(([fpr,, threshold]) =>
          [threshold, rate(fpr)]) : []});
    }),
    ...(verified.length ? [chart('ROC', 'impostor pairs accepted (FPR)', 'genuine pairs accepted (TPR)',
      runs.map((run, i) => ({...styles[i], name: run.name, run})).filter(({run}) => run.verification).map(series => ({
        ...series, points: series.run.verification.roc.map(([fpr, tpr]) => [Math.log10(fpr), tpr])})),
      0, 1, share => (100 * share).toFixed(0) + '%', {xText: power => Number.isInteger(power) ? rate(10 ** power) : ''})]
      : [])];
  drawPairs();
  drawings.forEach(draw => draw());
}

// The head of the page.
document.title = data.title;
document.querySelector('h1').textContent = data.title;
byId('about').textContent = data.about;
byId('warnings').append(...data.warnings.map(warning => element('p', {class: 'warning'}, '⚠ ' + warning)));
for (const [name, value, note] of data.numbers) byId('numbers').append(
  element('div', {}, element('dt', {}, name), element('dd', {}, value, element('small', {}, note))));

// The camera of a query's nearest image that is not excluded, or null.
function nearestCamera(q) {
  const entry = runs[0].lists[q].find(([, , excluded]) => !excluded);
  return entry && gallery.camera ? gallery.camera[entry[0]] : null;
}

// A table of the rank-1 errors by the camera of the query and the camera of its nearest image; a cell shows its queries.
const MOST_CAMERAS = 15;
function drawPairs() {
  const cameras = queries.camera ? distinct([...queries.camera, ...gallery.camera]) : [];
  if (cameras.length < 2 || cameras.length > MOST_CAMERAS) return;
  const counts = new Map();
  for (let q = 0; q < count; q++) {
    const nearest = nearestCamera(q);
    if (nearest === null || runs[0].first[q] === null) continue;
    const cell = counts.get(`${queries.camera[q]} ${nearest}`) ?? [0, 0];
    counts.set(`${queries.camera[q]} ${nearest}`, [cell[0] + (runs[0].first[q] > 1), cell[1] + 1]);
  }
  const head = element('tr', {}, element('td'), ...cameras.map(camera => element('th', {scope: 'col'}, camera)));
  const lines = cameras.filter(camera => queries.camera.includes(camera)).map(from => element('tr', {},
    element('th', {scope: 'row'}, from), ...cameras.map(to => {
      const [wrong, all] = counts.get(`${from} ${to}`) ?? [0, 0];
      if (!all) return element('td');
      const description = `${wrong} of ${all} queries of camera ${from} whose nearest image is of camera ${to} are wrong`;
      const button = element('button', {type: 'button', title: description, 'aria-label': description,
        style: `background: color-mix(in srgb, var(--miss) ${Math.round(70 * wrong / all)}%, transparent)`}, wrong);
      button.onclick = () => {
        [byId('camera').value, byId('nearest').value, byId('show').value] = [from, to, 'first result wrong'];
        filterAndSort();
      };
      return element('td', {}, button);
    })));
  byId('charts').append(element('figure', {class: 'chart', id: 'pairs'}, element('h2', {}, 'Wrong first results by cameras'),
    element('p', {class: 'muted'}, 'rows: camera of the query; columns: camera of its nearest image'),
    element('div', {class: 'scroll'}, element('table', {}, head, ...lines))));
}

// The list of queries. Run 0 is the evaluation of the report, run 1 the earlier one.
const count = queries.fid.length;
const change = q => compared && runs[0].ap[q] !== null && runs[1].ap[q] !== null ? runs[0].ap[q] - runs[1].ap[q] : null;
const text = new Intl.Collator('en', {numeric: true}).compare;
// Queries without a value (no match in the gallery) come last in either direction.
const ascending = value => (a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity) || a - b;
const descending = value => (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity) || a - b;
const orders = {
  'worst AP first': ascending(q => runs[0].ap[q]),
  'best AP first': descending(q => runs[0].ap[q]),
  'latest first match': descending(q => runs[0].first[q]),
  'identity': (a, b) => text(queries.pid[a], queries.pid[b]) || a - b,
  ...(queries.camera && {'camera': (a, b) => text(queries.camera[a], queries.camera[b]) || a - b}),
  'file order': (a, b) => a - b,
  ...(compared && {'most lost first': ascending(change), 'most gained first': descending(change)}),
};
const kinds = {
  'all queries': () => true,
  'first result wrong': q => runs[0].first[q] > 1,
  'first result right': q => runs[0].first[q] === 1,
  'no match in the gallery': q => runs[0].first[q] === null,
  // A query's nearest image is of another identity, and within the threshold.
  ...Object.fromEntries((runs[0].verification?.points ?? []).map(([fpr,, threshold]) => [
    `accepted wrongly at FPR ${rate(fpr)}`, q => {
      const at = runs[0].verification.acceptedAt[q];
      return at !== null && at <= fpr;
    }])),
  ...(compared && {'got worse': q => change(q) < 0, 'got better': q => change(q) > 0,
                   'rank 1 lost': q => runs[0].first[q] > 1 && runs[1].first[q] === 1,
                   'rank 1 gained': q => runs[0].first[q] === 1 && runs[1].first[q] > 1}),
  ...(regions && {'with regions': q => q in regions.maps}),
};
const distinct = values => [...new Set(values)].sort(text);
const pids = new Set(queries.pid);
byId('sort').append(...Object.keys(orders).map(name => element('option', {}, name)));
byId('show').append(...Object.keys(kinds).map(name => element('option', {}, name)));
byId('identities').append(...distinct(queries.pid).map(pid => element('option', {value: pid})));
if (queries.camera) {
  byId('cameras').hidden = false;
  byId('camera').append(...distinct(queries.camera).map(camera => element('option', {}, camera)));
}
if (gallery.camera) {
  byId('nearest-cameras').hidden = false;
  byId('nearest').append(...distinct(gallery.camera).map(camera => element('option', {}, camera)));
}
if (compared) byId('sort').value = 'most lost first';

const list = byId('list'), rowHeight = 84;
let order = [], selected = null, addressing = null;

function filterAndSort() {
  const [identity, camera, nearest, file] = ['identity', 'camera', 'nearest', 'file'].map(id => byId(id).value.trim());
  const kind = kinds[byId('show').value];
  const isWanted = pids.has(identity) ? pid => pid === identity : pid => pid.includes(identity);
  order = [...Array(count).keys()].filter(q => kind(q) && isWanted(queries.pid[q]) && (!camera
    || queries.camera[q] === camera) && (!nearest || nearestCamera(q) === nearest) && queries.fid[q].includes(file));
  order.sort(orders[byId('sort').value]);
  byId('count').textContent = `${order.length} of ${count} queries`;
  list.scrollTop = 0;
  select(order.includes(selected) ? selected : order[0] ?? null);
}

const seenBy = (table, i, word) => table.camera ? ` · ${word}${table.camera[i]}` : '';
const who = (table, i, word) => element('div', {class: 'who'}, short('bdi', table.pid[i]), seenBy(table, i, word));

function marks(run, q) {
  const shown = element('span', {class: 'marks'});
  for (const {kind} of ranked(run, q).filter(entry => entry.kind !== 'excluded').slice(0, 10))
    shown.append(element('span', {class: kind}, kind === 'match' ? '✓' : '✗'));
  return shown;
}

function row(q, position) {
  const difference = change(q);
  const score = percent(runs[0].ap[q]) + (difference === null ? '' : ` (${signed(difference)})`);
  const first = runs[0].first[q] === null ? '' : `first match: ${runs[0].first[q]}`;
  const line = (left, right) => element('div', {class: 'line'}, left, right);
  const made = element('div', {
    class: 'row', role: 'option', id: `query-${q}`, style: `top: ${position * rowHeight}px`,
    'aria-selected': q === selected, 'aria-setsize': order.length, 'aria-posinset': position + 1,
  }, thumbnail(queries.image[q], `query ${queries.pid[q]}`), element('div', {},
    line(who(queries, q, 'camera '), element('b', {class: 'score'}, score)),
    line(marks(runs[0], q), element('span', {class: 'score muted'}, first)),
    short('div', queries.fid[q], 'name')));
  made.onclick = () => { select(q); openDetail(); };
  return made;
}

// Only the rows in view exist, so that any number of queries costs the same.
function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - 3);
  const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / rowHeight) + 3);
  const spacer = element('div', {role: 'presentation', style: `height: ${order.length * rowHeight}px`});
  list.replaceChildren(spacer, ...order.slice(first, last).map((q, i) => row(q, first + i)));
  fit(list);
  if (!order.length) list.append(element('p', {class: 'muted', style: 'padding: 12px'}, 'No query fits the filter.'));
}

function select(q) {
  selected = q;
  const top = order.indexOf(q) * rowHeight;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + rowHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight - list.clientHeight;
  drawRows();
  if (q === null) list.removeAttribute('aria-activedescendant');
  else list.setAttribute('aria-activedescendant', `query-${q}`);
  drawDetail();
}

function step(by) {
  const position = order.indexOf(selected) + by;
  if (order.length) select(order[Math.max(0, Math.min(order.length - 1, position))]);
}

// The opened query. Entries of a ranked list are [gallery number, distance, excluded].
function ranked(run, q) {
  let rank = 0;
  return run.lists[q].map(([g, distance, excluded]) => {
    const kind = excluded ? 'excluded' : gallery.pid[g] === queries.pid[q] ? 'match' : 'miss';
    return {g, distance, kind, place: excluded ? 'excluded' : `rank ${++rank}`};
  });
}

// `maps` are the parts of the query and of the result, or nothing.
function result({g, distance, kind, place}, maps) {
  const [mark, meaning] = {match: ['✓', 'match'], miss: ['✗', 'no match'], excluded: ['–', 'not counted']}[kind];
  const image = thumbnail(gallery.image[g], `${place}, ${meaning}: ${gallery.fid[g]}`);
  const query = maps && thumbnail(queries.image[selected], `query, with its parts for ${place}`);
  return element('li', {class: kind},
    element('span', {class: 'badge', 'aria-hidden': 'true'}, mark),
    ...(maps ? [colour(image, maps[1]), element('div', {class: 'of-query'}, colour(query, maps[0]))] : [image]),
    element('p', {}, element('b', {}, place), element('span', {}, distance.toFixed(3))), who(gallery, g, 'c'),
    short('p', gallery.fid[g], 'name', gallery.fid[g].split('/').at(-1)));
}

function outcome(run, q) {
  if (!run.matches[q]) return 'No match in the gallery.';
  const count = run.matches[q] === 1 ? '1 match, at rank' : `${run.matches[q]} matches, the first at rank`;
  const last = run.matches[q] > 1 ? `, the last at ${run.last[q]}` : '';
  return `AP ${percent(run.ap[q])}. ${count} ${run.first[q]}${last}.`;
}

function drawDetail() {
  const q = selected, lists = byId('lists');
  byId('query').replaceChildren();
  lists.replaceChildren();
  if (q === null) return;
  byId('query').append(thumbnail(queries.image[q], `query ${queries.pid[q]}`), element('div', {},
    element('h2', {}, element('bdi', {}, queries.pid[q]), seenBy(queries, q, 'camera ')),
    element('p', {class: 'muted'}, queries.fid[q]),
    ...runs.map(run => element('p', {}, compared ? element('b', {}, run.name + ': ') : '', outcome(run, q)))));
  const maps = regions && byId('coloured').checked && regions.maps[q];
  byId('legend').hidden = !maps;
  byId('uncoloured').hidden = !byId('coloured').checked || Boolean(maps);
  for (const run of runs) {
    const mapsOf = run === runs[0] && maps || {};
    if (compared) lists.append(element('h2', {}, run.name));
    const entries = ranked(run, q).filter(entry => byId('excluded').checked || entry.kind !== 'excluded');
    lists.append(element('ol', {class: 'ranked'}, ...entries.map(entry => result(entry, mapsOf[entry.g]))));
    if (!run.further[q].length) continue;
    lists.append(element('h3', {}, 'Nearest matches that are not among them'), element('ol', {class: 'ranked'},
      ...run.further[q].map(([g, distance]) => result({g, distance, kind: 'match', place: 'later'}, mapsOf[g]))));
  }
  fit(lists);
  // Browsers allow only some changes of the address a second, and a key can be held down.
  clearTimeout(addressing);
  addressing = setTimeout(() => history.replaceState(null, '', '#' + encodeURIComponent(queries.fid[q])), 300);
}

// On a narrow screen the opened query covers the list.
function openDetail() {
  document.body.classList.add('open');
  byId('detail').scrollTop = 0;
  fit(byId('lists'));
  if (byId('back').offsetParent) byId('back').focus();
}

function closeDetail() {
  document.body.classList.remove('open');
  list.focus();
}

// Mouse and keyboard.
byId('controls').addEventListener('input', filterAndSort);
byId('controls').addEventListener('submit', event => event.preventDefault());
byId('excluded').addEventListener('change', drawDetail);
byId('coloured').addEventListener('change', drawDetail);
byId('back').addEventListener('click', closeDetail);
byId('previous').addEventListener('click', () => step(-1));
byId('next').addEventListener('click', () => step(1));
list.addEventListener('scroll', drawRows);
addEventListener('resize', () => { drawCharts(); drawRows(); fit(byId('lists')); });

const page = () => Math.max(1, Math.floor(list.clientHeight / rowHeight) - 1);
const listKeys = {ArrowDown: () => step(1), ArrowUp: () => step(-1), PageDown: () => step(page()),
                  PageUp: () => step(-page()), Home: () => step(-count), End: () => step(count),
                  Enter: () => { openDetail(); byId('detail').focus(); }};
const pageKeys = {j: () => step(1), k: () => step(-1), e: () => byId('excluded').click(),
                  r: () => byId('coloured').click(), '/': () => { closeDetail(); byId('identity').focus(); }, Escape: closeDetail};
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest('input:not([type=checkbox]), select');
  const action = event.key === 'Escape' ? closeDetail : typing ? null :
    (event.target === list && listKeys[event.key]) || pageKeys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

drawCharts();
byId('colouring').hidden = !regions;
if (regions) {
  byId('method').textContent = regions.method;
  for (const kind of ['near', 'far']) byId(kind).style.color = `rgb(${regions[kind]})`;
}
byId('excluding').hidden = !runs.some(run => run.lists.some(list => list.some(entry => entry[2])));
// An address that ends in #file-name opens that query.
let wanted = -1;
try { wanted = queries.fid.indexOf(decodeURIComponent(location.hash.slice(1))); } catch { /* not one of ours */ }
if (wanted >= 0) selected = wanted;
filterAndSort();
if (wanted >= 0) openDetail();
