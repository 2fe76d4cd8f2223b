// The form that both trainings share: model, presets, options, plan, start; or the changes of a job that still waits.
import { html, useEffect, useMemo, useState } from './html.js';
import { patch, post } from './api.js';
import { Button, Choice, Form, Text } from './controls.js';
import { allFields, isChanged, ModelChoice, modelOf, OptionField, OptionGroups, toOptions, useOptions } from './fields.js';
import { newestFirst } from './jobs.js';
import { PlanPanel, usePlan } from './plan.js';
import { go } from './route.js';
import { answeredJob, current, notify, useStore } from './store.js';

/// What a training form holds before anybody typed.
export const EMPTY_FORM = { model: null, name: '', set: null, preset: null, values: {}, samples: true, editing: null };

/// What a run's settings are as a form, to be started once more or changed.
export const formOf = (job, editing = false) => {
  const { model = null, ...values } = job.options ?? {};
  const samples = values.validation_prompt !== '';
  return { ...EMPTY_FORM, model, values, samples, set: job.set ?? null, name: editing ? job.name : '', editing: editing ? job.id : null };
};

function Presets({ presets, chosen, onChoose }) {
  if (!presets?.length) return null;
  return html`<fieldset class="presets"><legend>What it learns</legend>${presets.map(preset => html`<label key=${preset.name}
    class="preset">
    <input type="radio" name="preset" checked=${chosen === preset.name} onChange=${() => onChoose(preset)} />
    <span><strong>${preset.title}</strong><span class="hint">${preset.sentence}</span></span></label>`)}</fieldset>`;
}

function CopySettings({ kind, onCopy }) {
  const jobs = useStore(state => state.jobs);
  const runs = useMemo(() => newestFirst(jobs, job => job.kind === kind), [jobs]);
  if (!runs.length) return null;
  return html`<${Choice} id="copy-from" label="Copy settings from a run" value="" onChange=${id => id && onCopy(current().jobs[id])}
    choices=${[{ value: '', label: 'Choose a run …' }, ...runs.map(job => ({ value: job.id, label: `${job.name} (${job.state})` }))]} />`;
}

/// `sections`: [{title, fields, needs, head}]; `more` is sent with the options; `lacking` says what must come before a start;
/// `children` stands above everything.
export function TrainingForm({ kind, jobKind, modelKind, form, change, sections, lacking, more = {}, placeholders = {}, children }) {
  const options = useOptions(kind);
  const server = useStore(state => state.server);
  const editing = useStore(state => state.jobs[form.editing]);
  const model = modelOf(server, modelKind, form.model);
  const fields = useMemo(() => new Map(allFields(options).map(field => [field.name, field])), [options]);
  const values = form.values;
  const setValues = changes => change(before => ({ values: { ...before.values, ...changes } }));
  const on = name => (name in values ? values[name] === true || values[name] === 'true' : fields.get(name)?.default === true);
  // What a box that is not ticked hides is not meant.
  const needed = Object.assign({}, ...sections.map(section => section.needs));
  const meant = Object.fromEntries(Object.entries(values).filter(([name]) => !needed[name] || on(needed[name])));
  const sent = options && { model, ...toOptions(options, meant), ...more };
  const answer = usePlan(sent && server ? { kind, set: form.set, options: sent } : null);
  const [tried, setTried] = useState(false);
  // What the start itself was refused for, until something is changed.
  const [refused, setRefused] = useState(null);
  const refusal = answer.refusal ?? (refused && refused.sent === JSON.stringify(sent) ? refused.refusal : null);
  const wrong = refusal?.field ?? null;
  // Nobody has written it yet; or the plan of a model of the hub that is not here yet, which a job fetches.
  const isUnfetched = wrong === 'model' && refusal === answer.refusal && model.includes('/');
  const isBlank = wrong !== null && !String(wrong === 'model' ? model : values[wrong] ?? '').trim();
  const missing = isUnfetched || (isBlank && !tried);
  const errors = wrong && !missing ? { [wrong]: refusal.message } : {};
  const isShown = ({ needs = {} }, name) => fields.has(name) && (!needs[name] || on(needs[name]));
  const shown = sections.flatMap(section => section.fields);

  // A job that is changed here may begin, or be dropped, meanwhile.
  useEffect(() => {
    if (form.editing && editing && editing.state !== 'queued') change({ editing: null });
  }, [editing?.state]);

  const presets = options?.presets.filter(preset => !preset.model || preset.model === model);
  // What the preset before it set goes, but for what was changed since.
  const choosePreset = preset => change(before => {
    const last = options.presets.find(({ name }) => name === before.preset)?.values ?? {};
    const kept = Object.entries(before.values).filter(([name, value]) => !(name in last) || String(last[name]) !== String(value));
    return { preset: preset.name, values: { ...Object.fromEntries(kept), ...preset.values } };
  });
  // A model that has settings of its own starts with them.
  useEffect(() => {
    const own = options?.presets.find(preset => preset.model && preset.model === model);
    if (own && form.preset === null && !Object.keys(values).length) choosePreset(own);
  }, [options, model, form.preset]);
  const copy = job => {
    change(formOf(job));
    notify(`The settings of ${job.name} are in the form.`);
  };
  const start = async () => {
    setTried(true);
    if (lacking) return notify(lacking, 'error');
    if (!sent) return undefined;
    try {
      return await submit();
    } catch (refusal) {
      if (!refusal.field || refusal.field === 'set') throw refusal;
      setRefused({ refusal, sent: JSON.stringify(sent) });
      return document.getElementById(`option-${refusal.field}`)?.focus();
    }
  };
  const submit = async () => {
    if (form.editing && editing) {
      await answeredJob(patch(`/api/jobs/${form.editing}`, { options: sent, name: form.name || undefined }), form.editing);
      change({ editing: null, name: '' });
      return go('watch', editing.id);
    }
    const job = await answeredJob(post('/api/jobs', { kind: jobKind, name: form.name || undefined, set: form.set, options: sent }));
    change({ name: '' });
    return go('watch', job.id);
  };

  return html`<div class="two-columns"><div class="column">
    ${form.editing && html`<p class="notice">These are the settings of ${editing?.name ?? 'a run'}, which waits in the queue.
      <${Button} kind="secondary small" onPress=${() => change(EMPTY_FORM)}>Leave it as it was<//></p>`}
    ${children}
    <${Form}>
      <${ModelChoice} kind=${modelKind} value=${form.model} onChange=${next => change({ model: next })} error=${errors.model} />
      <${Presets} presets=${presets} chosen=${form.preset} onChoose=${choosePreset} />
    <//>
    ${sections.map(section => html`<${Form} key=${section.title}><h3 class="form-title">${section.title}</h3>${section.head}
      <div class=${section.wide ? '' : 'columns'}>${section.fields.filter(name => isShown(section, name))
        .map(name => html`<${OptionField} key=${name} field=${fields.get(name)} values=${values} errors=${errors}
          onChange=${setValues}
          placeholder=${placeholders[name]} />`)}</div><//>`)}
    <h3 class="form-title">Everything else</h3>
    <${OptionGroups} options=${options} values=${values} errors=${errors} without=${shown} onChange=${setValues} />
  </div><div class="column side">
    <${PlanPanel} answer=${{ ...answer, refusal }} missing=${missing} action=${form.editing ? 'Save the changes' : 'Train'}
      onStart=${start}
      onSuggestion=${setValues}>
      <${Text} id="run-name" label="Name of the run" value=${form.name} placeholder="my-subject"
        onChange=${name => change({ name })}
        hint="Optional; the adapter's file is called so." />
    <//>
    <${Form}><${CopySettings} kind=${jobKind} onCopy=${copy} />
      <div class="field"><${Button} onPress=${() => change({ ...EMPTY_FORM, set: form.set, model: form.model })}
        disabled=${!allFields(options).some(field => isChanged(field, values))}>All settings back to their defaults<//></div><//>
  </div></div>`;
}
