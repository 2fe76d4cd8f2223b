// What a language model wrote, as it comes.
import { html } from './html.js';
import { Block, Copy } from './controls.js';
import { isLive, JobActions, JobProgress } from './jobs.js';

export function Answer({ job }) {
  const { text = '', labels } = job.results ?? {};
  return html`<${Block} tag="Answer" aria-live="polite" aria-busy=${isLive(job) ? 'true' : 'false'}>
    ${job.options?.prompt && html`<p class="hint prompt">${job.options.prompt}</p>`}
    ${text && html`<p class="answer">${text}</p>`}
    ${labels?.length > 0 && html`<table><thead><tr><th scope="col">Label</th><th
      scope="col">Probability</th></tr></thead><tbody>${labels.map(({ label, probability }) =>
      html`<tr key=${label}><th scope="row">${label}</th><td>${(100 * probability).toFixed(1)} %</td></tr>`)}</tbody></table>`}
    ${!text && !labels && !job.error && html`<p class="hint">Nothing yet.</p>`}
    ${job.error && html`<p class="notice error" role="alert">${job.error}</p>`}
    ${!['finished', 'failed', 'stopped'].includes(job.state) && html`<${JobProgress} job=${job} /><${JobActions} job=${job} />`}
    ${text && html`<div class="buttons"><${Copy} text=${text} label="Copy the answer" /></div>`}<//>`;
}
