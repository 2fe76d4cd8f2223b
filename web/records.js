// A set of records: a file of texts to learn from, and its first rows.
import { html, useState } from './html.js';
import { Button, DropZone, Progress, Warnings, Wide } from './controls.js';
import { counted, shortened } from './format.js';
import { send, useSet } from './photos.js';

const CELL = 120;

export function Records({ id, onSet }) {
  const set = useSet(id, () => onSet(null));
  const [share, setShare] = useState(null);
  const add = async files => {
    setShare(0);
    try {
      onSet(await send(files.slice(0, 1), null, setShare));
    } finally {
      setShare(null);
    }
  };
  const records = set?.records;
  const rows = records?.sample ?? [];
  const cell = (row, column) => shortened(typeof row[column] === 'string' ? row[column] : JSON.stringify(row[column] ?? ''), CELL);
  return html`<section class="block" aria-labelledby="records-title"><h3 class="tag" id="records-title">Records</h3>
    ${records && html`<p>${counted(records.count, 'record')} with the columns ${records.columns.join(', ')}.</p>
      <${Wide} label="The first records"><table><thead><tr>${records.columns.map(column => html`<th key=${column}
        scope="col">${column}</th>`)}</tr></thead>
      <tbody>${rows.map((row, index) => html`<tr key=${index}>${records.columns.map(column => html`<td
        key=${column}>${cell(row, column)}</td>`)}</tr>`)}</tbody></table><//>
      <${Button} kind="secondary small" onPress=${() => onSet(null)}>Remove<//>`}
    ${!records && html`<${DropZone} accept=".jsonl,.json,.csv,.tsv,.parquet,.txt" busy=${share !== null} onFiles=${add}
      title="Drop a file of records here"
      hint="JSONL, CSV, TSV or Parquet: a record a line, a column a field." />`}
    ${share !== null && html`<${Progress} label="Sending the file" done=${share} total=${1} />`}
    <${Warnings} warnings=${set?.warnings} />
    ${set?.refused?.length > 0 && html`<ul class="warnings refused" aria-label="Files that were refused">${set.refused.map(file =>
      html`<li key=${file.name}><strong>${file.name}</strong>: ${file.sentence}</li>`)}</ul>`}</section>`;
}
