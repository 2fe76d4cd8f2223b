// Pictures: thumbnails in a grid, one opened large with what it was drawn with.
import { html, useEffect, useMemo, useRef, useState } from './html.js';
import { Button, Copy } from './controls.js';
import { Dialog } from './dialogs.js';
import { number, shortened, words } from './format.js';
import { go } from './route.js';
import { amend } from './settings.js';
import { notify } from './store.js';

export const likenessOf = image => image.likeness ?? image.parameters?.likeness ?? null;

/// "colour 12 off, shape 81 %", or nothing.
export const likenessText = likeness => likeness
  ? `colour ${number(likeness.colour_distance, 2)} off, shape ${Math.round(100 * likeness.shape_overlap)}\u00a0%` : '';

export const LIKENESS = `How like the photos a sample is, by colour and shape alone: the mean difference in colour (CIE ΔE; 0 is the same,
under 10 is close) and the overlap of both outlines (100 % is the same), each against the photo that comes nearest. It takes the object to
be what differs from the picture's border, so that busy backgrounds mislead it.`;

function Parameters({ parameters = {}, more }) {
  const said = ([name, value]) => name !== 'likeness' && value !== null && value !== '' && value !== undefined;
  const rows = [...Object.entries(parameters), ...more].filter(said);
  return html`<dl class="facts">${rows.map(([name, value]) => html`<div key=${name}><dt>${words(name)}</dt>
    <dd>${typeof value === 'object' ? JSON.stringify(value) : String(value)}</dd></div>`)}</dl>`;
}

const more = image => [
  ['training step', image.step], ['strength', image.strength], ['like the photos', likenessText(likenessOf(image))],
];

/// What Try needs to draw a picture again.
const settingsOf = ({ prompt, negative_prompt, seed, steps, guidance, sampler, width, height }) =>
  Object.fromEntries(Object.entries({ prompt, negative_prompt, seed, steps, guidance, sampler, width, height, random: false })
    .filter(([, value]) => value !== undefined && value !== null));

/// One picture large, with the way to its neighbours.
export function Lightbox({ images, at, onMove, onClose, actions }) {
  const image = images[at];
  const latest = useRef();
  latest.current = { at, images, onMove };
  useEffect(() => {
    const key = event => {
      const { at, images, onMove } = latest.current;
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1 }[event.key];
      if (to >= 0 && to < images.length) onMove(to);
    };
    addEventListener('keydown', key);
    return () => removeEventListener('keydown', key);
  }, []);
  if (!image) return null;
  const parameters = image.parameters ?? {};
  const again = changes => {
    amend('try', changes);
    onClose();
    go('try');
  };
  return html`<${Dialog} title=${`Picture ${at + 1} of ${images.length}`} kind="lightbox" onClose=${onClose}>
    <img class="large" src=${image.url} alt=${parameters.prompt ?? 'a picture'} />
    <div class="buttons">
      <${Button} disabled=${at === 0} onPress=${() => onMove(at - 1)} aria-label="The picture before">←<//>
      <${Button} disabled=${at === images.length - 1} onPress=${() => onMove(at + 1)} aria-label="The next picture">→<//>
      <a class="button secondary" href=${image.url} download=${`${image.id}.png`}>Download</a>
      ${parameters.seed !== undefined && html`<${Button}
        onPress=${() => { again({ seed: parameters.seed, random: false }); notify(`Seed ${parameters.seed} is set.`); }}>Use this seed<//>
      <${Button} onPress=${() => again(settingsOf(parameters))}>Use all its settings<//>`}
      ${actions?.(image)}
      <${Button} onPress=${onClose}>Close<//></div>
    <${Parameters} parameters=${parameters} more=${more(image)} />
    ${parameters.prompt && html`<div class="buttons"><${Copy} text=${parameters.prompt} label="Copy the prompt" /></div>`}<//>`;
}

/// A grid of thumbnails. `caption` makes the line under one; `actions` adds buttons to the one that is open.
export function Gallery({ images, caption = () => '', label, actions }) {
  const [open, setOpen] = useState(null);
  const at = images.findIndex(({ id }) => id === open);
  // A job tells of its progress many times a second: hundreds of pictures are not compared each time.
  const cells = useMemo(() => html`<ul class="gallery" aria-label=${label}>${images.map(image => html`<li key=${image.id}>
      <button type="button" class="picture" onClick=${() => setOpen(image.id)}>
        <img src=${image.thumbnail} alt=${shortened(image.parameters?.prompt ?? 'a picture', 120)} loading="lazy" decoding="async"
          width="256" height="256" />
        ${caption(image) && html`<span class="caption">${caption(image)}</span>`}</button></li>`)}</ul>`, [images, label]);
  return html`${cells}
    ${at >= 0 && html`<${Lightbox} images=${images} at=${at} onMove=${next => setOpen(images[next].id)}
      onClose=${() => setOpen(null)} actions=${actions} />`}`;
}
