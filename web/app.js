// The page: a header, five tabs, notices; what is behind the tabs has files of its own.
import { html, render, useEffect, useRef } from './html.js';
import { post } from './api.js';
import { Button, Tabs } from './controls.js';
import { ask } from './dialogs.js';
import { connect } from './events.js';
import { bytes, counted, duration } from './format.js';
import { isLive, isTraining } from './jobs.js';
import { go, useRoute } from './route.js';
import { change, dismiss, notify, useStore } from './store.js';
import { Library } from './library.js';
import { SignIn } from './sign_in.js';
import { TextTab } from './text.js';
import { Train } from './train.js';
import { Try } from './try.js';
import { Watch } from './watch.js';

const TABS = {
  train: ['Train', Train], watch: ['Watch', Watch], try: ['Try', Try], text: ['Text', TextTab], library: ['Library', Library],
};

/// Short messages in a corner, above an open dialog too.
function Notices() {
  const notices = useStore(state => state.notices);
  const place = useRef();
  useEffect(() => {
    // Hidden first: what is shown last lies on top.
    if (place.current.matches(':popover-open')) place.current.hidePopover();
    if (notices.length) place.current.showPopover();
  }, [notices]);
  const last = notices.findLast(({ kind }) => kind !== 'error');
  return html`<p class="unseen" role="status">${last?.text}</p>
    <div class="notices" ref=${place} popover="manual" role="region" aria-label="Notices">${notices.map(({ id, text, kind }) => html`
      <p key=${id} class="notice ${kind}" role=${kind === 'error' ? 'alert' : undefined}><span>${text}</span>
        <button type="button" class="icon" aria-label="Close" onClick=${() => dismiss(id)}>×</button></p>`)}</div>`;
}

function Header({ server }) {
  const device = server?.device;
  const signOut = async () => {
    await post('/logout');
    change({ signIn: true, server: null });
  };
  return html`<header class="top"><h1>lorabooth</h1>
    <p class="tagline">Teach Stable Diffusion your subject from a handful of photos.</p>
    ${device && html`<p
      class="device">${[device.name, device.memory_total > 0 && bytes(device.memory_total), device.dtype].filter(Boolean).join(', ')}</p>`}
    ${server?.has_account && html`<${Button} kind="secondary small" onPress=${signOut}>Sign out<//>`}</header>`;
}

const LIMITS = {
  max_photos: value => counted(value, 'photo'),
  max_steps: value => `${value} steps a run`,
  max_minutes: value => `${duration(60 * value)} a job`,
  max_jobs: value => `${counted(value, 'job')} at a time`,
  keep_hours: value => `kept for ${value} h`,
};

function Public({ limits }) {
  const drop = async () => {
    const text = 'Your photos, runs, adapters and pictures are deleted from this server at once.';
    if (!await ask('Delete all that is yours?', text, 'Delete all')) return;
    await post('/api/visitor/delete');
    await connect();
    notify('All that was yours is deleted.');
  };
  const said = Object.entries(LIMITS).filter(([name]) => limits?.[name] > 0).map(([name, text]) => text(limits[name]));
  return html`<aside class="notice public"
    aria-label="About this server"><p>A public server: you see only what is yours. ${said.length > 0 && `Limits: ${said.join(', ')}.`}</p>
    <${Button} kind="secondary small" onPress=${drop}>Delete my things<//></aside>`;
}

/// The running job in the window's title, so that another tab shows it.
function useTitle() {
  const jobs = useStore(state => state.jobs);
  const live = Object.values(jobs).find(isLive);
  const share = live?.progress?.total > 0 ? Math.floor((100 * live.progress.done) / live.progress.total) : null;
  const title = live && share !== null ? `${share} % · ${live.name ?? ''} · lorabooth` : 'lorabooth';
  useEffect(() => { document.title = title; }, [title]);
  return jobs;
}

/// Says to screen readers when a job ends or fails; others see it.
function Spoken({ jobs }) {
  const last = Object.values(jobs).filter(job => isTraining(job) && job.ended).sort((a, b) => (a.ended < b.ended ? 1 : -1))[0];
  return html`<p class="unseen"
    role="status">${last && Date.now() - Date.parse(last.ended) < 60e3 ? `${last.name} ${last.state}` : ''}</p>`;
}

function App() {
  const server = useStore(state => state.server);
  const signIn = useStore(state => state.signIn);
  const connection = useStore(state => state.connection);
  const jobs = useTitle();
  const route = useRoute();
  useEffect(() => { connect(); }, []);
  if (signIn) return html`<${Header} /><${SignIn} /><${Notices} />`;
  const selected = TABS[route.tab] ? route.tab : 'train';
  const [title, Panel] = TABS[selected];
  const waiting = Object.values(jobs).filter(job => isLive(job) || job.state === 'queued').length;
  return html`<${Header} server=${server} />
    ${connection === 'lost' && html`<p class="notice error" role="status">No connection to the server; trying again.</p>`}
    ${server?.public && html`<${Public} limits=${server.limits} />`}
    <main><${Tabs} label="Parts of the page" selected=${selected} onSelect=${id => go(id)}
      tabs=${Object.entries(TABS).map(([id, [title]]) => ({ id, title, badge: id === 'watch' ? waiting : 0 }))} />
      <div role="tabpanel" id="tab-panel" class="panel" aria-labelledby="tab-${selected}"><h2 class="unseen">${title}</h2>
        ${server && html`<${Panel} key=${selected} id=${route.id} />`}</div></main>
    <${Notices} /><${Spoken} jobs=${jobs} />
    <footer class="foot">lorabooth ${server?.version ?? ''} · <a href="openapi.json">API</a></footer>`;
}

render(html`<${App} />`, document.getElementById('app'));

// A file dropped beside its place would be opened in the page's stead.
for (const kind of ['dragover', 'drop']) addEventListener(kind, event => event.preventDefault());

for (const kind of ['error', 'unhandledrejection']) {
  addEventListener(kind, event => {
    const fault = (event.error ?? event.reason)?.message ?? 'unknown';
    notify(`This page has a fault: ${fault}. Reload it; nothing on the server is lost.`, 'error');
  });
}
