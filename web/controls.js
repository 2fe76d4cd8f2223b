// The parts that every form of the page is made of.
import { html, useEffect, useLayoutEffect, useRef, useState } from './html.js';
import { attempt } from './store.js';

/// A button that cannot be pressed twice while what it does is under way.
export function Button({ onPress, kind = 'secondary', disabled, busy, children, ...rest }) {
  const [running, setRunning] = useState(false);
  const alive = useRef(true);
  useEffect(() => () => { alive.current = false; }, []);
  const press = async event => {
    if (running || busy || disabled) return;
    setRunning(true);
    await attempt(() => onPress(event));
    if (alive.current) setRunning(false);
  };
  // Not `disabled`: that would take the focus away from who pressed it.
  return html`<button type="button" class="button ${kind}" aria-disabled=${disabled || running || busy ? 'true' : undefined}
    aria-busy=${running || busy ? 'true' : undefined} onClick=${press} ...${rest}>${children}</button>`;
}

export function Copy({ text, label = 'Copy' }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await copyText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return html`<${Button} kind="secondary small" onPress=${copy}>${copied ? 'Copied' : label}<//>`;
}

/// Copies, on a page without https too, where browsers hide the clipboard.
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'unseen';
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
  return undefined;
}

/// A command line or another text of many words, with a button that copies it.
export const Code = ({ text, label }) => html`<div class="code"><pre tabindex="0" role="region" aria-label=${label}>${text}</pre>
  <${Copy} text=${text} /></div>`;

/// Gradio's block: a box with a small tag in its corner.
export const Block = ({ tag, children, kind = '', ...rest }) => html`<section class="block ${kind}" aria-label=${tag} ...${rest}>
  <h3 class="tag">${tag}</h3>${children}</section>`;

export const Form = ({ children, ...rest }) => html`<div class="form" ...${rest}>${children}</div>`;

/// A part that opens at a press; `open` is only how it starts, unless something in it needs to be seen.
export function Accordion({ title, open = false, must = false, note, children }) {
  const [shown, setShown] = useState(open);
  useEffect(() => { if (must) setShown(true); }, [must]);
  return html`<details class="accordion" open=${shown} onToggle=${event => setShown(event.currentTarget.open)}>
    <summary>${title}${note && html`<span class="note">${note}</span>`}</summary>
    ${shown && html`<div class="accordion-body">${children}</div>`}</details>`;
}

/// A labelled box with its sentence and its error.
export function Labelled({ id, label, hint, error, children, reset }) {
  return html`<div class="field ${error ? 'wrong' : ''}">
    <div class="label-row"><label for=${id}>${label}</label>${reset}</div>
    ${children}
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
    ${error && html`<p class="field-error" id="${id}-error" role="alert">${error}</p>`}</div>`;
}

const described = ({ id, hint, error }) => [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ') || undefined;

/// Attributes that tie an input to its label, sentence and error.
export const tied = field => ({
  id: field.id, 'aria-describedby': described(field), 'aria-invalid': field.error ? 'true' : undefined,
});

export const Text = ({ value, onChange, placeholder, numeric, required, ...field }) => html`<${Labelled} ...${field}>
  <input type="text" class="input" ...${tied(field)} value=${value} placeholder=${placeholder} autocomplete="off" spellcheck="false"
    inputmode=${numeric && 'decimal'} aria-required=${required ? 'true' : undefined}
    onInput=${event => onChange(event.target.value)} /><//>`;

/// A text of some lines, as high as what is in it.
export function Prose({ value, onChange, placeholder, rows = 2, onSubmit, required, ...field }) {
  const area = useRef();
  useLayoutEffect(() => {
    area.current.style.height = 'auto';
    area.current.style.height = `${area.current.scrollHeight + 2}px`;
  }, [value]);
  const key = event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && onSubmit) onSubmit();
  };
  return html`<${Labelled} ...${field}>
    <textarea ref=${area} class="input" rows=${rows} ...${tied(field)} value=${value} placeholder=${placeholder}
      aria-required=${required ? 'true' : undefined} onKeyDown=${key}
      onInput=${event => onChange(event.target.value)}></textarea><//>`;
}

export const Choice = ({ value, onChange, choices, ...field }) => html`<${Labelled} ...${field}>
  <select class="input" ...${tied(field)} value=${value} onChange=${event => onChange(event.target.value)}>
    ${choices.map(choice => html`<option key=${choice.value} value=${choice.value} selected=${choice.value === value}
      disabled=${choice.disabled}>${choice.label ?? choice.value}</option>`)}</select><//>`;

export const Check = ({ id, label, hint, error, checked, onChange }) => html`<div class="field check ${error ? 'wrong' : ''}">
  <input type="checkbox" ...${tied({ id, hint, error })} checked=${checked} onChange=${event => onChange(event.target.checked)} />
  <div><label for=${id}>${label}</label>${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
  ${error && html`<p class="field-error" id="${id}-error" role="alert">${error}</p>`}</div></div>`;

/// Gradio's slider: a number box and ↺ at the right of the label, a track below.
export function Slider({ label, value, onChange, min, max, step, initial, id, hint, error }) {
  const part = Math.min(100, Math.max(0, (100 * (value - min)) / (max - min)));
  const track = useRef();
  useLayoutEffect(() => track.current.style.setProperty('--filled', `${part}%`), [part]);
  const changed = event => event.target.value !== '' && Number.isFinite(Number(event.target.value)) && onChange(Number(event.target.value));
  return html`<div class="field slider ${error ? 'wrong' : ''}">
    <div class="label-row"><label for=${id}>${label}</label>
      <span class="slider-value"><input type="number" class="number" aria-label="${label}, number" value=${value} min=${min}
        max=${max}
        step=${step} onChange=${changed} />
      <button type="button" class="icon" aria-label="${label}: back to ${initial}" title="Back to ${initial}"
        onClick=${() => onChange(initial)}>↺</button></span></div>
    <div class="track"><span aria-hidden="true">${min}</span><input type="range" ref=${track} ...${tied({ id, hint, error })}
      value=${value}
      min=${min} max=${max} step=${step} onInput=${changed} /><span aria-hidden="true">${max}</span></div>
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
    ${error && html`<p class="field-error" id="${id}-error" role="alert">${error}</p>`}</div>`;
}

/// How far something has come; without a total it only shows that something is going on.
export function Progress({ done, total, label }) {
  const known = total > 0;
  return html`<progress class="bar" aria-label=${label} max=${known ? total : undefined}
    value=${known ? done : undefined}></progress>`;
}

/// Where files are dropped or chosen.
export function DropZone({ accept, multiple, onFiles, title, hint, small, busy }) {
  const [over, setOver] = useState(0);
  const input = useRef();
  const take = files => { if (files.length) attempt(() => onFiles([...files])); };
  const drop = event => {
    event.preventDefault();
    setOver(0);
    take(event.dataTransfer.files);
  };
  return html`<label class="drop ${small ? 'small' : ''} ${over > 0 ? 'over' : ''}" onDragEnter=${() => setOver(over + 1)}
    onDragLeave=${() => setOver(over - 1)} onDragOver=${event => event.preventDefault()} onDrop=${drop}>
    <input ref=${input} type="file" class="unseen" accept=${accept} multiple=${multiple} disabled=${busy}
      onChange=${event => { take(event.target.files); event.target.value = ''; }} />
    <span class="drop-title">${title}</span><span class="or">- or -</span><span class="drop-title">Click to upload</span>
    ${hint && html`<span class="hint">${hint}</span>`}</label>`;
}

/// Tabs by WAI-ARIA's pattern: arrows move, Home and End jump.
export function Tabs({ tabs, selected, onSelect, label, name = 'tab', kind = '' }) {
  const list = useRef();
  const key = event => {
    const at = tabs.findIndex(({ id }) => id === selected);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const { id } = tabs[(to + tabs.length) % tabs.length];
    onSelect(id);
    list.current.querySelector(`#${name}-${id}`)?.focus();
  };
  return html`<div class="tabs ${kind}" role="tablist" aria-label=${label} ref=${list} onKeyDown=${key}>
    ${tabs.map(({ id, title, badge }) => html`<button key=${id} type="button" role="tab" id="${name}-${id}"
      aria-controls="${name}-panel"
      aria-selected=${id === selected ? 'true' : 'false'} tabindex=${id === selected ? 0 : -1}
      onClick=${() => onSelect(id)}>${title}${' '}
      ${badge > 0 && html`<span class="badge">${badge}<span class="unseen"> in the queue</span></span>`}</button>`)}</div>`;
}

export const Warnings = ({ warnings, title = 'Warnings' }) => (warnings?.length ? html`<ul class="warnings" aria-label=${title}>
  ${warnings.map(warning => html`<li key=${warning}>${warning}</li>`)}</ul>` : null);

/// What may be wider than the page scrolls by itself, with the keyboard too.
export const Wide = ({ label, children }) => html`<div class="scroll" tabindex="0" role="region"
  aria-label=${label}>${children}</div>`;

/// Shows what was asked for where it comes, on a screen that is too narrow for it to stand beside the button.
export const showResults = () => requestAnimationFrame(() => {
  const place = document.querySelector('.results');
  if (place && getComputedStyle(place).position === 'static') place.scrollIntoView({ block: 'start' });
});

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;
