// Questions, and pictures seen large, in <dialog>: the browser keeps the focus inside and Escape closes.
import { html, render, useEffect, useRef, useState } from './html.js';
import { Button } from './controls.js';

/// A modal dialog; `onClose` hears of it however it was closed.
export function Dialog({ title, onClose, children, kind = '' }) {
  const dialog = useRef();
  useEffect(() => {
    const element = dialog.current;
    element.showModal();
    return () => element.close();
  }, []);
  const outside = event => { if (event.target === dialog.current) dialog.current.close(); };
  return html`<dialog ref=${dialog} class="dialog ${kind}" aria-labelledby="dialog-title" onClose=${onClose} onClick=${outside}>
    <div class="dialog-body"><h2 id="dialog-title">${title}</h2>${children}</div></dialog>`;
}

/// Shows a dialog outside the page's tree and waits for its answer.
function show(make) {
  const place = document.createElement('div');
  document.body.append(place);
  const before = document.activeElement;
  return new Promise(answered => {
    let over = false;
    const done = answer => {
      if (over) return;
      over = true;
      render(null, place);
      place.remove();
      before?.focus?.();
      answered(answer);
    };
    render(make(done), place);
  });
}

/// Asks before something that cannot be taken back; true if it is to be done.
export const ask = (title, text, action) => show(done => html`<${Dialog} title=${title} onClose=${() => done(false)}>
  <p>${text}</p><div class="buttons"><${Button} onPress=${() => done(false)}>Cancel<//>
  <${Button} kind="stop" onPress=${() => done(true)}>${action}<//></div><//>`);

function TextQuestion({ title, label, initial, done }) {
  const [text, setText] = useState(initial);
  const submit = event => { event.preventDefault(); done(text.trim() || null); };
  return html`<${Dialog} title=${title} onClose=${() => done(null)}><form onSubmit=${submit}>
    <label class="field">${label}<input class="input" value=${text} autofocus
      onInput=${event => setText(event.target.value)} /></label>
    <div class="buttons"><${Button} onPress=${() => done(null)}>Cancel<//><button
      class="button primary">Save</button></div></form><//>`;
}

/// Asks for a line of text; null if none is given.
export const askText = (title, label, initial = '') =>
  show(done => html`<${TextQuestion} title=${title} label=${label} initial=${initial} done=${done} />`);

/// Shows a component that is a form of its own; it gets `done`.
export const askForm = Component => show(done => html`<${Component} done=${done} />`);
