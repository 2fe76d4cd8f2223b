// The tab Try: pictures of a prompt, with any number of adapters.
import { html, useMemo } from './html.js';
import { post } from './api.js';
import { AdapterList } from './adapters.js';
import { Accordion, Block, Button, Check, Choice, Form, Prose, showResults, Slider, Text } from './controls.js';
import { allFields, ModelChoice, modelOf, OptionGroups, toOptions, useOptions } from './fields.js';
import { shortened } from './format.js';
import { GridForm, GridTable } from './grid.js';
import { isLive, JobActions, JobProgress, newestFirst } from './jobs.js';
import { Gallery } from './pictures.js';
import { useSettings } from './settings.js';
import { answeredJob, useStore } from './store.js';

const EMPTY = {
  model: null, adapters: [], prompt: '', negative_prompt: '', steps: null, guidance: null, seed: '0', random: true, width: null,
  height: null, sampler: '', number: 1, values: {},
};
/// Options that have a place of their own.
const SHOWN = ['prompt', 'negative_prompt', 'steps', 'guidance', 'sampler', 'width', 'height', 'number', 'lora', 'model', 'seed'];
/// Pictures that the gallery shows; older ones are in their jobs.
const MOST = 500;
const NATIVE = 512;

/// What is said of a field by the server: its default, its choices, its sentence.
const said = (options, ...names) => allFields(options).find(field => names.includes(field.name)) ?? {};

export function Try() {
  const [form, change] = useSettings('try', EMPTY);
  const options = useOptions('generate');
  const server = useStore(state => state.server);
  const adapters = useStore(state => state.adapters) ?? [];
  const jobs = useStore(state => state.jobs);
  const drawn = useMemo(() => newestFirst(jobs, ({ kind }) => kind === 'generate' || kind === 'grid'), [jobs]);
  const model = modelOf(server, 'stable_diffusion', form.model);
  const native = server?.models.find(({ id }) => id === model)?.native_size ?? NATIVE;
  const steps = said(options, 'steps');
  const guidance = said(options, 'guidance', 'guidance_scale');
  const sampler = said(options, 'sampler', 'scheduler');
  const usual = { steps: steps.default ?? 30, guidance: guidance.default ?? 7.5, width: native, height: native, number: 1 };
  const known = form.adapters.filter(({ id }) => adapters.some(adapter => adapter.id === id));
  const ready = model !== '' && form.prompt.trim() !== '';
  const wrongSeed = !form.random && !/^\d+$/.test(String(form.seed).trim());
  const wanted = {
    model, adapters: known, prompt: form.prompt, negative_prompt: form.negative_prompt, seed: form.random ? null : Number(form.seed),
    steps: form.steps ?? usual.steps, guidance: form.guidance ?? usual.guidance, width: form.width ?? native,
    height: form.height ?? native, sampler: form.sampler || null, number: form.number, ...toOptions(options, form.values),
  };
  const start = async (kind, more = {}) => {
    await answeredJob(post('/api/jobs', { kind, name: shortened(form.prompt, 80), options: { ...wanted, ...more } }));
    showResults();
  };
  const draw = () => start('generate');
  const now = drawn.filter(job => isLive(job) || job.state === 'queued').reverse();
  const failed = drawn[0]?.state === 'failed' ? drawn[0] : null;
  const grid = drawn.find(job => job.kind === 'grid' && job.results?.images?.length);
  const imagesOf = job => (job.kind === 'generate' ? [...(job.results?.images ?? [])].reverse() : []);
  const images = useMemo(() => drawn.flatMap(imagesOf).slice(0, MOST), [drawn]);
  const field = (spec, key, min, max, step, label) => html`<${Slider} id="try-${key}" label=${label}
    value=${form[key] ?? usual[key]} initial=${usual[key]} min=${min} max=${max} step=${step} hint=${spec?.help}
    onChange=${value => change({ [key]: value })} />`;
  return html`<div class="two-columns even"><div class="column">
    <${Form}>
      <${Prose} id="prompt" label="Prompt" value=${form.prompt} placeholder="a photo of sks dog on the moon" required
        onChange=${prompt => change({ prompt })}
        onSubmit=${() => ready && draw()} hint="What the picture shows. Ctrl+Enter draws." />
      <${Prose} id="negative-prompt" label="Negative prompt" rows="1" value=${form.negative_prompt}
        onChange=${text => change({ negative_prompt: text })}
        hint="What it must not show." />
      <${ModelChoice} kind="stable_diffusion" id="try-model" value=${form.model} onChange=${next => change({ model: next })} />
    <//>
    <${Form}><${AdapterList} kind="stable_diffusion" chosen=${form.adapters} onChange=${next => change({ adapters: next })} /><//>
    <${Form}><div class="columns">
      ${field(steps, 'steps', 1, 100, 1, 'Sampling steps')}
      ${field(guidance, 'guidance', 1, 20, 0.5, 'Guidance')}
      ${field(null, 'number', 1, server?.limits?.max_pictures ?? 16, 1, 'Pictures')}
      <div class="field"><${Check} id="random" label="A random seed each time" checked=${form.random}
        onChange=${random => change({ random })} />
        ${!form.random && html`<${Text} id="seed" label="Seed" numeric value=${String(form.seed)}
          onChange=${seed => change({ seed })}
          error=${wrongSeed ? 'A seed is a whole number from 0 on.' : null}
          hint="The same seed draws the same picture." />`}</div></div>
      <${Accordion} title="Size and sampler"><div class="columns">
        ${field(null, 'width', 64, 2 * native, 8, 'Width')}${field(null, 'height', 64, 2 * native, 8, 'Height')}
        <${Choice} id="sampler" label="Sampler" hint=${sampler.help} value=${form.sampler}
          onChange=${next => change({ sampler: next })}
          choices=${[{ value: '', label: "the model's own" }, ...(sampler.choices ?? [])]} /></div><//>
    <//>
    <${OptionGroups} prefix="try" options=${options} values=${form.values} without=${SHOWN}
      onChange=${changes => change(before => ({ values: { ...before.values, ...changes } }))} />
    <${Button} kind="primary wide" disabled=${!ready || wrongSeed} onPress=${draw}>Draw<//>
    ${!ready && html`<p class="hint">${model === '' ? 'Choose a base model first.' : 'Write a prompt first.'}</p>`}
    <${GridForm} adapter=${adapters.find(({ id }) => id === known[0]?.id)} ready=${ready && !wrongSeed}
      onDraw=${more => start('grid', more)} />
  </div><div class="column side results">
    ${now.map(job => html`<section key=${job.id} class="block" aria-label="At work"><p
      class="job-name">${job.name}</p><${JobProgress} job=${job} /><${JobActions} job=${job} /></section>`)}
    ${failed && html`<p class="notice error" role="alert">${failed.error}</p>`}
    ${grid && html`<${Block} tag="The last grid"><${GridTable} job=${grid} /><//>`}
    <${Block} tag="Pictures">${images.length ? html`<${Gallery} images=${images} label="Pictures, newest first"
      caption=${image => `seed ${image.parameters?.seed ?? '?'}`} />`
      : html`<p class="empty">Your pictures show here, one by one.</p>`}<//>
  </div></div>`;
}
