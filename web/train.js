// The tab Train: photos of a subject, what it is called, how it is learned.
import { html } from './html.js';
import { post } from './api.js';
import { useSettings } from './settings.js';
import { setPhotos, useStore } from './store.js';
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
    fields: ['max_train_steps', 'learning_rate', 'resolution', 'lora_r', 'lora_alpha', 'train_text_encoder', 'lora_text_encoder_r', 'lora_text_encoder_alpha'],
    needs: { lora_text_encoder_r: 'train_text_encoder', lora_text_encoder_alpha: 'train_text_encoder' },
  },
  { title: 'Samples on the way', fields: ['validation_prompt', 'validation_steps'] },
  { title: 'Memory', fields: ['gradient_checkpointing', 'mixed_precision'] },
];

const PLACEHOLDERS = {
  instance_prompt: 'a photo of sks dog', class_prompt: 'a photo of a dog', max_train_steps: 'by the photos', resolution: "the model's own",
};

export function useTrainForm() {
  return useSettings('train', EMPTY_FORM);
}

/// Samples are drawn of the subject unless another prompt is given.
const samples = values => ({ validation_prompt: values.instance_prompt });

export function Train() {
  const [form, change] = useTrainForm();
  const photos = useStore(state => state.sets)[form.set]?.photos ?? [];
  const example = async ({ name, values = {}, model }) => {
    const set = await post('/api/sets', { example: name });
    setPhotos(set);
    change(before => ({ set: set.id, model: model ?? before.model, values: { ...before.values, ...values } }));
  };
  return html`<${TrainingForm} kind="dreambooth" jobKind="train_dreambooth" modelKind="stable_diffusion" form=${form} change=${change}
    sections=${SECTIONS} extra=${samples} lacking=${photos.length ? null : 'Photos are missing: drop some first.'}
    placeholders=${{ ...PLACEHOLDERS, validation_prompt: form.values.instance_prompt || 'the instance prompt' }}>
    <${Photos} id=${form.set} onSet=${set => change({ set })} instancePrompt=${form.values.instance_prompt} onExample=${example} /><//>`;
}
