// The tab Train: photos of a subject, what it is called, how it is learned.
import { html } from './html.js';
import { post } from './api.js';
import { Check } from './controls.js';
import { useSettings } from './settings.js';
import { setPhotos, useStore } from './store.js';
import { modelOf } from './fields.js';
import { Photos } from './photos.js';
import { EMPTY_FORM, TrainingForm } from './training_form.js';

const SECTIONS = [
  {
    title: 'The subject', wide: true,
    fields: ['instance_prompt', 'with_prior_preservation', 'class_prompt', 'num_class_images'],
    needs: { class_prompt: 'with_prior_preservation', num_class_images: 'with_prior_preservation' },
  },
  {
    title: 'How long, how strong',
    fields: [
      'max_train_steps', 'learning_rate', 'resolution', 'lora_r', 'lora_alpha', 'train_text_encoder', 'lora_text_encoder_r',
      'lora_text_encoder_alpha',
    ],
    needs: { lora_text_encoder_r: 'train_text_encoder', lora_text_encoder_alpha: 'train_text_encoder' },
  },
  { title: 'Memory', fields: ['gradient_checkpointing', 'mixed_precision'] },
];

const PLACEHOLDERS = {
  instance_prompt: 'a photo of sks dog', class_prompt: 'a photo of a dog', max_train_steps: 'by the photos', resolution: "the model's own",
};

/// Samples are drawn of the subject unless another prompt is given, or none are wanted.
const samplesSection = (samples, change) => ({
  title: 'Samples on the way', fields: samples ? ['validation_prompt', 'validation_steps', 'num_validation_images'] : [],
  head: html`<${Check} id="samples" label="Draw samples while it trains" checked=${samples}
    onChange=${next => change({ samples: next })} />`,
});

export function Train() {
  const [form, change] = useSettings('train', EMPTY_FORM);
  const server = useStore(state => state.server);
  const native = server?.models.find(({ id }) => id === modelOf(server, 'stable_diffusion', form.model))?.native_size;
  const photos = useStore(state => state.sets)[form.set]?.photos ?? [];
  const example = async ({ name, values = {}, model }) => {
    const set = await post('/api/sets', { example: name });
    setPhotos(set);
    change(before => ({ set: set.id, model: model ?? before.model, values: { ...before.values, ...values } }));
  };
  return html`<${TrainingForm} kind="dreambooth" jobKind="train_dreambooth" modelKind="stable_diffusion" form=${form}
    change=${change}
    sections=${[...SECTIONS.slice(0, 2), samplesSection(form.samples, change), ...SECTIONS.slice(2)]}
    more=${form.samples ? {} : { validation_prompt: '' }} lacking=${photos.length ? null : 'Photos are missing: drop some first.'}
    placeholders=${{ ...PLACEHOLDERS, validation_prompt: form.values.instance_prompt || 'the instance prompt' }}>
    <${Photos} id=${form.set} onSet=${set => change({ set })} instancePrompt=${form.values.instance_prompt} onExample=${example}
      resolution=${Number(form.values.resolution) || native} /><//>`;
}
