// The loss by step: raw and smoothed, drawn by uPlot, and in words.
import { html, useEffect, useRef, useState } from './html.js';
import { Accordion, Check, Slider, Wide } from './controls.js';
import { number } from './format.js';
import { metricsOf, smoothed } from './metrics.js';
import { useSettings } from './settings.js';
import { useStore } from './store.js';

const LINES = [
  { name: 'loss', title: 'Loss', colour: '--line-1' },
  { name: 'instance_loss', title: 'Loss of the photos', colour: '--line-2' },
  { name: 'prior_loss', title: 'Loss of the class images', colour: '--line-3' },
];
const HEIGHT = 260;
/// Rows of the table in which the curve is told in numbers.
const ROWS = 20;

let library = null;

/// Loads uPlot when the first curve is shown.
function loadLibrary() {
  library ??= new Promise((done, failed) => {
    const style = Object.assign(document.createElement('link'), { rel: 'stylesheet', href: 'vendor/uplot.css' });
    const script = document.createElement('script');
    Object.assign(script, { src: 'vendor/uplot.js', onload: () => done(window.uPlot), onerror: failed });
    document.head.append(style, script);
  });
  return library;
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/// The lines that a run has: the parts of the loss only where there are two.
const linesOf = columns => (columns.prior_loss.some(value => value !== null) ? LINES : LINES.slice(0, 1));

const dataOf = (columns, lines, weight) =>
  [columns.step, ...lines.flatMap(({ name }) => [columns[name], smoothed(columns[name], weight)])];

function options(uPlot, lines, width, log, onCursor) {
  const grid = { stroke: colour('--grid'), width: 1 };
  const axis = { stroke: colour('--text'), grid, ticks: grid, font: '12px system-ui' };
  return {
    width, height: HEIGHT, legend: { show: false }, cursor: { points: { show: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [axis, { ...axis, size: 56, values: (_, values) => values.map(value => (value === null ? '' : number(value, 2))) }],
    series: [{}, ...lines.flatMap(line => [
      { stroke: colour(line.colour), width: 1, alpha: 0.35, points: { show: false } },
      { stroke: colour(line.colour), width: 2, points: { show: false } },
    ])],
    hooks: { setCursor: [plot => onCursor(plot.cursor.idx ?? null)] },
  };
}

function Curve({ columns, lines, weight, log, onCursor }) {
  const place = useRef();
  const plot = useRef(null);
  const [scheme, setScheme] = useState(0);
  const latest = useRef();
  latest.current = () => dataOf(columns, lines, weight);
  useEffect(() => {
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const changed = () => setScheme(count => count + 1);
    dark.addEventListener('change', changed);
    return () => dark.removeEventListener('change', changed);
  }, []);
  useEffect(() => {
    let over = false;
    let sizes = null;
    loadLibrary().then(uPlot => {
      if (over) return;
      plot.current = new uPlot(options(uPlot, lines, place.current.clientWidth, log, onCursor), latest.current(), place.current);
      sizes = new ResizeObserver(() => place.current && plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
      sizes.observe(place.current);
    });
    return () => {
      over = true;
      sizes?.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [lines.length, log, scheme]);
  useEffect(() => {
    const drawn = plot.current;
    if (!drawn) return;
    const [steps] = drawn.data;
    const { min, max } = drawn.scales.x;
    const whole = !steps.length || (min <= steps[0] && max >= steps.at(-1));
    // The columns grow in place: what is drawn must be a copy, or the next comparison sees no change.
    const [now, ...values] = latest.current();
    drawn.setData([[...now], ...values], whole);
    if (!whole) drawn.redraw();
  }, [columns.version, weight]);
  return html`<div class="curve" ref=${place} aria-hidden="true"></div>`;
}

function Numbers({ columns, lines, weight }) {
  const count = columns.step.length;
  const every = Math.max(1, Math.ceil(count / ROWS));
  const smooth = lines.map(({ name }) => smoothed(columns[name], weight));
  const rows = columns.step.map((_, index) => index).filter(index => index % every === 0 || index === count - 1);
  return html`<${Wide} label="The curve in numbers"><table><thead><tr><th scope="col">Step</th>${lines.map(({ title }) => html`<th
    scope="col">${title}</th>
    <th scope="col">smoothed</th>`)}<th scope="col">Learning rate</th><th scope="col">Gradient norm</th></tr></thead>
    <tbody>${rows.map(row => html`<tr key=${row}><th scope="row">${columns.step[row]}</th>${lines.map(({ name }, line) =>
      html`<td>${number(columns[name][row])}</td><td>${number(smooth[line][row])}</td>`)}<td>${number(columns.lr[row])}</td>
      <td>${number(columns.grad_norm[row])}</td></tr>`)}</tbody></table><//>`;
}

/// The curve of a training, with what it says in words.
export function LossChart({ id }) {
  useStore(state => state.metrics);
  const [{ weight, log }, change] = useSettings('chart', { weight: 0.9, log: false });
  const [at, setAt] = useState(null);
  const columns = metricsOf(id);
  if (!columns?.step.length) return html`<p class="hint">The loss is drawn from the first step on.</p>`;
  const lines = linesOf(columns);
  const row = at ?? columns.step.length - 1;
  return html`<ul class="chart-legend">
      <li>Step ${columns.step[row]}</li>
      ${lines.map(({ name, title }, index) => html`<li key=${name}><span class="swatch line-${index + 1}"></span>${title}${' '}
        <strong>${number(columns[name][row])}</strong>, smoothed${' '}
        <strong>${number(smoothed(columns[name].slice(0, row + 1), weight).at(-1))}</strong></li>`)}
      <li>learning rate <strong>${number(columns.lr[row])}</strong></li></ul>
    <${Curve} columns=${columns} lines=${lines} weight=${weight} log=${log} onCursor=${setAt} />
    <p class="hint">Drag across the curve to look closer, double-click for the whole. A low loss is no proof of a likeness:
      look at the samples.</p>
    <div class="columns"><${Slider} id="smoothing" label="Smoothing" value=${weight} initial=${0.9} min=${0} max=${0.99}
      step=${0.01}
      onChange=${next => change({ weight: next })} />
    <${Check} id="log-scale" label="Logarithmic scale" checked=${log} onChange=${next => change({ log: next })} /></div>
    <${Accordion} title="The curve in numbers"><${Numbers} columns=${columns} lines=${lines} weight=${weight} /><//>`;
}
