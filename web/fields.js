// Fields from what GET /api/options tells: the flags of the command line, with their sentences.
import { html, useEffect } from './html.js';
import { get } from './api.js';
import { Accordion, Check, Choice, Text } from './controls.js';
import { counted, words } from './format.js';
import { attempt, change, current, useStore } from './store.js';

/// {groups, presets} of a kind of job, once they are here.
export function useOptions(kind) {
  const options = useStore(state => state.options[kind]);
  const epoch = useStore(state => state.epoch);
  useEffect(() => {
    if (current().options[kind]) return;
    attempt(async () => {
      const loaded = await get(`/api/options/${kind}`);
      change(state => ({ options: { ...state.options, [kind]: loaded } }));
    });
  }, [kind, epoch]);
  return options;
}

export const allFields = options => options?.groups.flatMap(({ fields }) => fields) ?? [];

const text = value => {
  if (value === null || value === undefined) return '';
  if (Array.isArray(value)) return value.join(',');
  if (typeof value === 'object') return Object.entries(value).map(([name, item]) => `${name}=${item}`).join(',');
  return String(value);
};

/// Whether a field holds something else than its default.
export const isChanged = (field, values) =>
  field.name in values && text(values[field.name]).trim() !== text(field.default) && text(values[field.name]).trim() !== '';

/// What a field's text means; what is none stays text, and the server says so in its sentence.
function meant(field, value) {
  const written = text(value).trim();
  switch (field.kind) {
    case 'flag': return value === true || written === 'true';
    case 'number':
    case 'integer': return Number.isFinite(Number(written)) ? Number(written) : written;
    case 'list': return Array.isArray(value) ? value : written.split(',').map(part => part.trim()).filter(Boolean);
    default: return typeof value === 'object' ? value : written;
  }
}

/// The options that a request carries: only what differs from the defaults.
export const toOptions = (options, values) => Object.fromEntries(allFields(options)
  .filter(field => isChanged(field, values)).map(field => [field.name, meant(field, values[field.name])]));

const LABELS = {
  lr_scheduler: 'Learning-rate schedule', lora_r: 'Rank', lora_alpha: 'Alpha', max_train_steps: 'Steps',
  num_validation_images: 'Number of samples', lora_text_encoder_r: 'Rank, text encoder', lora_text_encoder_alpha: 'Alpha, text encoder',
  num_class_images: 'Number of class images',
  with_prior_preservation: 'Prior preservation', validation_prompt: 'Prompt of the samples', validation_steps: 'Steps between samples',
  instance_prompt: 'Instance prompt', mixed_precision: 'Precision', use_8bit_adam: '8-bit AdamW',
};

const named = field => LABELS[field.name] ?? field.label ?? words(field.name);

/// One option with its label, its sentence and a way back to its default.
export function OptionField({ field, values, onChange, errors = {}, placeholder, label, prefix = 'option' }) {
  const value = values[field.name];
  const set = next => onChange({ [field.name]: next });
  const title = label ?? named(field);
  const hint = field.help === title ? null : field.help;
  const shared = { id: `${prefix}-${field.name}`, label: title, hint, error: errors[field.name] };
  const reset = isChanged(field, values) && html`<button type="button" class="icon" title="Back to the default"
    aria-label="${shared.label}: back to the default" onClick=${() => set(undefined)}>↺</button>`;
  if (field.kind === 'flag') {
    return html`<${Check} ...${shared} checked=${value === undefined ? field.default === true : value === true || value === 'true'}
      onChange=${set} />`;
  }
  if (field.kind === 'choice') {
    const chosen = value ?? field.default;
    const help = field.choices.find(choice => choice.value === chosen)?.help;
    const choices = field.choices.map(choice => ({ value: choice.value, label: choice.label ?? choice.value }));
    if (field.default === null || field.default === undefined) choices.unshift({ value: '', label: placeholder ?? 'default' });
    return html`<${Choice} ...${shared} reset=${reset} hint=${help ? `${field.help} – ${help}` : field.help} value=${chosen ?? ''}
      choices=${choices} onChange=${set} />`;
  }
  return html`<${Text} ...${shared} reset=${reset} numeric=${field.kind === 'number' || field.kind === 'integer'}
    value=${text(value)}
    placeholder=${placeholder ?? text(field.default)} onChange=${set} />`;
}

/// All options but those shown elsewhere, an accordion a group.
export function OptionGroups({ options, values, onChange, errors = {}, without = [], prefix }) {
  const groups = (options?.groups ?? [])
    .map(({ title, fields }) => ({ title, fields: fields.filter(({ name }) => !without.includes(name)) }))
    .filter(({ fields }) => fields.length);
  return html`<div class="accordions">${groups.map(({ title, fields }) => {
    const changed = fields.filter(field => isChanged(field, values)).length;
    return html`<${Accordion} key=${title} title=${title} note=${changed > 0 && counted(changed, 'change')}
      must=${fields.some(({ name }) => errors[name])}>
      <div class="columns">${fields.map(field => html`<${OptionField} key=${field.name} field=${field} values=${values}
        onChange=${onChange}
        errors=${errors} prefix=${prefix} />`)}</div><//>`;
  })}</div>`;
}

/// A model of this machine, or one of the hub by its name.
export function ModelChoice({ kind, value, onChange, error, id = 'model', hint }) {
  const models = useStore(state => state.server?.models) ?? [];
  const own = models.filter(model => model.kind === kind);
  const isPublic = useStore(state => state.server?.public);
  const listed = own.some(model => model.id === value);
  const choices = own.map(model => ({ value: model.id, label: `${model.name} (${SOURCES[model.source] ?? model.source})` }));
  if (!isPublic) choices.push({ value: 'hub', label: 'Another model of the hub …' });
  const chosen = listed ? value : value === null ? own[0]?.id ?? 'hub' : 'hub';
  // Undefined is left undefined: no model is here and none was named.
  return html`<${Choice} id=${id} label="Base model" hint=${hint} error=${listed || chosen !== 'hub' ? error : undefined}
    value=${chosen}
    choices=${choices} onChange=${next => onChange(next === 'hub' ? '' : next)} />
  ${chosen === 'hub' && html`<${Text} id="${id}-hub" label="Model on the hub" value=${value ?? ''} error=${error}
    onChange=${onChange}
    placeholder=${EXAMPLES[kind]}
    hint="OWNER/NAME on huggingface.co; it is fetched when the job starts, several gigabytes." />`}`;
}

const EXAMPLES = {
  stable_diffusion: 'stable-diffusion-v1-5/stable-diffusion-v1-5', language: 'HuggingFaceTB/SmolLM2-135M-Instruct',
};
const SOURCES = { demo: 'built in', folder: 'on this machine', cache: 'in the hub cache' };

/// The model that a form means: what was chosen, or the first of this machine.
export const modelOf = (server, kind, value) =>
  value || (value === null ? server?.models.find(model => model.kind === kind)?.id : '') || '';
