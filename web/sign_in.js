// Who is this? Asked only where the server has a password.
import { html, useState } from './html.js';
import { post } from './api.js';
import { Form } from './controls.js';
import { connect } from './events.js';

export function SignIn() {
  const [form, setForm] = useState({ username: '', password: '' });
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async event => {
    event.preventDefault();
    setBusy(true);
    try {
      await post('/login', form);
      await connect();
    } catch (refused) {
      setError(refused.message);
      setBusy(false);
    }
  };
  const input = (name, label, type, autocomplete) => html`<div class="field"><label for=${name}>${label}</label><input class="input"
    id=${name} name=${name} type=${type}
    autocomplete=${autocomplete} required value=${form[name]}
    onInput=${event => setForm({ ...form, [name]: event.target.value })} /></div>`;
  return html`<main class="sign-in"><h2>Sign in</h2><form
    onSubmit=${submit}><${Form}>${input('username', 'User', 'text', 'username')}
      ${input('password', 'Password', 'password', 'current-password')}<//>
    ${error && html`<p class="notice error" role="alert">${error}</p>`}<button class="button primary wide"
      aria-busy=${busy ? 'true' : undefined}>Sign in</button></form></main>`;
}
