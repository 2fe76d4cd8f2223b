// drive.mjs CLIENT URL PHOTOS [USER PASSWORD]: a server as @gradio/client asks it.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, url, photos, user, password] = process.argv.slice(2);
const resolve = createRequire(pathToFileURL(`${packages}/x.js`)).resolve;
const { Client, handle_file } = await import(pathToFileURL(resolve("@gradio/client")));
const options = { lora_r: 2, train_batch_size: 1, mixed_precision: "no", validation_prompt: "", seed: 3 };
const prompt = "a photo of sks bird";
const given = [handle_file(`${photos}/1.png`), handle_file(`${photos}/2.png`)];

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return String(error?.message ?? JSON.stringify(error));
  }
  assert.fail("was not refused");
}

const more = user ? { auth: [user, password], events: ["data", "status"] } : { events: ["data", "status"] };
if (user) {
  assert.match(await refusal(() => Client.connect(url)), /login|credentials/i);
  assert.match(await refusal(() => Client.connect(url, { auth: [user, "wrong"] })), /login|credentials/i);
}
const client = await Client.connect(url, more);
const runs = async () => (await client.predict("/runs")).data[0];
const until = async (is) => {
  for (let tries = 0; tries < 600; tries++) {
    if (await is()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail("waited in vain");
};

// List.
assert.deepEqual(Object.keys((await client.view_api()).named_endpoints), ["/train", "/follow", "/stop", "/runs", "/generate", "/complete"]);

// Upload, train with progress, download.
const outputs = [], progress = [];
for await (const message of client.submit("/train", [given, prompt, 40, null, options])) {
  if (message.type === "data") outputs.push(message.data);
  if (message.type === "status") {
    assert.notEqual(message.stage, "error", message.message);
    progress.push(...(message.progress_data ?? []));
    if (message.stage === "complete") break;
  }
}
const [run, state, files] = outputs.at(-1);
assert.equal(outputs[0][0], run);
assert.equal(state.state, "finished");
assert(progress.some((unit) => unit.desc === "training" && unit.length === 40), JSON.stringify(progress));
const cookie = client.cookies ? { cookie: client.cookies } : {};
const adapter = await fetch(files[0].url, { headers: cookie });
assert.equal(adapter.status, 200);
assert((await adapter.arrayBuffer()).byteLength > 1000 && files[0].path.endsWith(".safetensors"));
if (user) assert.equal((await fetch(files[0].url)).status, 401);

// Follow what is over, and draw.
assert.equal((await client.predict("/follow", [run])).data[1].state, "finished");
const [gallery] = (await client.predict("/generate", { prompt, adapter: run, steps: 3, seed: 7 })).data;
const picture = Buffer.from(await (await fetch(gallery[0].image.url, { headers: cookie })).arrayBuffer());
assert.equal(picture.subarray(1, 4).toString(), "PNG");

// Each picture comes when it is drawn, and no more come once it is cancelled.
const counts = [];
for await (const message of client.submit("/generate", { prompt, steps: 2, seed: 7, number: 3 })) {
  if (message.type === "data") counts.push(message.data[0].length);
  if (message.type === "status" && message.stage === "complete") break;
}
assert([1, 2, 3].every((count) => counts.includes(count)), JSON.stringify(counts));
const many = client.submit("/generate", { prompt, steps: 5, number: 100 });
let drawing;
for await (const message of many) {
  if (message.type === "data" && message.data[0].length > 0) {
    drawing = message.data[1].run;
    break;
  }
}
await many.cancel();
await until(async () => (await runs()).find((state) => state.run === drawing).state === "stopped");

// What is wrong is said in the server's own words.
assert.match(await refusal(() => client.predict("/train", [given, "", 1])), /instance_prompt/);
const elsewhere = [{ path: "http://example.invalid/a.png", meta: { _type: "gradio.FileData" } }];
assert.match(await refusal(() => client.predict("/train", [elsewhere, prompt, 1])), /nothing is fetched/);

// Cancelling a training stops it.
const long = client.submit("/train", [given, prompt, 100000, null, options]);
let name;
for await (const message of long) {
  if (message.type === "data" && message.data[1].step > 2) {
    name = message.data[0];
    break;
  }
}
assert.equal((await runs()).find((state) => state.run === name).state, "running");
await long.cancel();
await until(async () => (await runs()).find((state) => state.run === name).state === "stopped");
process.exit(0);
