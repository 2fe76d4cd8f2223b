// The numbers of each step of a training, kept in columns for the curve.
import { get } from './api.js';
import { attempt, change } from './store.js';

const NAMES = ['step', 'loss', 'instance_loss', 'prior_loss', 'lr', 'grad_norm', 'step_s'];
const byJob = new Map();
let changes = 0;

/// Columns by name, and `version`, which counts their changes; null until they are loaded.
export const metricsOf = id => byJob.get(id)?.columns ?? null;

export const dropMetrics = () => byJob.clear();

/// Loads a job's steps, once; those that the stream tells meanwhile follow.
export async function loadMetrics(id) {
  if (byJob.has(id)) return;
  const entry = { columns: null, waiting: [] };
  byJob.set(id, entry);
  const rows = await attempt(() => get(`/api/jobs/${id}/metrics`));
  if (byJob.get(id) !== entry) return;
  if (!rows) return void byJob.delete(id);
  entry.columns = { ...Object.fromEntries(NAMES.map(name => [name, []])), version: 0 };
  addMetrics(id, [...rows, ...entry.waiting.filter(row => row.step > (rows.at(-1)?.step ?? 0))]);
}

export function addMetrics(id, rows) {
  const entry = byJob.get(id);
  if (!entry) return;
  if (!entry.columns) return void entry.waiting.push(...rows);
  const { columns } = entry;
  for (const row of rows) {
    // A run that went on from a checkpoint takes some steps again.
    while (columns.step.length && columns.step.at(-1) >= row.step) NAMES.forEach(name => columns[name].pop());
    NAMES.forEach(name => columns[name].push(row[name] ?? null));
  }
  columns.version += 1;
  change({ metrics: ++changes });
}

/// An exponential moving average, corrected for its start; `weight` is that of the past, 0 to 1.
export function smoothed(values, weight) {
  let [sum, share] = [0, 0];
  return values.map(value => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}
