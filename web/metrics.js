// The numbers of each step of a training, kept in columns for the curve.
import { change } from './store.js';

const NAMES = ['step', 'loss', 'instance_loss', 'prior_loss', 'lr', 'grad_norm', 'step_s'];
const byJob = new Map();

/// Columns by name, and `version`, which counts their changes.
export const metricsOf = id => byJob.get(id) ?? null;

export const dropMetrics = () => byJob.clear();

export function addMetrics(id, rows) {
  const columns = byJob.get(id) ?? { ...Object.fromEntries(NAMES.map(name => [name, []])), version: 0 };
  for (const row of rows) {
    // A run that went on from a checkpoint takes some steps again.
    while (columns.step.length && columns.step.at(-1) >= row.step) NAMES.forEach(name => columns[name].pop());
    NAMES.forEach(name => columns[name].push(row[name] ?? null));
  }
  columns.version += 1;
  byJob.set(id, columns);
  change({ metrics: columns.version });
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
