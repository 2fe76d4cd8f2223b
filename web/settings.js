// What a person typed stays in this browser: over a reload, a failure, a change of tabs.
import { useCallback, useEffect, useState } from './html.js';

const PREFIX = 'lorabooth.';
const listeners = new Set();
// What the browser does not store, as in a frame of another site: it stays until the page is left.
const unstored = new Map();

export function recall(key, otherwise) {
  try {
    const text = unstored.get(key) ?? localStorage.getItem(PREFIX + key);
    return text === null ? otherwise : { ...otherwise, ...JSON.parse(text) };
  } catch {
    return otherwise;
  }
}

/// Changes some of the settings `key`, shown or not.
export function amend(key, changes) {
  const before = recall(key, {});
  const after = { ...before, ...(typeof changes === 'function' ? changes(before) : changes) };
  const text = JSON.stringify(after);
  try {
    localStorage.setItem(PREFIX + key, text);
    unstored.delete(key);
  } catch {
    unstored.set(key, text);
  }
  listeners.forEach(listener => listener(key, after));
}

/// An object of settings and a function that changes some of them.
export function useSettings(key, otherwise) {
  const [value, set] = useState(() => recall(key, otherwise));
  useEffect(() => {
    const listener = (changed, after) => { if (changed === key) set({ ...otherwise, ...after }); };
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, [key]);
  const change = useCallback(changes => amend(key, before => {
    const whole = { ...otherwise, ...before };
    return { ...whole, ...(typeof changes === 'function' ? changes(whole) : changes) };
  }), [key]);
  return [value, change];
}
