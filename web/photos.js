// A set of photos: dropped or chosen, each with its caption.
import { html, useEffect, useState } from './html.js';
import { get, patch, post, remove, upload } from './api.js';
import { Button, DropZone, Progress, tied, Warnings } from './controls.js';
import { ask } from './dialogs.js';
import { counted } from './format.js';
import { attempt, current, setPhotos, useStore } from './store.js';

/// So many files a request: the first thumbnails show early, and a phone that loses its connection loses little.
const FILES_A_REQUEST = 8;

const setPath = (id, resolution) => `/api/sets/${id}${resolution ? `?resolution=${resolution}` : ''}`;

/// The set `id` from the server, with the warnings of a training at `resolution`; `onGone` if it is there no more.
export function useSet(id, onGone, resolution) {
  const set = useStore(state => state.sets)[id] ?? null;
  const epoch = useStore(state => state.epoch);
  useEffect(() => {
    if (!id) return;
    get(setPath(id, resolution)).then(setPhotos, error => { if (error.status === 404) onGone(); });
  }, [id, epoch, resolution]);
  return set;
}

/// Sends files to a set, which is made if there is none; returns its id.
export async function send(files, id, told) {
  const set = id ?? (await post('/api/sets')).id;
  for (let at = 0; at < files.length; at += FILES_A_REQUEST) {
    const part = files.slice(at, at + FILES_A_REQUEST);
    setPhotos(await upload(`/api/sets/${set}/files`, 'files', part, share => told(at + share * part.length)));
  }
  return set;
}

function Photo({ set, photo, instancePrompt, resolution }) {
  const [caption, setCaption] = useState(photo.caption ?? '');
  useEffect(() => setCaption(photo.caption ?? ''), [photo.caption]);
  const path = `/api/sets/${set.id}/photos/${photo.id}`;
  const put = change => setPhotos({ ...current().sets[set.id], photos: change(current().sets[set.id].photos) });
  const save = () => caption !== (photo.caption ?? '') && attempt(async () => {
    await patch(path, { caption });
    put(photos => photos.map(other => (other.id === photo.id ? { ...other, caption } : other)));
  });
  const drop = async () => {
    await remove(path);
    // Warnings of the others, such as about doubles, may be gone with it.
    setPhotos(await get(setPath(set.id, resolution)));
  };
  const id = `caption-${photo.id}`;
  return html`<li class="photo">
    <img src=${photo.thumbnail} alt=${photo.caption || photo.name} width="256" height="256" loading="lazy" decoding="async" />
    <${Button} kind="round" aria-label="Remove ${photo.name}" title="Remove" onPress=${drop}>×<//>
    <label class="unseen" for=${id}>Caption of ${photo.name}</label>
    <input class="input" ...${tied({ id, hint: true })} value=${caption} placeholder=${instancePrompt || 'Caption'}
      autocomplete="off"
      onInput=${event => setCaption(event.target.value)} onBlur=${save} onKeyDown=${event => event.key === 'Enter' && save()} />
    <p class="hint" id="${id}-hint">${photo.width} × ${photo.height} · ${photo.name}</p>
    <${Warnings} warnings=${photo.warnings} title="Warnings of ${photo.name}" /></li>`;
}

/// The photos of a run, and where more are dropped.
export function Photos({ id, onSet, instancePrompt, onExample, resolution }) {
  const set = useSet(id, () => onSet(null), resolution);
  const [sending, setSending] = useState(null);
  const limits = useStore(state => state.server?.limits);
  const examples = useStore(state => state.server?.examples) ?? [];
  const add = async files => {
    setSending({ done: 0, total: files.length });
    try {
      const sent = await send(files, id, done => setSending({ done, total: files.length }));
      setPhotos(await get(setPath(sent, resolution)));
      onSet(sent);
    } finally {
      setSending(null);
    }
  };
  const clear = async () => {
    const count = set.photos.length;
    const text = `The ${counted(count, 'photo')} and their captions leave this form. Runs that used them keep their copies.`;
    if (await ask('Remove all photos?', text, 'Remove')) onSet(null);
  };
  const photos = set?.photos ?? [];
  const most = limits?.max_photos ? `; at most ${limits.max_photos} here` : '';
  return html`<section class="block photos" aria-labelledby="photos-title">
    <h3 class="tag" id="photos-title">Photos${photos.length > 0 && `: ${photos.length}`}</h3>
    ${photos.length > 0 && html`<ul class="photo-grid">${photos.map(photo =>
      html`<${Photo} key=${photo.id} set=${set} photo=${photo} instancePrompt=${instancePrompt}
        resolution=${resolution} />`)}</ul>`}
    <${DropZone} accept="image/*,.zip,.txt,.caption" multiple small=${photos.length > 0} busy=${sending !== null} onFiles=${add}
      title="Drop photos or a zip here"
      hint=${`4 to 20 photos of one subject${most}. They stay on this server. A NAME.txt beside a photo is its caption.`} />
    ${sending && html`<p class="hint"
      role="status">Sending ${Math.min(sending.total, Math.ceil(sending.done))} of ${counted(sending.total, 'file')}</p>
      <${Progress} label="Sending files" done=${sending.done} total=${sending.total} />`}
    <${Warnings} warnings=${set?.warnings} />
    ${set?.refused?.length > 0 && html`<ul class="warnings refused" aria-label="Files that were refused">${set.refused.map(file =>
      html`<li key=${file.name}><strong>${file.name}</strong>: ${file.sentence}</li>`)}</ul>`}
    <div class="buttons">
      ${!photos.length && examples.map(example => html`<${Button} key=${example.name}
        onPress=${() => onExample(example)}>${example.title}<//>`)}
      ${photos.length > 0 && html`<${Button} kind="secondary small" onPress=${clear}>Remove all<//>`}</div>
    ${photos.length > 0 && html`<p
      class="hint">A caption says what one photo shows. Where it is empty, the instance prompt stands for it.</p>`}
  </section>`;
}
