// What a person typed stays in this browser: over a reload, a failure, another tab of the page.
import { useCallback, useState } from './html.js';

const PREFIX = 'lorabooth.';

export function recall(key, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + key);
    return text === null ? otherwise : { ...otherwise, ...JSON.parse(text) };
  } catch {
    return otherwise;
  }
}

export function keep(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch { /* A browser that stores nothing still trains. */ }
}

/// An object of settings and a function that changes some of them.
export function useSettings(key, otherwise) {
  const [value, set] = useState(() => recall(key, otherwise));
  const change = useCallback(changes => set(before => {
    const after = { ...before, ...(typeof changes === 'function' ? changes(before) : changes) };
    keep(key, after);
    return after;
  }), [key]);
  return [value, change];
}
