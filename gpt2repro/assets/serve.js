// The page to write with. It asks the server that it came from, and nobody else.
"use strict";
(() => {
const {$, element, theming} = page;
theming()();

// The rules: name in the API, words, from, to, step, at first, what it does

const rules = [
  ["temperature", "temperature", 0, 2, 0.05, 1, "0: always the likeliest token"],
  ["top_k", "top-k", 0, 200, 1, 40, "the k likeliest tokens; 0: all (2019: 40)"],
  ["top_p", "top-p", 0.01, 1, 0.01, 1, "those that hold this much probability"],
  ["min_p", "min-p", 0, 1, 0.01, 0, "those with this share of the best one's"],
  ["repetition_penalty", "repetition penalty", 0.5, 2, 0.05, 1, "above 1: less of what was there"],
  ["frequency_penalty", "frequency penalty", -2, 2, 0.1, 0, "nats less for each time it was written"],
  ["presence_penalty", "presence penalty", -2, 2, 0.1, 0, "nats less if it was written"],
  ["no_repeat_ngram", "no n-gram twice", 0, 10, 1, 0, "of so many tokens; 0: any may repeat"],
  ["max_tokens", "tokens to write", 1, 500, 1, 60, ""],
  ["min_tokens", "no end of text before", 0, 500, 1, 0, "tokens"],
];
const sliders = {};
for (const [name, words, min, max, step, first, hint] of rules) {
  const input = element("input", {type: "range", id: name, min, max, step, value: first});
  const output = element("output", {for: name});
  input.oninput = () => { output.textContent = input.value; save(); };
  const box = element("div", {class: "slider"}, element("label", {for: name}, words), output, input);
  if (hint) box.append(element("small", {}, hint));
  $("sliders").append(box);
  sliders[name] = {input, output, first};
}
const fields = ["prompt", "stops", "banned", "bias", "seed"];

// What was typed and set lasts over a reload, where the browser allows it.
const key = "gpt2repro serve";
function save() {
  const kept = {};
  for (const f of fields) kept[f] = $(f).value;
  for (const [name, s] of Object.entries(sliders)) kept[name] = s.input.value;
  kept.fresh = $("fresh").checked;
  try { sessionStorage.setItem(key, JSON.stringify(kept)); } catch {}
}
function restore() {
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(key) || "{}"); } catch {}
  for (const f of fields) if (f in kept) $(f).value = kept[f];
  for (const [name, s] of Object.entries(sliders)) {
    if (name in kept) s.input.value = kept[name];
    s.output.textContent = s.input.value;
  }
  if ("fresh" in kept) $("fresh").checked = kept.fresh;
}
for (const f of [...fields, "fresh"]) $(f).addEventListener("input", save);
$("reset").onclick = () => {
  for (const s of Object.values(sliders)) { s.input.value = s.first; s.output.textContent = s.input.value; }
  for (const f of ["stops", "banned", "bias"]) $(f).value = "";
  save();
};
restore();

const listed = (text, separator) => text.split(separator).filter(s => s.trim());
function biases(text) {
  const out = {};
  for (const part of listed(text, ",")) {
    const at = part.lastIndexOf("="), nats = Number(part.slice(at + 1));
    if (at < 1 || !part.slice(at + 1).trim() || !Number.isFinite(nats))
      throw new Error(`“${part.trim()}” is no bias: write a word, = and a number, such as cat=2.5`);
    out[part.slice(0, at).trim()] = nats;
  }
  return out;
}
// A new seed for each text, unless the reader keeps one. It is shown, so that it can be kept afterwards.
function nextSeed() {
  if ($("fresh").checked) $("seed").value = Math.floor(Math.random() * 2 ** 31);
  const seed = Number($("seed").value);
  if (!Number.isSafeInteger(seed)) throw new Error("the seed must be a whole number");
  save();
  return seed;
}
function asked() {
  const body = {};
  for (const [name, s] of Object.entries(sliders)) body[name] = Number(s.input.value);
  body.min_tokens = Math.min(body.min_tokens, body.max_tokens);
  body.stop = listed($("stops").value, "|").map(s => s.replaceAll("\\n", "\n"));
  body.bad_words = listed($("banned").value, ",").map(s => s.trim());
  body.word_bias = biases($("bias").value);
  return body;
}

// The server

class Failed extends Error {}
async function ask(path, body, signal) {
  let answer;
  try {
    const post = {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)};
    answer = await fetch(path, {...(body ? post : {}), signal});
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Failed("the server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const error = await answer.json().catch(() => ({}));
  throw new Failed(error.error?.message || `the server answers with status ${answer.status}`);
}
// The events of a stream, one JSON value each
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Failed("the stream broke off: the server has stopped");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failed(event.error.message);
      yield event;
    }
  }
}

// A pane: a model and its text. The text is a list of tokens; each stands at a place in the characters.

let models = [];
const panes = [];

class Pane {
  constructor() {
    this.box = $("pane-template").content.cloneNode(true).firstElementChild;
    const find = selector => this.box.querySelector(selector);
    this.select = find("select");
    this.text = find(".text");
    this.status = find(".status");
    this.facts = find(".facts");
    this.follow = find(".follow");
    this.earlier = find(".earlier");
    this.more = find(".more");
    this.edit = find(".edit");
    this.begin();
    this.more.onclick = () => write(this, this.tokens.map(t => t.id), {own: this.own});
    this.edit.onclick = () => toEdit(this.chars.join(""));
    this.select.onchange = () => { this.begin(); this.say(""); this.clearEarlier(); this.show(); };
    this.text.onclick = e => { if (e.target.dataset.i) this.open(Number(e.target.dataset.i)); };
    this.text.onkeydown = e => this.keys(e);
    $("panes").append(this.box);
  }

  get model() { return models.find(m => m.id === this.select.value); }
  get busy() { return Boolean(this.abort); }

  begin() {
    this.chars = [];
    this.tokens = [];
    this.at = -1;
    this.own = 0;
    this.text.replaceChildren();
    this.buttons();
  }
  buttons() {
    this.more.disabled = this.edit.disabled = this.busy || !this.tokens.length;
  }
  say(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("wrong", wrong);
  }

  // Take what is new of the text. An offset is a number of characters, which are more than one unit for some.
  add(choice) {
    this.chars.push(...choice.text);
    const l = choice.logprobs;
    for (let k = 0; k < l.tokens.length; k++) {
      const token = {id: l.token_ids[k], name: l.tokens[k], start: l.text_offset[k],
                     logprob: l.token_logprobs[k], others: l.candidates[k]};
      token.span = element("span", {class: "token", "data-i": this.tokens.length});
      if (this.tokens.length < this.own) token.span.classList.add("own");
      this.tokens.push(token);
      this.text.append(token.span);
    }
    this.draw(this.tokens.length - l.tokens.length - 1);
  }
  draw(from) {
    for (let i = Math.max(0, from); i < this.tokens.length; i++) {
      const t = this.tokens[i], end = this.tokens[i + 1]?.start ?? this.chars.length;
      const text = this.chars.slice(t.start, end).join("");
      t.span.textContent = text;
      t.span.classList.toggle("empty", !text);
      t.span.classList.toggle("line", text.startsWith("\n"));
      if (t.logprob !== null) {
        const bits = -t.logprob / Math.LN2;
        t.span.style.backgroundColor = `rgb(var(--heat) / ${Math.min(bits / 12, 1) * 0.65})`;
      }
    }
  }

  // Moving among tokens with the keyboard
  keys(e) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (step) this.mark(Math.max(0, Math.min(this.tokens.length - 1, this.at + step)));
    else if (e.key === "Enter" && this.at >= 0) this.open(this.at);
    else return;
    e.preventDefault();
  }
  mark(i) {
    this.tokens[this.at]?.span.classList.remove("at");
    this.at = this.tokens.length ? i : -1;
    this.tokens[this.at]?.span.classList.add("at");
    this.tokens[this.at]?.span.scrollIntoView({block: "nearest"});
  }
  open(i) {
    this.mark(i);
    if (!this.busy) showCard(this, i);
  }

  // What is known of the model
  show() {
    const m = this.model;
    this.facts.replaceChildren();
    this.follow.hidden = !m?.run;
    if (!m) return;
    const facts = [];
    if (m.parameters) facts.push(`${short(m.parameters)} parameters`, `context of ${m.max_model_len} tokens`);
    const run = m.run;
    if (run) {
      facts.push(m.checkpoint ? `checkpoint ${Number(m.checkpoint.replace("step-", ""))}` : "no checkpoint yet");
      if (run.steps) facts.push(run.finished ? "finished" : `step ${run.step} of ${run.steps}`);
      const last = run.points?.at(-1);
      if (last) facts.push(`${last[1].toFixed(3)} bits per byte held out`);
      if (run.left_s && !run.finished) facts.push(`${clock(run.left_s)} left`);
      if (run.problem) facts.push(run.problem);
    }
    this.facts.append(...facts.map(f => element("span", {}, f)));
    if (run?.points?.length > 1) this.facts.append(curve(run.points));
  }
  clearEarlier() {
    this.earlier.hidden = true;
    this.earlier.querySelector("ol").replaceChildren();
  }
  remember() {
    if (!this.tokens.length || !this.checkpoint) return;
    const step = Number(this.checkpoint.replace("step-", ""));
    const item = element("li", {}, element("b", {}, `checkpoint ${step}`), this.chars.join(""));
    this.earlier.querySelector("ol").prepend(item);
    this.earlier.hidden = false;
  }
}

const short = n => n >= 1e9 ? +(n / 1e9).toPrecision(3) + "B" : n >= 1e6 ? +(n / 1e6).toPrecision(3) + "M"
                 : n >= 1e3 ? +(n / 1e3).toPrecision(3) + "k" : String(n);
const clock = s => s >= 3600 ? `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`
                 : s >= 60 ? `${Math.round(s / 60)} min` : `${Math.round(s)} s`;
function curve(points) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const [xs, ys] = [0, 1].map(k => points.map(p => p[k]));
  const scaled = (v, all) => (v - Math.min(...all)) / (Math.max(...all) - Math.min(...all) || 1);
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  line.setAttribute("points", points.map(p => `${100 * scaled(p[0], xs)},${20 - 20 * scaled(p[1], ys)}`).join(" "));
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Held-out loss over the steps");
  svg.append(line);
  return svg;
}

// Writing: the prompt comes back with the text, so that each of its tokens is known too.

async function write(pane, prompt, {own = Infinity, seed, tokens} = {}) {
  closeCard();
  pane.abort?.abort();
  const abort = pane.abort = new AbortController();
  const kept = typeof prompt === "string" ? prompt : null;
  try {
    const body = {model: pane.select.value, prompt, ...asked(), seed: seed ?? nextSeed(), stream: true,
                  echo: true, logprobs: 10, slide: true, return_token_ids: true,
                  stream_options: {include_usage: true}};
    if (tokens === 0) Object.assign(body, {max_tokens: 0, min_tokens: 0});
    pane.say("reading …");
    buttons();
    const start = performance.now();
    const answer = await ask("/v1/completions", body, abort.signal);
    pane.begin();
    if (kept !== null) pane.prompt = kept;
    let n = 0, ended = "", first = true;
    for await (const event of events(answer)) {
      pane.checkpoint = event.system_fingerprint;
      for (const choice of event.choices) {
        // The first part is the prompt.
        if (first) pane.own = Math.min(own, choice.logprobs.tokens.length);
        else n += choice.logprobs.tokens.length;
        first = false;
        pane.add(choice);
        ended = choice.finish_reason || ended;
        const s = (performance.now() - start) / 1000;
        pane.say(n ? `${n} tokens, ${(n / s).toFixed(1)} a second` : "");
      }
    }
    if (tokens === 0) pane.say("The colours show the surprise.");
    else if (ended === "stop") pane.say(`${pane.status.textContent}; it ends here`);
  } catch (e) {
    if (e.name === "AbortError") pane.say(`${pane.status.textContent}; stopped`.replace(/^reading …; /, ""));
    else pane.say(e.message, true);
  } finally {
    if (pane.abort === abort) pane.abort = null;
    buttons();
  }
}
function writeAll(tokens) {
  let seed;
  try { seed = nextSeed(); } catch (e) { return panes.forEach(p => p.say(e.message, true)); }
  for (const pane of panes) {
    pane.clearEarlier();
    write(pane, $("prompt").value, {seed, tokens});
  }
}
function stop() { for (const pane of panes) pane.abort?.abort(); }
function buttons() {
  $("stop").disabled = !panes.some(p => p.busy);
  for (const pane of panes) pane.buttons();
}
function toEdit(text) {
  closeCard();
  $("prompt").value = text;
  $("prompt").focus();
  $("prompt").setSelectionRange(text.length, text.length);
  save();
}

// The card: what else could stand in a token's place

let open = null;  // the pane
function shown(name) {
  return name.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, s => "␣".repeat(s.length)) || "∅";
}
function showCard(pane, i) {
  const card = $("card"), token = pane.tokens[i], ids = pane.tokens.map(t => t.id);
  open = pane;
  card.replaceChildren();
  const rank = token.others.findIndex(o => o.id === token.id) + 1;
  const head = token.logprob === null ? "nothing before it was read"
    : `${percent(token.logprob)}, ${(-token.logprob / Math.LN2).toFixed(1)} bits` +
      (rank ? `, number ${rank}` : `, beyond the first ${token.others.length}`);
  card.append(element("p", {}, element("code", {}, shown(token.name)), ` ${head}`));
  for (const other of token.others) {
    const bar = element("i"), row = element("button", {type: "button", class: "other"},
      bar, element("code", {}, shown(other.token)), element("span", {}, percent(other.logprob)));
    bar.style.width = `${100 * Math.exp(other.logprob)}%`;
    if (other.id === token.id) row.setAttribute("aria-current", "true");
    // The chosen token belongs to the reader, as those before it do, up to what the model had written.
    row.onclick = () => write(pane, [...ids.slice(0, i), other.id], {own: Math.min(i, pane.own)});
    card.append(row);
  }
  const again = element("button", {type: "button", class: "button"}, "Write again from here");
  again.disabled = !i;
  again.onclick = () => write(pane, ids.slice(0, i), {own: Math.min(i, pane.own)});
  const edit = element("button", {type: "button", class: "button"}, "Edit from here");
  edit.onclick = () => toEdit(pane.chars.slice(0, token.start).join(""));
  card.append(element("div", {class: "card-actions"}, again, edit));
  card.hidden = false;
  const place = token.span.getBoundingClientRect();
  const left = Math.min(place.left, innerWidth - card.offsetWidth - 8);
  card.style.left = `${Math.max(8, left) + scrollX}px`;
  const below = place.bottom + 6, above = place.top - card.offsetHeight - 6;
  const fits = below + card.offsetHeight < innerHeight || above < 0;
  card.style.top = `${(fits ? below : above) + scrollY}px`;
  (card.querySelector("[aria-current]") || card.querySelector("button:enabled")).focus({preventScroll: true});
}
function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  return p >= 10 ? `${p.toFixed(0)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : `${p.toPrecision(1)} %`;
}
function closeCard() {
  if ($("card").hidden) return;
  $("card").hidden = true;
  open.text.focus({preventScroll: true});
  open = null;
}
$("card").onkeydown = e => {
  const all = [...$("card").querySelectorAll("button:enabled")];
  const step = {ArrowDown: 1, ArrowUp: -1}[e.key];
  if (!step) return;
  e.preventDefault();
  all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
};
document.addEventListener("pointerdown", e => {
  if (!$("card").contains(e.target) && !e.target.dataset?.i) closeCard();
});
addEventListener("keydown", e => {
  if (e.key === "Escape" && !$("card").hidden) closeCard();
  else if (e.key === "Escape") stop();
  else if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) writeAll();
  else return;
  e.preventDefault();
});

// One pane or two

$("write").onclick = () => writeAll();
$("look").onclick = () => writeAll(0);
$("stop").onclick = stop;
$("compare").onclick = () => {
  closeCard();
  if (panes.length === 2) {
    panes[1].abort?.abort();
    panes.pop().box.remove();
  } else {
    panes.push(new Pane());
    options();
    const other = models.find(m => m.id !== panes[0].select.value);
    if (other) panes[1].select.value = other.id;
    panes[1].show();
  }
  $("compare").setAttribute("aria-pressed", String(panes.length === 2));
  buttons();
};

// The models, and runs as they learn

function options() {
  for (const pane of panes) {
    const was = pane.select.value, ids = models.map(m => m.id);
    const now = [...pane.select.options].map(o => o.value);
    if (ids.join("\0") !== now.join("\0")) {
      pane.select.replaceChildren(...ids.map(id => element("option", {value: id}, id)));
      if (ids.includes(was)) pane.select.value = was;
    }
  }
}
async function look() {
  try {
    models = (await (await ask("/v1/models")).json()).data;
    options();
    for (const pane of panes) {
      pane.show();
      const {checkpoint, run} = pane.model || {};
      const follows = run && pane.follow.querySelector("input").checked;
      if (!follows || pane.busy || !checkpoint || checkpoint === pane.checkpoint) continue;
      pane.remember();
      // The seed of the text before: what changes is the model.
      write(pane, pane.prompt ?? $("prompt").value, {seed: Number($("seed").value)});
    }
    document.title = "Write with a model";
  } catch (e) {
    if (!panes.some(p => p.busy)) panes[0].say(e.message, true);
  }
  setTimeout(look, 2000);
}
panes.push(new Pane());
look();
})();
