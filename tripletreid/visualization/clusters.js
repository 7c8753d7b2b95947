// The clusters of visualize.py: merge, split, name and throw out; decisions are saved as a csv file, by the browser or by the
// server of the page.
const SHOWN = 60;
const first = data.images.map(image => image.cluster);
// Current identity of each image, '' if it is thrown out. A served page starts with the saved decisions.
const identity = data.images.map(image => image.decided ?? image.cluster);
const facts = new Map(data.clusters.map(cluster => [cluster.name, cluster]));
const present = new Set(identity);
// A cluster that was renamed earlier keeps its facts; the images that were split off a cluster have none.
data.images.forEach((image, row) => {
  if (!facts.has(identity[row]) && !present.has(image.cluster)) facts.set(identity[row], facts.get(image.cluster));
});
const selected = new Set();
const history = [];
let current = null, limit = SHOWN, unsaved = false, message = '', sent = Promise.resolve();

const members = name => data.order.filter(image => identity[image] === name);
const names = () => [...new Set(identity.filter(name => name))];
const changed = () => identity.map((name, image) => image).filter(image => identity[image] !== first[image]);

function freshName(stem) {
  const taken = new Set(names());
  let number = 2;
  while (taken.has(`${stem}-${number}`)) number += 1;
  return `${stem}-${number}`;
}

// Give images another identity; one step of the history.
function assign(images, name) {
  if (!images.length) return;
  history.push(images.map(image => [image, identity[image]]));
  for (const image of images) identity[image] = name;
  selected.clear();
  unsaved = true;
  message = '';
}

function nearest(name) {
  const known = facts.get(name);
  const there = new Set(names());
  const found = known && known.nearest.find(other => there.has(other.name) && other.name !== name);
  return found || null;
}

const actions = {
  merge(name) {
    const other = nearest(name);
    if (other) assign(members(other.name), name);
  },
  split(name) {
    let images = members(name).filter(image => selected.has(image));
    if (!images.length) images = members(name).filter(image => data.images[image].second);
    if (images.length && images.length < members(name).length) assign(images, freshName(name));
  },
  remove(name) {
    const picked = members(name).filter(image => selected.has(image));
    assign(picked.length ? picked : members(name), '');
  },
  rename(name, text) {
    const wanted = text.trim();
    if (!wanted || wanted === name) return;
    assign(members(name), wanted);
    if (facts.has(name) && !facts.has(wanted)) facts.set(wanted, facts.get(name));
    current = wanted;
  },
};

function undo() {
  const step = history.pop();
  if (!step) return;
  for (const [image, name] of step) identity[image] = name;
  unsaved = true;
  message = '';
  show();
}

function quoted(text) {
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const lines = [`image,identity,${data.hash}`];
  for (const image of changed()) lines.push(`${quoted(data.images[image].fid)},${quoted(identity[image])}`);
  const decisions = new Blob([lines.join('\n') + '\n'], {type: 'text/csv'});
  unsaved = false;
  if (data.served) {
    sent = sent.then(() => send(decisions));  // One after the other, because each save follows the version before.
  } else {
    const link = element('a', {download: data.filename});
    link.href = URL.createObjectURL(decisions);
    link.click();
    URL.revokeObjectURL(link.href);
  }
  state();
}

// Changes that are made while the decisions travel are not among them and stay unsaved.
async function send(decisions) {
  try {
    const response = await fetch(`decisions?before=${data.version}`, {method: 'POST', body: decisions});
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    data.version = answer.version;
    message = unsaved ? '' : `, saved in ${data.filename}`;
  } catch (error) {
    unsaved = true;
    message = `, not saved: ${error.message}`;
  }
  state();
}

function sorted() {
  const keys = {
    suspicious: (name, known) => -(known ? known.doubts.length : 0),
    size: name => -members(name).length,
    spread: (name, known) => -(known ? known.spread : 0),
    near: (name, known) => known && known.nearest.length ? known.nearest[0].distance : 9,
  };
  const key = keys[byId('sort').value];
  const text = byId('filter').value.trim().toLowerCase();
  const place = new Map(names().map((name, number) => [name, number]));
  return names().filter(name => name.toLowerCase().includes(text))
    .map(name => [key(name, facts.get(name)), place.get(name), name])
    .sort((one, other) => one[0] - other[0] || one[1] - other[1]).map(entry => entry[2]);
}

function state() {
  const count = changed().length;
  byId('state').textContent = `${names().length} clusters, ${count} image${count === 1 ? '' : 's'} changed`
    + (message || (unsaved ? ', not saved' : ''));
  byId('undo').disabled = !history.length;
}

function button(text, action) {
  const made = element('button', {type: 'button'}, text);
  made.onclick = action;
  return made;
}

function card(name) {
  const known = facts.get(name), images = members(name);
  const field = element('input', {value: name, size: 18, 'aria-label': `Name of ${name}`});
  field.onchange = () => { actions.rename(name, field.value); show(); };
  field.onkeydown = event => { if (event.key === 'Enter') field.blur(); event.stopPropagation(); };
  const act = kind => () => { current = name; actions[kind](name); show(); };
  const near = nearest(name);
  const head = element('h2', {}, field, element('span', {class: 'muted'},
    `${images.length} image${images.length === 1 ? '' : 's'}` + (known ? ` · spread ${known.spread.toFixed(2)}` : '')),
    button('Split (s)', act('split')), button('Throw out (x)', act('remove')));
  if (near) head.append(button(`Merge with ${near.name}, distance ${near.distance.toFixed(2)} (m)`, act('merge')));
  const strip = element('div', {class: 'images'});
  for (const image of images) {
    const {fid, address, second, note} = data.images[image];
    const frame = element('button', {type: 'button', 'aria-pressed': selected.has(image), title: note ? `${fid}: ${note}` : fid,
                                     class: second ? 'second' : ''}, picture(address, fid, {loading: 'lazy'}));
    frame.onclick = () => {
      selected[selected.has(image) ? 'delete' : 'add'](image);
      frame.setAttribute('aria-pressed', selected.has(image));
      current = name;
      mark();
    };
    strip.append(frame);
  }
  const made = element('section', {class: 'cluster', 'data-name': name, 'aria-label': name}, head);
  for (const doubt of known ? known.doubts : []) made.append(element('p', {class: 'doubt'}, doubt));
  made.append(strip);
  return made;
}

function mark(scroll = false) {
  for (const each of document.querySelectorAll('.cluster')) {
    const here = each.dataset.name === current;
    each.classList.toggle('current', here);
    if (here && scroll) each.scrollIntoView({block: 'nearest'});
  }
}

function show(scroll = false) {
  const all = sorted();
  if (!all.includes(current)) current = all[0] ?? null;
  byId('clusters').replaceChildren(...all.slice(0, limit).map(card));
  byId('more').hidden = all.length <= limit;
  state();
  mark(scroll);
}

function step(by) {
  const all = sorted().slice(0, limit);
  current = all[Math.max(0, Math.min(all.length - 1, all.indexOf(current) + by))] ?? null;
  mark(true);
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input, select')) return;
  const keys = {
    j: () => step(1), k: () => step(-1), u: undo, d: save,
    m: () => { actions.merge(current); show(true); },
    s: () => { actions.split(current); show(true); },
    x: () => { actions.remove(current); show(true); },
    n: () => { const name = document.querySelector('.cluster.current input'); name?.focus(); name?.select(); },
  };
  if (!(event.key in keys) || (current === null && !'ud'.includes(event.key))) return;
  event.preventDefault();
  keys[event.key]();
});
addEventListener('beforeunload', event => { if (unsaved) event.preventDefault(); });
byId('about').textContent = data.about;
byId('undo').onclick = undo;
byId('save').onclick = save;
byId('sort').onchange = () => show();
byId('filter').oninput = () => show();
byId('more').onclick = () => { limit += SHOWN; show(); };
byId('controls').onsubmit = event => event.preventDefault();
show();
