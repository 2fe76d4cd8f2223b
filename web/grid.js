// One prompt and seed over checkpoints and strengths: which of them is the best adapter is seen at a glance.
import { html, useState } from './html.js';
import { Accordion, Button, Check, Text, Wide } from './controls.js';
import { chooseCheckpoint } from './adapters.js';
import { number } from './format.js';
import { likenessOf, likenessText, Lightbox } from './pictures.js';
import { useStore } from './store.js';

const sorted = values => [...new Set(values)].sort((a, b) => a - b);

const parsed = text => text.split(/[,;\s]+/).filter(Boolean).map(Number);

/// Which checkpoints and strengths a grid shows, and the button that draws it.
export function GridForm({ adapter, onDraw, ready }) {
  const steps = (adapter?.checkpoints ?? []).map(({ step }) => step);
  const [left, setLeft] = useState([]);
  const [strengths, setStrengths] = useState('0.5, 0.75, 1');
  const chosen = steps.filter(step => !left.includes(step));
  const values = parsed(strengths);
  const wrong = !values.length || values.some(value => !Number.isFinite(value));
  const toggle = step => setLeft(left.includes(step) ? left.filter(other => other !== step) : [...left, step]);
  return html`<${Accordion} title="Grid: which checkpoint, how strong?">
    ${!adapter && html`<p class="hint">Choose an adapter first: the grid draws your prompt with each of its checkpoints.</p>`}
    ${adapter && html`<fieldset class="checks"><legend>Steps of ${adapter.name}</legend>${steps.length === 0 && html`<p
      class="hint">It has no checkpoints; the grid shows strengths alone.</p>`}
      ${steps.map(step => html`<${Check} key=${step} id="grid-${step}" label=${String(step)} checked=${!left.includes(step)}
        onChange=${() => toggle(step)} />`)}</fieldset>
    <${Text} id="grid-strengths" label="Strengths" value=${strengths} onChange=${setStrengths}
      error=${wrong ? 'Numbers with commas between them, such as 0.5, 0.75, 1.' : null} />
    <div class="field"><${Button} disabled=${!ready || wrong || (steps.length > 0 && !chosen.length)}
      onPress=${() => onDraw({ checkpoints: chosen, strengths: values })}>
      Draw ${Math.max(1, chosen.length) * values.length} pictures<//></div>`}<//>`;
}

/// The grid of a job: a column a checkpoint, a row a strength.
export function GridTable({ job }) {
  const [open, setOpen] = useState(null);
  const images = job.results?.images ?? [];
  const id = job.options?.adapters?.[0]?.id;
  const adapter = useStore(state => state.adapters)?.find(other => other.id === id);
  const stepOf = image => image.checkpoint ?? image.step ?? null;
  const steps = sorted([...(job.options?.checkpoints ?? []), ...images.map(stepOf)].filter(step => step !== null));
  const columns = steps.length ? steps : [null];
  const strengths = [...(job.options?.strengths ?? []), ...images.map(image => image.strength ?? null)];
  const rows = sorted(strengths.filter(strength => strength !== null));
  const cell = (strength, step) => images.find(image => image.strength === strength && stepOf(image) === step);
  const inOrder = rows.flatMap(strength => columns.map(step => cell(strength, step))).filter(Boolean);
  const at = inOrder.findIndex(image => image.id === open);
  const isChosen = step => adapter?.checkpoints?.some(checkpoint => checkpoint.step === step && checkpoint.chosen);
  const choose = step => html`<${Button} kind="secondary small" disabled=${isChosen(step)}
    onPress=${() => chooseCheckpoint(adapter.id, step)}
    title="Make it the run's adapter">${isChosen(step) ? `Step ${step} is the adapter` : `Choose step ${step}`}<//>`;
  return html`<${Wide} label="Grid"><table class="grid"><caption class="unseen">Pictures by training step and strength</caption>
    <thead><tr><th scope="col">Strength</th>${columns.map(step => html`<th key=${step}
      scope="col">${step === null ? 'Picture' : adapter ? choose(step) : `step ${step}`}</th>`)}</tr></thead>
    <tbody>${rows.map(strength => html`<tr key=${strength}><th scope="row">${number(strength)}</th>${columns.map(step => {
      const image = cell(strength, step);
      return html`<td key=${step}>${image ? html`<button type="button" class="picture"
        aria-label="Step ${step}, strength ${strength}" onClick=${() => setOpen(image.id)}>
        <img src=${image.thumbnail} alt="" loading="lazy" decoding="async" width="256"
          height="256" />${likenessOf(image) && html`<span class="caption">${likenessText(likenessOf(image))}</span>`}</button>`
        : html`<span class="hint">not yet</span>`}</td>`;
    })}</tr>`)}</tbody></table><//>
    ${at >= 0 && html`<${Lightbox} images=${inOrder} at=${at} onMove=${next => setOpen(inOrder[next].id)}
      onClose=${() => setOpen(null)}
      actions=${image => adapter && stepOf(image) !== null && choose(stepOf(image))} />`}`;
}
