// The tab Watch: the queue, and one job as it goes.
import { html, useEffect, useMemo, useRef, useState } from './html.js';
import { Accordion, Block, Button, Code, Empty, Prose, Text, Warnings } from './controls.js';
import { LossChart } from './chart.js';
import { date, shortened, words } from './format.js';
import { act, actionsOf, inOrder, isLive, isTraining, isUpload, JobActions, JobProgress, KINDS, move, State, useJob } from './jobs.js';
import { loadMetrics } from './metrics.js';
import { Gallery, LIKENESS, likenessOf, likenessText } from './pictures.js';
import { go } from './route.js';
import { useSettings } from './settings.js';
import { notify, useStore } from './store.js';
import { GridTable } from './grid.js';
import { useAdapterInTry } from './adapters.js';
import { Answer } from './text_answer.js';

/// Ended jobs in the list; the rest is in the library.
const RECENT = 30;

function Row({ job, selected, waiting }) {
  const share = job.progress?.total > 0 && isLive(job) ? Math.floor((100 * job.progress.done) / job.progress.total) : null;
  return html`<li class="job-row ${selected ? 'selected' : ''}">
    <a href="#watch/${job.id}" aria-current=${selected ? 'true' : undefined}><span
      class="job-name">${shortened(job.name || KINDS[job.kind], 48)}</span>
      <span class="hint">${KINDS[job.kind] ?? words(job.kind)} · ${date(job.created)}</span></a>
    <span class="job-side"><${State} job=${job} />${share !== null && html`<span class="hint">${share} %</span>`}</span>
    ${job.state === 'queued' && waiting > 1 && html`<span class="movers">
      <${Button} kind="icon" disabled=${!(job.position > 1)} aria-label="Move ${job.name} up" onPress=${() => move(job, -1)}>↑<//>
      <${Button} kind="icon" disabled=${!(job.position < waiting)} aria-label="Move ${job.name} down"
        onPress=${() => move(job, 1)}>↓<//></span>`}</li>`;
}

function Queue({ jobs, selected }) {
  const now = jobs.filter(job => isLive(job) || job.state === 'queued');
  const ended = jobs.filter(job => !now.includes(job));
  const waiting = now.filter(job => job.state === 'queued');
  const behind = job => waiting.filter(other => isUpload(other) === isUpload(job)).length;
  const rows = list => list.map(job => html`<${Row} key=${job.id} job=${job} selected=${job.id === selected}
    waiting=${behind(job)} />`);
  return html`<nav class="queue" aria-label="Jobs">
    <h3 class="form-title">Now${waiting.length > 0 && ` (${waiting.length} waiting)`}</h3>
    ${now.length ? html`<ul class="job-list">${rows(now)}</ul>` : html`<p class="hint">Nothing is at work.</p>`}
    ${ended.length > 0 && html`<h3 class="form-title">Ended</h3><ul class="job-list">${rows(ended.slice(0, RECENT))}</ul>`}</nav>`;
}

/// A prompt drawn with the weights as they are.
function SampleNow({ job }) {
  const paused = job.state === 'paused';
  const [prompt, setPrompt] = useState('');
  const [seed, setSeed] = useState('');
  const usual = job.options?.validation_prompt || job.options?.instance_prompt || '';
  const draw = async () => {
    const body = { prompt: prompt || usual };
    if (seed.trim()) body.seed = Number(seed);
    await act(job, 'sample', body);
    notify('The picture comes among the samples.');
  };
  return html`<${Accordion} title=${paused ? 'Try a prompt with the weights as they are' : 'Sample now'} must=${paused}><div>
    <${Prose} id="sample-prompt" label="Prompt" value=${prompt} placeholder=${usual} onChange=${setPrompt} onSubmit=${draw} />
    <${Text} id="sample-seed" label="Seed" numeric value=${seed} placeholder="the run's own" onChange=${setSeed} />
    <div class="field"><div class="buttons"><${Button} kind=${paused ? 'primary' : 'secondary'}
      onPress=${draw}>${paused ? 'Draw' : 'Sample now'}<//>
    <p class="hint">${paused ? 'Continue goes on where the run stopped.' : 'Pause stops the steps meanwhile; Continue goes on.'}</p></div></div></div><//>`;
}

function Samples({ job }) {
  const images = job.results?.images ?? [];
  const measured = images.some(likenessOf);
  const byStep = useMemo(() => [...images].sort((a, b) => (a.step ?? 0) - (b.step ?? 0)), [images]);
  if (!images.length) return html`<p class="hint">Samples show here, drawn with the same seed each time.</p>`;
  return html`<${Gallery} images=${byStep} label="Samples by step"
    caption=${image => html`<strong>${image.step === null || image.step === undefined ? '' : `step ${image.step}`}</strong>
    ${likenessOf(image) && html`<span>${likenessText(likenessOf(image))}</span>`}`} />
    ${measured && html`<${Accordion} title="What the likeness is"><p>${LIKENESS}</p><//>`}`;
}

function Log({ lines }) {
  const place = useRef();
  useEffect(() => { place.current.scrollTop = place.current.scrollHeight; }, [lines]);
  return html`<pre class="log" ref=${place} tabindex="0" role="region" aria-label="Log">${lines.join('\n')}</pre>`;
}

const Facts = ({ facts }) => html`<dl class="facts">${facts.map(({ name, text }) => html`<div
  key=${name}><dt>${words(name)}</dt><dd>${text}</dd></div>`)}</dl>`;

const Settings = ({ job }) => html`<${Facts} facts=${Object.entries(job.options ?? {}).map(([name, value]) =>
  ({ name, text: typeof value === 'object' ? JSON.stringify(value) : String(value) }))} />`;

function Done({ job }) {
  const adapter = useStore(state => state.adapters)?.find(({ id }) => id === job.results?.adapter);
  const tryIt = useAdapterInTry();
  if (!adapter) return null;
  return html`<div class="buttons"><${Button} kind="primary" onPress=${() => tryIt(adapter)}>Try the adapter<//>
    <a class="button secondary" href="#library/${adapter.id}">Download it</a></div>`;
}

function Detail({ id }) {
  const [job, missing] = useJob(id);
  const training = job !== null && isTraining(job);
  const epoch = useStore(state => state.epoch);
  useEffect(() => { if (training) loadMetrics(id); }, [id, training, epoch]);
  if (missing) return html`<${Empty}>There is no such job: it was deleted, or the link is of another server.<//>`;
  if (!job) return html`<p class="hint" role="status">Loading</p>`;
  const images = job.results?.images ?? [];
  return html`<article class="column" aria-labelledby="job-title">
    <div class="job-head"><h2 id="job-title">${job.name || KINDS[job.kind]}</h2><${State} job=${job} /></div>
    <section class="block" aria-label="Progress"><${JobProgress} job=${job} />
      ${job.error && html`<p class="notice error" role="alert">${job.error}</p>`}<${Done} job=${job} /><${JobActions} job=${job} /></section>
    <${Warnings} warnings=${job.warnings} />
    ${job.kind === 'train_dreambooth' && html`<${Block} tag=${`Samples${images.length ? `: ${images.length}` : ''}`}><${Samples}
      job=${job} />
      ${actionsOf(job).includes('sample') && html`<${SampleNow} job=${job} />`}<//>`}
    ${training && html`<${Block} tag="Loss"><${LossChart} id=${id} /><//>`}
    ${job.kind === 'grid' && html`<${Block} tag="Grid"><${GridTable} job=${job} /><//>`}
    ${job.kind === 'generate' && images.length > 0 && html`<${Block} tag="Pictures"><${Gallery} images=${images}
      label="Pictures" /><//>`}
    ${job.kind === 'push' && job.results?.text && html`<p class="notice">It is at <a href=${job.results.text}>${job.results.text}</a>.</p>`}
    ${job.kind === 'complete' && html`<${Answer} job=${job} />`}
    ${job.log?.length > 0 && html`<${Accordion} title="Log" open=${true}><${Log} lines=${job.log} /><//>`}
    ${job.facts?.length > 0 && html`<${Accordion} title="About this run"><${Facts} facts=${job.facts} /><//>`}
    <${Accordion} title="Its settings"><${Settings} job=${job} /><//>
    ${job.command && html`<${Accordion} title="The command line of this run"><${Code} label="Command line"
      text=${job.command} /><//>`}</article>`;
}

export function Watch({ id }) {
  const all = useStore(state => state.jobs);
  const jobs = useMemo(() => inOrder(all), [all]);
  const shown = id ?? jobs.find(isTraining)?.id ?? jobs[0]?.id ?? null;
  if (!shown) return html`<${Empty}>No job yet. <a href="#train">Train a subject</a>, or <a href="#try">draw a picture</a>.<//>`;
  return html`<div class="list-and-detail"><${Queue} jobs=${jobs} selected=${shown} /><${Detail} key=${shown} id=${shown} /></div>`;
}
