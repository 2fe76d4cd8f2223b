// Memory and time of a run before it starts, beside the button that starts it.
import { html, useEffect, useRef, useState } from './html.js';
import { post } from './api.js';
import { Accordion, Button, Code, Warnings } from './controls.js';
import { bytes, counted, duration, words } from './format.js';

const AFTER_MS = 350;
/// Parts of the memory that have a colour of their own.
const COLOURS = 6;

/// Asks for the plan of `request` whenever it changes; {plan, refusal, waiting}.
export function usePlan(request) {
  const [answer, setAnswer] = useState({ plan: null, refusal: null, waiting: true });
  const text = request && JSON.stringify(request);
  useEffect(() => {
    if (!text) return undefined;
    const stop = new AbortController();
    setAnswer(before => ({ ...before, waiting: true }));
    const timer = setTimeout(async () => {
      try {
        const plan = await post('/api/plan', JSON.parse(text), { signal: stop.signal });
        setAnswer({ plan, refusal: null, waiting: false });
      } catch (error) {
        if (error.name !== 'AbortError') setAnswer({ plan: null, refusal: error, waiting: false });
      }
    }, AFTER_MS);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [text]);
  return answer;
}

function Part({ part, of, index }) {
  const bar = useRef();
  useEffect(() => bar.current.style.setProperty('flex-grow', part.bytes / of), [part.bytes, of]);
  return html`<span ref=${bar} class="part part-${index}"></span>`;
}

function Memory({ plan }) {
  const { parts = [], peak_bytes: peak, device_bytes: device } = plan;
  const largest = [...parts].filter(part => part.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  const rest = largest.splice(COLOURS - 1).reduce((total, part) => total + part.bytes, 0);
  const shown = rest ? [...largest, { name: 'the rest', bytes: rest }] : largest;
  const sum = shown.reduce((total, part) => total + part.bytes, 0);
  const whole = Math.max(device ?? 0, peak, sum);
  const sentence = `${bytes(peak)} at the peak${device ? ` of ${bytes(device)}` : ''}`;
  return html`<p
    class="plan-line"><strong>${bytes(peak)}</strong> of memory at the peak${device ? `; this device has ${bytes(device)}` : ''}</p>
    <div class="memory" role="img" aria-label=${sentence}>
      ${shown.map((part, index) => html`<${Part} key=${part.name} part=${part} of=${whole} index=${index} />`)}
      ${whole > sum && html`<${Part} part=${{ bytes: whole - sum }} of=${whole} index=${-1} />`}</div>
    <ul class="legend">${shown.map((part, index) => html`<li key=${part.name}><span class="swatch part-${index}"></span>
      <span>${words(part.name)}</span><span class="figure">${bytes(part.bytes)}</span></li>`)}</ul>`;
}

/// The plan, what would make it fit, and the button. `missing`: what is wrong is only that nobody has written it yet.
export function PlanPanel({ answer, missing, action, onStart, onSuggestion, children }) {
  const { plan, refusal, waiting } = answer;
  return html`<section class="block plan" aria-labelledby="plan-title" aria-busy=${waiting ? 'true' : 'false'}>
    <h3 class="tag" id="plan-title">Plan</h3>
    ${!plan && !refusal && html`<p class="hint">Working out memory and time …</p>`}
    ${plan && html`<div class="plan-numbers ${waiting ? 'old' : ''}">
      <p class="plan-line"><strong>${duration(plan.total_seconds)}</strong> for ${counted(plan.steps, 'step')}
        ${Number.isFinite(plan.step_seconds) ? html`, about ${duration(plan.step_seconds)} each` : ''}</p>
      ${plan.phases?.length > 1 && html`<ul class="legend">${plan.phases.filter(({ seconds }) => seconds > 0).map(({ name, seconds }) => html`
        <li key=${name}><span>${words(name)}</span><span class="figure">${duration(seconds)}</span></li>`)}</ul>`}
      <${Memory} plan=${plan} />
      ${plan.fits === false && html`<p class="notice error">This does not fit the memory of this device.</p>`}
      ${plan.suggestion && html`<div class="suggestion"><p>${plan.suggestion.sentence}</p>
        <${Button} kind="secondary small" onPress=${() => onSuggestion(plan.suggestion.options)}>Use this<//></div>`}
      <${Warnings} warnings=${plan.warnings} /></div>`}
    ${refusal && html`<p class=${`notice ${missing ? '' : 'error'}`} role=${missing ? undefined : 'alert'}>${refusal.message}</p>`}
    ${children}
    <${Button} kind="primary wide" onPress=${onStart}>${action}<//>
    ${plan?.command && html`<${Accordion} title="The command line of this run"><${Code} label="Command line"
      text=${plan.command} /><//>`}
  </section>`;
}
