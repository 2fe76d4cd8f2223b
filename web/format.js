// Numbers, sizes, times and dates as people read them.

export const number = (value, digits = 3) =>
  value === null || value === undefined || !Number.isFinite(Number(value)) ? '–'
    : Number(Number(value).toPrecision(digits)).toString();

/// 2.31 GiB, 45 MiB.
export function bytes(count) {
  if (!Number.isFinite(count)) return '–';
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let [value, unit] = [count, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit < 2 || value >= 100 ? Math.round(value) : number(value)} ${units[unit]}`;
}

/// 2 h 5 min, 4 min 10 s, 12 s, 0.4 s.
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  if (seconds < 10) return `${number(seconds, 2)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (hours >= 48) return `${Math.round(hours / 24)} days`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  if (minutes >= 10 || (minutes && !rest)) return `${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

/// Seconds from the server's time `from` to `to`, or to now.
export const between = (from, to) => ((to ? Date.parse(to) : Date.now()) - Date.parse(from)) / 1000;

export function date(iso) {
  const when = new Date(iso);
  if (!iso || Number.isNaN(when.getTime())) return '–';
  const today = when.toDateString() === new Date().toDateString();
  const time = { hour: '2-digit', minute: '2-digit' };
  return when.toLocaleString(undefined, today ? time : { day: 'numeric', month: 'short', year: 'numeric', ...time });
}

/// "1 photo", "3 photos".
export const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/// 1st, 2nd, 3rd, 4th, 11th …
export function ordinal(place) {
  const teens = place % 100 > 10 && place % 100 < 14;
  return `${place}${(!teens && { 1: 'st', 2: 'nd', 3: 'rd' }[place % 10]) || 'th'}`;
}

/// The beginning of a text, at most `most` characters.
export const shortened = (text, most = 60) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);

/// "weight_decay" → "weight decay".
export const words = name => name.replaceAll('_', ' ');
