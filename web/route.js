// Where the page is: #TAB or #TAB/ID, so that back, reload and a link work.
import { useEffect, useState } from './html.js';

const parsed = () => {
  const [tab, id] = decodeURIComponent(location.hash.slice(1)).split('/');
  return { tab, id: id ?? null };
};

export const go = (tab, id) => { location.hash = id ? `${tab}/${encodeURIComponent(id)}` : tab; };

export function useRoute() {
  const [route, setRoute] = useState(parsed);
  useEffect(() => {
    const changed = () => setRoute(parsed());
    addEventListener('hashchange', changed);
    return () => removeEventListener('hashchange', changed);
  }, []);
  return route;
}
