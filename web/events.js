// The stream of events: everything that changes on the server comes through here, once.
import { get } from './api.js';
import { addMetrics, dropMetrics } from './metrics.js';
import { attempt, change, current, forgetJob, setJob, tellJob } from './store.js';

const LOG_LINES = 200;
const RETRY_MS = 2000;

let source = null;
let lastRow = null;
let retry = 0;

/// Loads everything and follows the stream from there.
export async function connect() {
  close();
  clearTimeout(retry);
  let server;
  try {
    server = await get('/api/state');
  } catch (error) {
    if (error.status === 401) return change({ signIn: true, server: null });
    change({ connection: 'lost' });
    retry = setTimeout(connect, RETRY_MS);
    return undefined;
  }
  if (server.signed_in === false) return change({ signIn: true, server: null });
  // The stream begins before the lists are read, so that nothing is missed; what comes twice changes nothing.
  lastRow = server.last_event ?? null;
  dropMetrics();
  change(state => ({ server, signIn: false, connection: 'live' }));
  await loadLists();
  change(({ epoch }) => ({ epoch: epoch + 1 }));
  if (!document.hidden) open();
  return undefined;
}

async function loadLists() {
  const [jobs, adapters] = await Promise.all([attempt(() => get('/api/jobs?limit=300')), loadAdapters()]);
  if (!jobs) return;
  const kept = current().jobs;
  change({ jobs: Object.fromEntries(jobs.map(job => [job.id, { ...kept[job.id], ...job }])) });
}

export async function loadAdapters() {
  const adapters = await attempt(() => get('/api/adapters'));
  if (adapters) change({ adapters });
  return adapters;
}

function open() {
  close();
  source = new EventSource(`/api/events${lastRow === null ? '' : `?after=${encodeURIComponent(lastRow)}`}`);
  source.onopen = () => change({ connection: 'live' });
  source.onmessage = message => {
    if (message.lastEventId) lastRow = message.lastEventId;
    apply(JSON.parse(message.data));
  };
  source.onerror = () => {
    change({ connection: 'lost' });
    // The browser tries again by itself unless the server refused.
    if (source?.readyState === EventSource.CLOSED) {
      close();
      clearTimeout(retry);
      retry = setTimeout(connect, RETRY_MS);
    }
  };
}

function close() {
  source?.close();
  source = null;
}

// A browser gives a host six connections for all tabs: hidden ones hold none.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) return close();
  if (current().server && !source) open();
  return undefined;
});

const withImage = (job, image) => {
  const images = job.results?.images ?? [];
  if (images.some(({ id }) => id === image.id)) return {};
  return { results: { ...job.results, images: [...images, image] } };
};

const withText = (job, { piece, at }) => {
  const text = job.results?.text ?? '';
  return { results: { ...job.results, text: (at === undefined ? text : text.slice(0, at)) + piece } };
};

const withFact = (facts = [], fact) => [...facts.filter(({ name }) => name !== fact.name), fact];

function apply(event) {
  switch (event.kind) {
    case 'reset': connect(); break;
    case 'job': tellJob(event.job); break;
    case 'deleted': forgetJob(event.id); break;
    case 'progress': setJob(event.id, { progress: event.progress, memory_bytes: event.memory_bytes }); break;
    case 'step': addMetrics(event.id, [event.metrics]); break;
    case 'image': setJob(event.id, job => withImage(job, event.image)); break;
    case 'text': setJob(event.id, job => withText(job, event)); break;
    case 'log': setJob(event.id, job => ({ log: [...(job.log ?? []), event.line].slice(-LOG_LINES) })); break;
    case 'warning': setJob(event.id, job => ({ warnings: [...new Set([...(job.warnings ?? []), event.sentence])] })); break;
    case 'fact': setJob(event.id, job => ({ facts: withFact(job.facts, event.fact) })); break;
    case 'adapters': loadAdapters(); break;
    default: break; // A newer server may tell more.
  }
}
