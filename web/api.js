// Calls of the server's JSON API.

/// What the server refused, in its own sentence; `field` is the option at fault, if one is.
export class Refusal extends Error {
  constructor(status, sentence, field) {
    super(sentence);
    this.status = status;
    this.field = field ?? null;
  }
}

const UNREACHABLE = 'The server does not answer. Is `lorabooth serve` still running?';

async function refusal(response) {
  const answer = await response.json().catch(() => null);
  const error = answer?.error;
  return new Refusal(response.status, error?.sentence ?? `The server answered with status ${response.status}.`, error?.field);
}

async function request(method, path, { body, signal } = {}) {
  const files = body instanceof FormData;
  const options = { method, signal };
  if (body !== undefined) options.body = files ? body : JSON.stringify(body);
  if (body !== undefined && !files) options.headers = { 'content-type': 'application/json' };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal(0, UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

export const get = (path, options) => request('GET', path, options);
export const post = (path, body = {}, options) => request('POST', path, { body, ...options });
export const patch = (path, body) => request('PATCH', path, { body });
export const remove = path => request('DELETE', path);

/// Sends files under the name `field`; `told` hears the part that is sent, 0 to 1.
export function upload(path, field, files, told = () => {}) {
  const body = new FormData();
  for (const file of files) body.append(field, file, file.name);
  // fetch() cannot tell how much of a body is sent.
  const sending = new XMLHttpRequest();
  return new Promise((done, failed) => {
    sending.open('POST', path);
    sending.upload.onprogress = event => event.lengthComputable && told(event.loaded / event.total);
    sending.onerror = () => failed(new Refusal(0, UNREACHABLE));
    sending.onload = async () => {
      const response = new Response(sending.responseText, { status: sending.status });
      if (response.ok) done(JSON.parse(sending.responseText || 'null'));
      else failed(await refusal(response));
    };
    sending.send(body);
  });
}
