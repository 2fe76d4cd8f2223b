// What is said of a job wherever it is shown: its state, how far it is, what can be done with it.
import { html, useEffect, useState } from './html.js';
import { get, patch, post, remove } from './api.js';
import { Button, Progress } from './controls.js';
import { ask } from './dialogs.js';
import { between, bytes, duration, number, ordinal, words } from './format.js';
import { go } from './route.js';
import { amend } from './settings.js';
import { answeredJob, forgetJob, useStore } from './store.js';
import { formOf } from './training_form.js';

export const KINDS = {
  train_dreambooth: 'DreamBooth training', train_llm: 'Language-model training', generate: 'Pictures', grid: 'Grid', complete: 'Text',
  push: 'Upload to the hub',
};

/// Uploads wait for one another alone; all else shares the device.
export const isUpload = job => job.kind === 'push';
export const isTraining = job => job.kind.startsWith('train_');
export const isLive = job => ['running', 'paused', 'stopping'].includes(job.state);
export const isOver = job => !isLive(job) && job.state !== 'queued';

/// Those jobs of which `wanted` holds, the newest first.
export const newestFirst = (jobs, wanted) => Object.values(jobs).filter(wanted).sort((a, b) => (a.created < b.created ? 1 : -1));

/// Jobs as they come: those at work, those that wait in their order, and the ended, newest first.
export function inOrder(jobs) {
  const all = newestFirst(jobs, () => true);
  const waiting = all.filter(job => job.state === 'queued').sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
  return [...all.filter(isLive), ...waiting, ...all.filter(isOver)];
}

export const State = ({ job }) => html`<span class="state ${job.state}">${job.state}</span>`;

/// Whole of a job from the server: warnings and log too.
export function useJob(id) {
  const job = useStore(state => state.jobs)[id] ?? null;
  const epoch = useStore(state => state.epoch);
  const [missing, setMissing] = useState(false);
  useEffect(() => {
    setMissing(false);
    if (!id || !epoch) return;
    answeredJob(get(`/api/jobs/${id}`), id).catch(error => { if (error.status === 404) setMissing(true); });
  }, [id, epoch]);
  return [job?.log || job?.created ? job : null, missing];
}

/// How far a job is, in a bar and in words.
export function JobProgress({ job }) {
  const { progress } = job;
  if (job.state === 'queued') {
    const wait = Number.isFinite(job.wait_seconds) ? `, about ${duration(job.wait_seconds)} to wait` : '';
    const place = isUpload(job) ? 'of the uploads that wait' : 'in the queue';
    return html`<p class="plan-line">${job.position > 0 ? `${ordinal(job.position)} ${place}${wait}` : 'Waits'}</p>`;
  }
  if (!isLive(job)) {
    const took = job.started && job.ended ? ` after ${duration(between(job.started, job.ended))}` : '';
    return html`<p class="plan-line">${job.state}${took}</p>`;
  }
  if (!progress) return html`<${Progress} label="Progress" /><p class="plan-line">Begins</p>`;
  const { phase, done, total, unit, seconds_left: left, rate } = progress;
  const known = total > 0;
  return html`<${Progress} label=${words(phase ?? 'Progress')} done=${done} total=${total} />
    <p class="plan-line"><strong>${known ? `${Math.floor((100 * done) / total)} %` : ''}</strong> ${words(phase ?? '')}
      ${known && `, ${done} of ${total} ${unit ?? ''}`}${rate > 0 && `, ${rate >= 1 ? `${number(rate, 2)} a second` : `${duration(1 / rate)} each`}`}
      ${job.memory_bytes > 0 && html`, ${bytes(job.memory_bytes)} of memory`}${job.state === 'paused'
        ? html`, <strong>paused</strong>` : Number.isFinite(left) && html`, <strong>${duration(left)} left</strong>`}</p>`;
}

const VERBS = {
  stop: { title: 'Stop', kind: 'stop' },
  pause: { title: 'Pause' },
  continue: { title: 'Continue', kind: 'primary' },
  resume: { title: 'Resume', kind: 'primary' },
  save: { title: 'Save now' },
};

const TRAINING = {
  running: ['stop', 'save', 'sample', 'pause'], paused: ['stop', 'save', 'sample', 'continue'],
  stopped: ['resume'], failed: ['resume'], interrupted: ['resume'],
};
const OTHER = { running: ['stop'], interrupted: ['resume'] };

/// The verbs that are possible now.
export const actionsOf = job => job.actions ?? (isTraining(job) ? TRAINING[job.state] : OTHER[job.state]) ?? [];

export const act = (job, verb, body) => answeredJob(post(`/api/jobs/${job.id}/${verb}`, body), job.id);

/// Pause and Continue are one button, which keeps the focus.
export function JobActions({ job }) {
  const possible = actionsOf(job).filter(verb => VERBS[verb]);
  const stop = async () => {
    const text = 'A checkpoint is saved first, and Resume goes on from there.';
    if (!isTraining(job) || await ask(`Stop ${job.name}?`, text, 'Stop')) await act(job, 'stop');
  };
  const edit = () => {
    const kind = job.kind === 'train_llm' ? 'text-train' : 'train';
    amend(kind, formOf(job, true));
    if (job.kind === 'train_llm') amend('text', { mode: 'train' });
    go(job.kind === 'train_llm' ? 'text' : 'train');
  };
  const drop = async () => {
    const queued = job.state === 'queued';
    const files = 'Its files on this server are deleted: settings, checkpoints, adapter, pictures.';
    const question = queued ? 'It is taken out of the queue.' : files;
    if (!await ask(`${queued ? 'Drop' : 'Delete'} ${job.name}?`, question, queued ? 'Drop' : 'Delete')) return;
    await remove(`/api/jobs/${job.id}`);
    forgetJob(job.id);
    if (location.hash.endsWith(job.id)) go('watch');
  };
  return html`<div class="buttons">
    ${possible.map(verb => html`<${Button} key=${verb === 'continue' ? 'pause' : verb} kind=${VERBS[verb].kind}
      onPress=${() => (verb === 'stop' ? stop() : act(job, verb))}>${VERBS[verb].title}<//>`)}
    ${job.state === 'queued' && isTraining(job) && html`<${Button} onPress=${edit}>Edit<//>`}
    ${(job.state === 'queued' || isOver(job)) && html`<${Button}
      onPress=${drop}>${job.state === 'queued' ? 'Drop' : 'Delete'}<//>`}</div>`;
}

/// Moves a waiting job up or down.
export const move = (job, by) =>
  answeredJob(patch(`/api/jobs/${job.id}`, { position: Math.max(1, (job.position ?? 1) + by) }), job.id);
