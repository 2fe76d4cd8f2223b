// The tab Text: a language model completes or classifies, or learns from records.
import { html, useMemo } from './html.js';
import { post } from './api.js';
import { AdapterList } from './adapters.js';
import { Button, Empty, Form, Prose, showResults, Tabs } from './controls.js';
import { ModelChoice, modelOf, OptionGroups, toOptions, useOptions } from './fields.js';
import { shortened } from './format.js';
import { newestFirst } from './jobs.js';
import { Records } from './records.js';
import { useSettings } from './settings.js';
import { answeredJob, useStore } from './store.js';
import { Answer } from './text_answer.js';
import { EMPTY_FORM, TrainingForm } from './training_form.js';

const EMPTY = { mode: 'complete', model: null, adapters: [], prompt: '', values: {} };
const ANSWERS = 20;

function Complete({ form, change }) {
  const options = useOptions('complete');
  const server = useStore(state => state.server);
  const adapters = useStore(state => state.adapters) ?? [];
  const jobs = useStore(state => state.jobs);
  const answers = useMemo(() => newestFirst(jobs, ({ kind }) => kind === 'complete').slice(0, ANSWERS), [jobs]);
  const model = modelOf(server, 'language', form.model);
  const ready = model !== '' && form.prompt !== '';
  const start = async () => {
    const known = form.adapters.filter(({ id }) => adapters.some(adapter => adapter.id === id));
    await answeredJob(post('/api/jobs', {
      kind: 'complete',
      name: shortened(form.prompt, 80),
      options: { model, adapters: known, prompt: form.prompt, ...toOptions(options, form.values) },
    }));
    showResults();
  };
  return html`<div class="two-columns even"><div class="column">
    <${Form}><${ModelChoice} kind="language" id="text-model" value=${form.model} onChange=${next => change({ model: next })}
      hint="A classifier answers with labels." />
      <${Prose} id="text-prompt" label="Text" rows="4" value=${form.prompt} required onChange=${prompt => change({ prompt })}
        onSubmit=${() => ready && start()}
        hint="The text to continue, answer or classify. Ctrl+Enter starts." /><//>
    <${Form}><${AdapterList} kind="language" chosen=${form.adapters} onChange=${next => change({ adapters: next })} /><//>
    <${OptionGroups} prefix="complete" options=${options} values=${form.values} without=${['prompt', 'adapter', 'model']}
      onChange=${changes => change(before => ({ values: { ...before.values, ...changes } }))} />
    <${Button} kind="primary wide" disabled=${!ready} onPress=${start}>Complete<//>
    ${!ready && html`<p class="hint">${model === '' ? 'Choose a language model first.' : 'Write a text first.'}</p>`}
  </div><div class="column side results">${answers.length ? answers.map(job => html`<${Answer} key=${job.id}
    job=${job} />`) : html`<${Empty}>Answers show here, word by word.<//>`}</div></div>`;
}

const SECTIONS = [
  { title: 'What is learned', fields: ['task', 'prompt_template', 'label_column', 'text_column', 'peft_method'] },
  { title: 'How long, how strong', fields: ['num_train_epochs', 'learning_rate', 'train_batch_size', 'lora_r', 'lora_alpha'] },
];

/// The option's names of PEFT's tasks.
const TASKS = { CAUSAL_LM: 'causal-lm', SEQ_2_SEQ_LM: 'seq2seq-lm', SEQ_CLS: 'seq-cls' };

function TrainText() {
  const [form, change] = useSettings('text-train', EMPTY_FORM);
  const server = useStore(state => state.server);
  const records = useStore(state => state.sets)[form.set]?.records;
  const model = modelOf(server, 'language', form.model);
  const task = TASKS[server?.models.find(({ id }) => id === model)?.tasks?.[0]] ?? TASKS.CAUSAL_LM;
  return html`<${TrainingForm} kind="llm" jobKind="train_llm" modelKind="language" form=${form} change=${change} sections=${SECTIONS}
    more=${form.values.task ? {} : { task }} placeholders=${{ task: `${task}, the model's` }}
    lacking=${records ? null : 'Records are missing: drop a file of them first.'}>
    <${Records} id=${form.set} onSet=${set => change({ set })} /><//>`;
}

export function TextTab() {
  const [form, change] = useSettings('text', EMPTY);
  return html`<${Tabs} name="mode" kind="inner" label="What to do with text" selected=${form.mode}
    onSelect=${mode => change({ mode })}
    tabs=${[{ id: 'complete', title: 'Complete' }, { id: 'train', title: 'Train on records' }]} />
    <div role="tabpanel" id="mode-panel" aria-labelledby="mode-${form.mode}">
      ${form.mode === 'complete' ? html`<${Complete} form=${form} change=${change} />` : html`<${TrainText} />`}</div>`;
}
