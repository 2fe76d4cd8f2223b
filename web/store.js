// What the page knows of the server, and who is told when it changes.
import { useEffect, useRef, useState } from './html.js';

let state = {
  server: null,        // GET /api/state
  signIn: false,       // whether the server asks who this is
  connection: 'new',   // new, live, lost
  epoch: 0,            // counts the times when all was loaded again
  jobs: {},            // by id
  adapters: null,
  options: {},         // GET /api/options by kind
  sets: {},            // photos and records by id
  notices: [],
};
const listeners = new Set();
let scheduled = false;

export const current = () => state;

/// Changes some of the state; listeners hear of it once a frame, however many changes there were.
export function change(changes) {
  state = { ...state, ...(typeof changes === 'function' ? changes(state) : changes) };
  if (scheduled) return;
  scheduled = true;
  const tell = () => {
    if (!scheduled) return;
    scheduled = false;
    listeners.forEach(listener => listener());
  };
  requestAnimationFrame(tell);
  // A hidden page has no frames.
  setTimeout(tell, 200);
}

/// A part of the state, which renders the component again when it is another one.
export function useStore(select) {
  const [, render] = useState(0);
  const selected = select(state);
  const latest = useRef();
  latest.current = { select, selected };
  useEffect(() => {
    const listener = () => {
      const { select, selected } = latest.current;
      if (!Object.is(select(state), selected)) render(count => count + 1);
    };
    // It may have changed between the rendering and now.
    listener();
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return selected;
}

export const setJob = (id, update) =>
  change(({ jobs }) => ({ jobs: { ...jobs, [id]: { ...jobs[id], ...(typeof update === 'function' ? update(jobs[id] ?? {}) : update) } } }));

/// How often the stream told of each job.
const told = new Map();

/// Takes in a job as the stream tells of it.
export const tellJob = job => {
  told.set(job.id, (told.get(job.id) ?? 0) + 1);
  setJob(job.id, job);
};

/// Waits for a request that answers with a job, the one called `id` if it was there before; what the stream told of it meanwhile is
/// newer than the answer.
export async function answeredJob(request, id = null) {
  const before = told.get(id) ?? 0;
  const job = await request;
  if (!job?.id) return job;
  const isNewer = (told.get(job.id) ?? 0) > (job.id === id ? before : 0);
  setJob(job.id, known => (isNewer ? { ...job, ...known } : job));
  return job;
}

export const forgetJob = id => change(({ jobs: { [id]: _, ...jobs } }) => ({ jobs }));

export const setPhotos = set => change(({ sets }) => ({ sets: { ...sets, [set.id]: set } }));

let notices = 0;

/// Tells the person something in a line that goes away by itself; errors stay until they are closed.
export function notify(text, kind = 'info') {
  const id = ++notices;
  change(state => ({ notices: [...state.notices.filter(notice => notice.text !== text), { id, text, kind }].slice(-4) }));
  if (kind !== 'error') setTimeout(() => dismiss(id), 6000);
}

export const dismiss = id => change(({ notices }) => ({ notices: notices.filter(notice => notice.id !== id) }));

/// Runs what may be refused, and says why if it was; undefined then.
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name === 'AbortError') return undefined;
    if (error.status === 401) change({ signIn: true });
    else notify(error.message, 'error');
    return undefined;
  }
}
