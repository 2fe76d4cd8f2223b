// Which adapters a picture or a text is made with, and how strongly.
import { html, useMemo } from './html.js';
import { patch, upload } from './api.js';
import { Button, Choice, DropZone, Slider } from './controls.js';
import { counted } from './format.js';
import { loadAdapters } from './events.js';
import { go } from './route.js';
import { amend } from './settings.js';
import { current, notify, useStore } from './store.js';

export const ADAPTER_FILES = '.zip,.safetensors';

/// Takes adapter files into the library; the adapters that they are.
export async function importAdapters(files) {
  const taken = [];
  for (const file of files) taken.push(await upload('/api/adapters', 'file', [file]));
  await loadAdapters();
  notify(`${counted(taken.length, 'adapter')} imported: ${taken.map(({ name }) => name).join(', ')}.`);
  return taken;
}

/// A function that opens an adapter where it is tried, with its base model and its trigger.
export function useAdapterInTry() {
  const models = useStore(state => state.server?.models) ?? [];
  return (adapter, checkpoint = null) => {
    const model = models.find(({ id, name }) => id === adapter.base_model || name === adapter.base_model)?.id;
    const changes = { adapters: [{ id: adapter.id, checkpoint, strength: 1 }], ...(model && { model }) };
    if (adapter.kind === 'language') {
      amend('text', { mode: 'complete', ...changes });
      return go('text');
    }
    const { trigger } = adapter;
    // Samples of the run were drawn with it.
    const guidance = current().jobs[adapter.job]?.options?.guidance_scale ?? null;
    amend('try', before => ({ ...changes, guidance, ...(trigger && !before.prompt?.includes(trigger) && { prompt: trigger }) }));
    return go('try');
  };
}

/// Makes a checkpoint the adapter of its run.
export async function chooseCheckpoint(id, step) {
  await patch(`/api/adapters/${id}`, { checkpoint: step });
  await loadAdapters();
  notify(`The adapter is that of step ${step} now.`);
}

/// The checkpoints of an adapter to choose from; '' stands for the one that is its run's adapter.
export const checkpointChoices = ({ checkpoints }) => [
  { value: '', label: "the run's adapter" },
  ...checkpoints.map(({ step, chosen }) => ({ value: String(step), label: `step ${step}${chosen ? ' (its adapter)' : ''}` })),
];

const whole = ({ id }) => ({ id, checkpoint: null, strength: 1 });

function Chosen({ adapter, entry, onChange, onRemove, index }) {
  const id = `adapter-${index}`;
  const name = adapter?.name ?? 'an adapter that is gone';
  const checkpoints = adapter?.checkpoints ?? [];
  return html`<li class="adapter" aria-label=${name}><div class="label-row"><strong>${name}</strong>
    <${Button} kind="round" aria-label="Take ${name} away" title="Take away" onPress=${onRemove}>×<//></div>
    ${adapter?.trigger && html`<p class="hint">Trigger: ${adapter.trigger}</p>`}
    ${checkpoints.length > 1 && html`<${Choice} id="${id}-checkpoint" label="Checkpoint"
      value=${entry.checkpoint === null ? '' : String(entry.checkpoint)}
      onChange=${step => onChange({ checkpoint: step === '' ? null : Number(step) })}
      choices=${checkpointChoices(adapter)} />`}
    <${Slider} id="${id}-strength" label="Strength" value=${entry.strength} initial=${1} min=${0} max=${2} step=${0.05}
      onChange=${strength => onChange({ strength })} /></li>`;
}

const labelOf = ({ name, base_model: base }) => (base ? `${name} (${base})` : name);

/// The chosen adapters, and the way to more; `kind` is that of the model.
export function AdapterList({ kind, chosen, onChange }) {
  const adapters = useStore(state => state.adapters) ?? [];
  const own = useMemo(() => adapters.filter(adapter => adapter.kind === kind), [adapters, kind]);
  const byId = new Map(own.map(adapter => [adapter.id, adapter]));
  const add = id => id && onChange([...chosen, whole({ id })]);
  const put = (index, changes) => onChange(chosen.map((entry, at) => (at === index ? { ...entry, ...changes } : entry)));
  const take = async files => onChange([...chosen, ...(await importAdapters(files)).map(whole)]);
  const free = own.filter(({ id }) => !chosen.some(entry => entry.id === id));
  return html`<div class="adapter-list"><h3 class="form-title">Adapters</h3>
    ${chosen.length > 0 && html`<ul>${chosen.map((entry, index) => html`<${Chosen} key=${entry.id} index=${index}
      adapter=${byId.get(entry.id)} entry=${entry}
      onChange=${changes => put(index, changes)} onRemove=${() => onChange(chosen.filter((_, at) => at !== index))} />`)}</ul>`}
    ${free.length > 0 && html`<${Choice} id="add-adapter" label=${chosen.length ? 'Add another adapter' : 'Add an adapter'} value=""
      onChange=${add}
      choices=${[{ value: '', label: 'Choose …' }, ...free.map(adapter => ({ value: adapter.id, label: labelOf(adapter) }))]} />`}
    ${!own.length && html`<p class="hint">None yet: train one, or drop a file here. Without any, the plain model answers.</p>`}
    <${DropZone} small accept=${ADAPTER_FILES} multiple onFiles=${take} title="Drop an adapter file here"
      hint="A zip of a PEFT folder, or a .safetensors file of diffusers or kohya." /></div>`;
}
