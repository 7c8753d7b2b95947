// The page of search.py, in addition to ranked_page.js. page.py describes `data`; a served page requests its results.
// {name, pictures: [address or null], doubts: [sentence], results: [{rank, row, fid, distance, name, picture}]}
const queries = [];
let shown = null, threshold = data.threshold;

const lastName = path => path.split('/').at(-1);
const isSame = result => threshold === null ? null : result.distance <= threshold;
const inWords = distance => distance && distance < 1e-3 ? distance.toExponential(1) : String(+distance.toPrecision(4));
const percent = share => share && share < 1e-3 ? `${+(100 * share).toPrecision(2)}%` : (100 * share).toFixed(1) + '%';

// The most frequent name of the results that are near enough, or null; of equally frequent names the nearest wins.
function vote({results}) {
  const names = results.filter(each => isSame(each) !== false && each.name !== null).map(each => each.name);
  const votes = new Map();
  for (const name of names) votes.set(name, (votes.get(name) ?? 0) + 1);
  const [name, most] = [...votes].reduce((best, each) => each[1] > best[1] ? each : best, [null, 0]);
  return name === null ? null : {name, words: `${name} by ${most} of ${names.length} votes. `};
}

function verdict(query) {
  const {results} = query, name = vote(query)?.words ?? '';
  if (!results.length) return 'The gallery has no other image.';
  if (threshold === null) return `${name}The ${results.length} nearest; without a threshold none is accepted or rejected.`;
  const same = results.filter(isSame).length;
  if (!same) return `Nobody: the nearest is at a distance of ${inWords(results[0].distance)}.`;
  return `${name}The same identity in ${same} of the ${results.length} nearest.`;
}

// The verdict in one or two words.
function inShort(query) {
  const {results} = query, same = results.filter(isSame).length, name = vote(query)?.name;
  if (threshold !== null && !same) return 'nobody';
  return name ?? (threshold === null ? '' : `${same} of ${results.length}`);
}

// The rates of the threshold in its evaluation.
function meaning() {
  if (threshold === null) return 'Not set: move it to mark the results that are near enough.';
  if (!data.curve.length) return data.threshold === threshold ? 'As given by --threshold.' : 'Chosen here.';
  const below = data.curve.findLast(point => point.threshold <= threshold) ?? {tpr: 0};
  const above = data.curve.find(point => point.threshold >= threshold) ?? {fpr: 1};
  return `In the evaluation at least ${percent(below.tpr)} of the pairs of one identity are as near, and at most`
    + ` ${percent(above.fpr)} of the pairs of different ones.`;
}

function furthest() {
  const distances = queries.flatMap(({results}) => results.map(({distance}) => distance));
  return Math.max(1e-9, 2 * (data.threshold ?? 0), ...distances.map(distance => 1.05 * distance),
    ...data.curve.slice(-1).map(point => point.threshold));
}

function drawThreshold() {
  const text = threshold === null ? 'not set' : inWords(threshold);
  byId('distance').textContent = text;
  byId('meaning').textContent = meaning();
  byId('threshold').value = threshold === null ? 1000 : 1000 * threshold / furthest();
  byId('threshold').setAttribute('aria-valuetext', `${text}. ${meaning()}`);
}

// The items of a list are made once and then only marked, so that each picture is requested once.
function itemOf(query) {
  if (query.item) return query.item;
  const button = element('button', {type: 'button'}, picture(query.pictures[0], ''), element('span', {},
    element('span', {title: query.name}, lastName(query.name)), element('span', {class: 'muted'})));
  button.onclick = () => show(query);
  return query.item = element('li', {}, button);
}

function drawVisit() {
  byId('none').hidden = queries.length > 0;
  const list = document.querySelector('#visit ol');
  for (const query of queries) {
    const item = itemOf(query);
    item.firstChild.setAttribute('aria-current', String(query === shown));
    item.querySelector('.muted').textContent = inShort(query);
    if (item.parentNode) continue;
    if (data.served) list.prepend(item);  // The last search comes first.
    else list.append(item);
  }
}

function resultOf(each) {
  if (each.item) return each.item;
  const image = picture(each.picture, '');
  let pick = image;
  if (data.served) {
    pick = element('button', {type: 'button', class: 'pick', title: 'search with this image'}, image);
    pick.onclick = () => searchLike(each);
  }
  return each.item = element('li', {}, element('span', {class: 'badge', 'aria-hidden': 'true'}), pick,
    element('p', {}, element('b', {}, `rank ${each.rank}`), element('span', {}, inWords(each.distance))),
    ...(each.name === null ? [] : [element('p', {class: 'identity', title: each.name, dir: 'auto'}, each.name)]),
    element('p', {class: 'name', title: each.fid, dir: 'auto'}, lastName(each.fid)));
}

function markResults() {
  for (const each of shown?.results ?? []) {
    const item = resultOf(each), image = item.querySelector('.thumb'), same = isSame(each);
    const [kind, mark, word] = same === null ? ['', '', ''] : same ? ['match', '✓', ', the same identity']
      : ['miss', '✗', ', too far'];
    item.className = kind;
    item.querySelector('.badge').textContent = mark;
    item.querySelector('.badge').hidden = !mark;
    image.setAttribute(image.tagName === 'IMG' ? 'alt' : 'aria-label', `rank ${each.rank}${word}: ${each.fid}`);
  }
  if (shown) byId('verdict').textContent = verdict(shown);
}

function drawFound() {
  byId('found').hidden = shown === null;
  if (shown === null) return;
  byId('query').replaceChildren(
    element('div', {class: 'pictures'}, ...shown.pictures.map(address => picture(address, 'the photo'))),
    element('div', {}, element('h2', {id: 'name', tabindex: '-1'}, shown.name), element('p', {id: 'verdict'})));
  byId('doubts').replaceChildren(...shown.doubts.map(doubt => element('p', {class: 'warning'}, `⚠ This photo ${doubt}.`)));
  document.querySelector('#found .ranked').replaceChildren(...shown.results.map(resultOf));
  markResults();
}

function draw() {
  drawThreshold();
  drawVisit();
  drawFound();
}

function show(query) {
  shown = query;
  draw();
  byId('status').textContent = `${query.name}: ${verdict(query)}`;
  byId('status').className = 'unseen';  // For screen readers: the verdict is visible below.
  byId('name').focus();
}

byId('threshold').addEventListener('input', () => {
  threshold = byId('threshold').value / 1000 * furthest();
  byId('distance').textContent = inWords(threshold);
  byId('meaning').textContent = meaning();
  byId('threshold').setAttribute('aria-valuetext', `${inWords(threshold)}. ${meaning()}`);
  drawVisit();
  markResults();
});

// Asking the server.
async function ask(address, body, name, shownAs) {
  byId('failure').hidden = true;
  byId('status').textContent = `Searching for ${name} …`;
  byId('status').className = 'muted';
  try {
    const response = await fetch(address, {method: 'POST', body});
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    const results = content.results.map(each => ({...each, picture: `gallery/${each.row}`}));
    const query = {name, pictures: [shownAs], doubts: content.doubts, results};
    queries.push(query);
    show(query);
    return true;
  } catch (error) {
    const reason = error instanceof TypeError ? 'the server does not answer; is search.py still running?' : error.message;
    byId('status').textContent = '';
    byId('failure').textContent = `${name}: ${reason}`;
    byId('failure').hidden = false;
    return false;
  }
}

async function searchWith(files) {
  for (const file of files) {
    const address = URL.createObjectURL(file);
    const name = file.name || 'pasted photo';
    if (!await ask('search', file, name, address)) URL.revokeObjectURL(address);
  }
}

const searchLike = each => ask(`search/${each.row}`, null, each.fid, each.picture);

if (data.served) {
  byId('ask').hidden = byId('click').hidden = false;
  byId('file').addEventListener('change', () => {
    searchWith([...byId('file').files]);
    byId('file').value = '';  // So that the same file may be chosen again.
  });
  document.addEventListener('paste', event => searchWith([...event.clipboardData.files]));
  document.addEventListener('dragover', event => {
    event.preventDefault();
    byId('ask').classList.add('over');
  });
  document.addEventListener('dragleave', event => {
    if (!event.relatedTarget) byId('ask').classList.remove('over');
  });
  document.addEventListener('drop', event => {
    event.preventDefault();
    byId('ask').classList.remove('over');
    const files = [...event.dataTransfer.files];
    if (files.length) return searchWith(files);
    byId('failure').textContent = 'This is not a file: save the picture first, or paste it.';
    byId('failure').hidden = false;
  });
}

byId('about').textContent = [data.about, data.accuracy].filter(Boolean).join(' · ');
queries.push(...data.queries);
shown = queries[0] ?? null;
draw();
