// The index, alive: what the inspector found (shown by look.js), and a box in which the model of this build writes. The
// model is loaded when it is first wanted, and runs in a worker. Nothing that is typed leaves the page.
"use strict";
(() => {
const $ = id => document.getElementById(id);
const here = document.currentScript.src.replace(/[^/]*$/, "");
const inside = $("alive-inside");
if (inside) showInspection(inside, aliveInspection);

const box = $("writer-text"), written = $("writer-written"), status = $("writer-status"), facts = $("writer-facts");
const bar = $("writer-bar"), stop = $("writer-stop"), go = $("writer-go");
const heat = $("writer-heat"), seed = $("writer-seed");
const least = 40, most = 120;  // tokens of a text
let worker = null, ready = null, run = 0, begun = 0, count = 0, at = -1;
let spans = [];  // of the tokens, with what is known of them

// Loading

async function fetched(name, size, progress) {
  const answer = await fetch(here + name);
  if (!answer.ok) throw Error(`${name}: ${answer.status} ${answer.statusText}`);
  const reader = answer.body.getReader(), parts = [];
  for (let done = 0; ;) {
    const part = await reader.read();
    if (part.done) break;
    parts.push(part.value);
    done += part.value.length;
    progress(done / size);
  }
  return new Blob(parts).arrayBuffer();
}
function script(name) {
  return new Promise((resolve, reject) => {
    const e = document.createElement("script");
    Object.assign(e, {src: here + name, onload: resolve, onerror: () => reject(Error(`${name} cannot be read`))});
    document.head.append(e);
  });
}
// A page opened as a file may not fetch its neighbours. There a script brings the same bytes.
async function load(progress) {
  if (location.protocol === "file:") {
    await script("weights.js");
    return {spec: aliveWeights.spec, file: Uint8Array.from(atob(aliveWeights.file), c => c.charCodeAt(0)).buffer};
  }
  const spec = await (await fetch(here + "model.json")).json();
  return {spec, file: await fetched("model.safetensors", spec.bytes, progress)};
}
function start() {
  ready ??= new Promise((resolve, reject) => {
    const source = `"use strict"; (${writerWorker})(${writerModel});`;
    const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
    worker = new Worker(url);
    worker.onerror = e => reject(Error(e.message || "its worker does not start"));
    worker.onmessage = ({data}) => {
      if (data.ready) return resolve();
      if (data.problem && data.run === undefined) return reject(Error(data.problem));
      if (data.run === run) receive(data);
    };
    bar.hidden = false;
    load(share => { bar.value = share; }).then(o => worker.postMessage(o, [o.file])).catch(reject);
  }).finally(() => { bar.hidden = true; });
  return ready;
}

// Writing

function busy(on) {
  stop.disabled = !on;
  go.textContent = on ? "Write anew" : "Write";
}
async function write() {
  const mine = ++run;
  busy(true);
  written.replaceChildren();
  [spans, count, at] = [[], 0, -1];
  facts.textContent = "";
  written.hidden = false;
  try {
    status.textContent = ready ? "" : "The model is loading …";
    await start();
  } catch (e) {
    status.textContent = `The model cannot run in this browser: ${e.message}.`;
    $("writer").dataset.state = "broken";
    ready = null;
    return busy(false);
  }
  if (mine !== run) return;
  begun = performance.now();
  const number = Math.abs(Math.trunc(+seed.value)) || 0;
  worker.postMessage({run, text: box.value, temperature: +heat.value, seed: number, most, least});
}
function receive(o) {
  if (o.problem) {
    status.textContent = `The model stopped: ${o.problem}`;
    return busy(false);
  }
  if (o.text) {
    const e = document.createElement("span");
    e.textContent = o.text;
    if (o.given) e.className = "given";
    if (o.bits !== undefined) e.style.setProperty("--share", Math.min(1, o.bits / 16).toFixed(3));
    spans.push({e, ...o});
    written.append(e);
  }
  if (!o.given && !o.ended) count++;
  if (!o.ended) return;
  busy(false);
  const seconds = (performance.now() - begun) / 1000;
  const how = o.ended === "eot" ? "The model ended its document after" : "Written:";
  status.textContent = `${how} ${count} tokens in ${seconds.toFixed(1)} s, ${Math.round(count / seconds)} a second.`;
  $("writer").dataset.state = "done";
}
function halt() {
  if (stop.disabled) return;
  run++;
  worker?.postMessage({run});
  status.textContent = `Stopped after ${count} tokens.`;
  busy(false);
}

// A token and what else the model thought of

const visible = s => s.replace(/ /g, "·").replace(/\n/g, "⏎");
function choose(i) {
  if (!spans[i]) return;
  spans[at]?.e.removeAttribute("aria-current");
  at = i;
  const {e, text, bits, best} = spans[i];
  e.setAttribute("aria-current", "true");
  facts.textContent = bits === undefined
    ? `“${visible(text)}” begins the text: nothing told the model what to expect.`
    : `“${visible(text)}”: ${bits.toFixed(1)} bits. The likeliest here: `
      + best.map(([t, p]) => `“${visible(t)}” ${(100 * p).toFixed(0)} %`).join(", ");
}
written.addEventListener("click", e => choose(spans.findIndex(s => s.e === e.target)));
written.addEventListener("keydown", e => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
  if (!step) return;
  e.preventDefault();
  choose(Math.max(0, Math.min(spans.length - 1, at + step)));
});

$("writer").addEventListener("submit", e => { e.preventDefault(); write(); });
stop.addEventListener("click", halt);
heat.addEventListener("input", () => { $("writer-heat-value").value = (+heat.value).toFixed(1); });
$("writer").addEventListener("keydown", e => {
  if (e.key === "Escape") halt();
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); write(); }
});
$("writer-another").addEventListener("click", () => { seed.value = (+seed.value || 0) + 1; write(); });
if (!window.Worker) {
  status.textContent = "This browser cannot run the model: it has no workers.";
  go.disabled = true;
}
})();
