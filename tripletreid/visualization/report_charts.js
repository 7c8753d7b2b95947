// Charts. A series is {name, points: [[x, y], …], color, dashed, filled}.
function svg(tag, attributes, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function stroke(series) {
  return `stroke: var(--${series.color});` + (series.dashed ? 'stroke-dasharray: 5 3;' : '');
}

function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({length: count}, (_, i) => +((first + i) * step).toPrecision(10));
}

// Appends a chart's frame and returns a function that draws the chart, once all frames have their width.
// Marks are [x, name]: vertical lines.
function chart(title, xName, yName, series, yLow, yHigh, yText, {xText = String, marks = []} = {}) {
  const key = element('div', {class: 'key'});
  if (series.length > 1) for (const s of series) key.append(element('span', {},
    svg('svg', {width: 26, height: 8}, svg('path', {d: 'M0,4L26,4', style: stroke(s)})), s.name));
  byId('charts').append(element('figure', {class: 'chart'}, element('h2', {}, title), key));
  return () => {
    const width = key.clientWidth, height = 190, left = 42, right = 8, top = 8, bottom = 34;
    const xs = series.flatMap(s => s.points.map(p => p[0]));
    const xLow = Math.min(...xs), xHigh = Math.max(...xs, xLow + 1e-9);
    const x = value => left + (value - xLow) / (xHigh - xLow) * (width - left - right);
    const y = value => height - bottom - (value - yLow) / (yHigh - yLow) * (height - top - bottom);
    const drawing = svg('svg', {width, height, role: 'img', 'aria-label': `${title}: ${yName} by ${xName}`});
    for (const value of ticks(yLow, yHigh)) drawing.append(
      svg('line', {class: 'grid', x1: left, x2: width - right, y1: y(value), y2: y(value)}),
      svg('text', {x: left - 6, y: y(value) + 4, 'text-anchor': 'end'}, yText(value)));
    let end = -Infinity;
    for (const value of ticks(xLow, xHigh)) {
      const half = 3.5 * xText(value).length;
      if (x(value) - half < end) continue;  // It would touch the number before.
      drawing.append(svg('text', {x: x(value), y: height - bottom + 15, 'text-anchor': 'middle'}, xText(value)));
      end = x(value) + half + 6;
    }
    drawing.append(svg('text', {x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle'}, xName));
    for (const s of series) {
      const line = s.points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join('L');
      const floor = `M${x(s.points[0][0])},${y(0)}L`, close = `L${x(s.points.at(-1)[0])},${y(0)}Z`;
      const fill = svg('path', {class: 'fill', d: floor + line + close, style: `fill: var(--${s.color})`});
      if (s.filled) drawing.append(fill);
      drawing.append(svg('path', {d: 'M' + line, style: stroke(s)}));
    }
    // Each name is a line lower than the previous one, and inside the chart, because marks may be close to each other.
    for (const [i, [value, name]] of marks.filter(([value]) => value >= xLow && value <= xHigh).entries()) {
      const fits = x(value) + 3 + 7 * name.length < width;
      drawing.append(
        svg('line', {class: 'mark', x1: x(value), x2: x(value), y1: top, y2: height - bottom}, svg('title', {}, name)),
        svg('text', {class: 'label', x: x(value) + (fits ? 3 : -3), y: top + 9 + 12 * i, 'text-anchor': fits ? 'start' : 'end'},
          name));
    }
    key.before(drawing);
  };
}

// The outline of a histogram: counts per bin between edges, as fractions of their sum.
function outline(counts, edges) {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const points = counts.flatMap((count, i) => [[edges[i], count / total], [edges[i + 1], count / total]]);
  return [[edges[0], 0], ...points, [edges.at(-1), 0]];
}

function histogram(title, xName, yName, series, more) {
  const highest = Math.max(...series.flatMap(s => s.points.map(p => p[1])), 1e-9);
  const digits = highest < 0.1 ? 1 : 0;
  return chart(title, xName, yName, series, 0, 1.05 * highest, value => (100 * value).toFixed(digits) + '%', more);
}

function counted(values, low, high, bins) {
  const counts = Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.floor((value - low) / (high - low) * bins))] += 1;
  return outline(counts, Array.from({length: bins + 1}, (_, i) => +(low + i * (high - low) / bins).toFixed(6)));
}
