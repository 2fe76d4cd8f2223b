// The tab Library: adapters and runs; what is kept, renamed, taken home, deleted.
import { html, useEffect, useMemo, useState } from './html.js';
import { patch, post, remove } from './api.js';
import { ADAPTER_FILES, checkpointChoices, chooseCheckpoint, importAdapters, useAdapterInTry } from './adapters.js';
import { Accordion, Block, Button, Check, Choice, Copy, DropZone, Empty, Text } from './controls.js';
import { ask, askForm, askText, Dialog } from './dialogs.js';
import { loadAdapters } from './events.js';
import { bytes, counted, date } from './format.js';
import { act, isOver, isTraining, JobActions, JobProgress, KINDS, newestFirst, State } from './jobs.js';
import { go } from './route.js';
import { answeredJob, forgetJob, notify, useStore } from './store.js';

const FORMATS = {
  stable_diffusion: [
    ['kohya', 'kohya file', 'for ComfyUI (models/loras) and AUTOMATIC1111 (models/Lora)'],
    ['diffusers', 'diffusers file', 'for load_lora_weights'],
    ['peft', 'PEFT folder', 'a zip, for PeftModel.from_pretrained'],
  ],
  language: [['peft', 'PEFT folder', 'a zip, for PeftModel.from_pretrained']],
};

const LICENCES = ['', 'creativeml-openrail-m', 'openrail++', 'apache-2.0', 'mit', 'cc-by-4.0', 'cc-by-nc-4.0', 'other'];

/// Asks where to, and stays open until the upload is over: a token that was wrong is given anew in its place.
function Push({ adapter, done }) {
  const repo = adapter.name.replace(/[^\w.-]+/g, '-');
  const [form, setForm] = useState({ repo, token: '', isPrivate: true, license: adapter.license ?? '' });
  const [refusal, setRefusal] = useState(null);
  const [started, setStarted] = useState(null);
  const isPublic = useStore(state => state.server?.public);
  const job = useStore(state => state.jobs)[started];
  const isAtWork = job !== undefined && !isOver(job);
  const problem = refusal?.message ?? (job && isOver(job) ? job.error : null);
  useEffect(() => { if (job?.state === 'finished') done(job); }, [job?.state]);
  const set = changes => setForm(before => ({ ...before, ...changes }));
  const start = async () => {
    setRefusal(null);
    const { repo, token, isPrivate, license } = form;
    const body = { repo, private: isPrivate, license: license || null, ...(token && { token }) };
    try {
      const job = await answeredJob(post(`/api/adapters/${adapter.id}/push`, body));
      setStarted(job.id);
    } catch (refused) {
      setRefusal(refused);
    }
  };
  const stop = async () => {
    if (job.state !== 'queued') return act(job, 'stop');
    await remove(`/api/jobs/${job.id}`);
    return forgetJob(job.id);
  };
  return html`<${Dialog} title="Upload ${adapter.name} to the hub" onClose=${() => done(null)}>
    <${Text} id="push-repo" label="Repository" value=${form.repo} onChange=${repo => set({ repo })}
      hint="NAME, which is then yours, or OWNER/NAME; made if there is none." />
    <div class="field"><label for="push-token">Token</label><input id="push-token" class="input" type="password" autocomplete="off"
      value=${form.token}
      aria-describedby="push-token-hint" onInput=${event => set({ token: event.target.value })} />
      <p class="hint"
        id="push-token-hint">One that may write, from huggingface.co/settings/tokens. It is used once and never stored.${isPublic ? '' : ' Empty uses the server\'s HF_TOKEN.'}</p></div>
    <${Choice} id="push-license" label="Licence" value=${form.license} onChange=${license => set({ license })}
      choices=${LICENCES.map(value => ({ value, label: value || 'none said' }))} />
    <${Check} id="push-private" label="Private" checked=${form.isPrivate} onChange=${isPrivate => set({ isPrivate })}
      hint="Only you see it." />
    ${problem && html`<p class="notice error" role="alert">${problem}</p>`}
    ${isAtWork && html`<div role="status"><${JobProgress} job=${job} /></div>`}
    <div class="buttons">${isAtWork ? html`<${Button} onPress=${stop}>Stop<//>
      <${Button} onPress=${() => done(job)}>Close, it goes on<//>`
      : html`<${Button} onPress=${() => done(null)}>Cancel<//><${Button} kind="primary" disabled=${!form.repo.trim()}
        onPress=${start}>Upload<//>`}</div><//>`;
}

function Downloads({ adapter, open }) {
  const [step, setStep] = useState('');
  const more = step === '' ? '' : `&checkpoint=${step}`;
  return html`<${Accordion} title="Download" open=${open}>
    ${adapter.checkpoints?.length > 1 && html`<${Choice} id="download-${adapter.id}" label="Checkpoint" value=${step}
      onChange=${setStep}
      choices=${checkpointChoices(adapter)} />`}
    <ul class="downloads">${FORMATS[adapter.kind].map(([format, title, use]) => html`<li key=${format}>
      <a class="button secondary small" href="/api/adapters/${adapter.id}/download?format=${format}${more}"
        download="">${title}</a> <span class="hint">${use}</span></li>`)}</ul><//>`;
}

function Adapter({ adapter, selected }) {
  const tryIt = useAdapterInTry();
  useEffect(() => {
    if (selected) document.getElementById(`adapter-card-${adapter.id}`)?.scrollIntoView({ block: 'nearest' });
  }, [selected]);
  const rename = async () => {
    const name = await askText(`Rename ${adapter.name}`, 'Name', adapter.name);
    if (!name) return;
    await patch(`/api/adapters/${adapter.id}`, { name });
    await loadAdapters();
  };
  const drop = async () => {
    if (!await ask(`Delete ${adapter.name}?`, 'The adapter and its checkpoints are deleted from this server.', 'Delete')) return;
    await remove(`/api/adapters/${adapter.id}`);
    await loadAdapters();
  };
  const push = async () => {
    const job = await askForm(({ done }) => html`<${Push} adapter=${adapter} done=${done} />`);
    if (job?.id) go('watch', job.id);
  };
  return html`<li class="adapter-card ${selected ? 'selected' : ''}" id="adapter-card-${adapter.id}"><article
    aria-label=${adapter.name}>
    <div class="job-head"><h3>${adapter.name}</h3><span
      class="hint">${adapter.kind === 'language' ? 'language model' : 'Stable Diffusion'}</span></div>
    ${adapter.samples?.length > 0 && html`<ul class="strip">${adapter.samples.slice(0, 6).map((url, index) => html`<li
      key=${url}><img src=${url} alt="Sample ${index + 1} of ${adapter.name}"
      loading="lazy" decoding="async" width="96" height="96" /></li>`)}</ul>`}
    <dl class="facts"><div><dt>base model</dt><dd>${adapter.base_model ?? 'not said'}</dd></div>
      ${adapter.trigger && html`<div><dt>trigger</dt><dd>${adapter.trigger} <${Copy} text=${adapter.trigger} /></dd></div>`}
      <div><dt>made</dt><dd>${date(adapter.created)}</dd></div>
      ${adapter.steps > 0 && html`<div><dt>steps</dt><dd>${adapter.steps}</dd></div>`}
      ${adapter.rank > 0 && html`<div><dt>rank</dt><dd>${adapter.rank}</dd></div>`}
      <div><dt>size</dt><dd>${bytes(adapter.bytes)}</dd></div></dl>
    <div class="buttons"><${Button} kind="primary" onPress=${() => tryIt(adapter)}>Try<//><${Button} onPress=${rename}>Rename<//>
      <${Button} onPress=${push}>Upload to the hub<//>
      ${adapter.job && html`<a class="button secondary" href="#watch/${adapter.job}">Its run</a>`}<${Button}
        onPress=${drop}>Delete<//></div>
    <${Downloads} adapter=${adapter} open=${selected} />
    ${adapter.checkpoints?.length > 1 && html`<${Accordion} title=${counted(adapter.checkpoints.length, 'checkpoint')}><ul
      class="downloads">${adapter.checkpoints.map(({ step, chosen }) =>
      html`<li key=${step}>step ${step} ${chosen ? html`<span class="hint">the run's adapter</span>`
        : html`<${Button} kind="secondary small"
          onPress=${() => chooseCheckpoint(adapter.id, step)}>Make it the adapter<//>`}</li>`)}</ul><//>`}</article></li>`;
}

function Run({ job }) {
  const rename = async () => {
    const name = await askText(`Rename ${job.name}`, 'Name', job.name);
    if (name) await answeredJob(patch(`/api/jobs/${job.id}`, { name }), job.id);
  };
  return html`<li class="run"><div class="job-head"><a href="#watch/${job.id}">${job.name}</a><${State} job=${job} /><span
    class="hint">${KINDS[job.kind]} · ${date(job.created)}</span></div>
    ${job.error && html`<p class="notice error">${job.error}</p>`}
    <div class="buttons"><${Button} onPress=${rename}>Rename<//><${JobActions} job=${job} /></div></li>`;
}

export function Library({ id }) {
  const adapters = useStore(state => state.adapters);
  const jobs = useStore(state => state.jobs);
  const [busy, setBusy] = useState(false);
  const runs = useMemo(() => newestFirst(jobs, job => isTraining(job) && isOver(job)), [jobs]);
  const take = async files => {
    setBusy(true);
    try {
      await importAdapters(files);
    } finally {
      setBusy(false);
    }
  };
  return html`<div class="column">
    <${Block} tag="Adapters">${adapters?.length ? html`<ul class="cards">${adapters.map(adapter => html`<${Adapter}
      key=${adapter.id} adapter=${adapter} selected=${adapter.id === id} />`)}</ul>`
      : html`<${Empty}>${adapters === null ? 'Loading' : html`No adapter yet. <a
        href="#train">Train one</a>, or import a file.`}<//>`}<//>
    <${Block} tag="Import"><${DropZone} accept=${ADAPTER_FILES} multiple busy=${busy} onFiles=${take}
      title="Drop an adapter file here"
      hint="A zip of a PEFT folder, or a .safetensors file of diffusers or kohya." /><//>
    <${Block} tag="Runs">${runs.length ? html`<ul class="runs">${runs.map(job => html`<${Run} key=${job.id}
      job=${job} />`)}</ul>` : html`<${Empty}>No ended run yet.<//>`}<//>
  </div>`;
}
