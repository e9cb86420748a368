// A GPT-2 in plain JavaScript: text to tokens, the forward pass with a cache of keys and values, the next token. With the
// same weights it computes what gpt2repro.model computes (tests/test_site.py). writer.js makes a worker of the source of
// these two functions, so they use nothing from outside.

function writerModel(
  spec,  // `config`, `tokens`, `eot`, `escape`: what tools/alive.py writes
  file,  // ArrayBuffer: safetensors with int8 matrices, a scale for each of their rows, and the rest in float32
) {
  "use strict";
  const {n_layer: L, n_head: H, n_embd: C, n_ctx, layer_norm_epsilon: eps} = spec.config;
  const D = C / H;

  // Weights. The file is a length (8 bytes), so much JSON, and the numbers.

  const view = new DataView(file), begin = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, begin - 8)));
  function tensor(name) {
    const {dtype, data_offsets: [from, to]} = header[name];
    const bytes = file.slice(begin + from, begin + to);
    return dtype === "I8" ? new Int8Array(bytes) : new Float32Array(bytes);
  }
  const both = name => ({w: tensor(`${name}.weight`), b: tensor(`${name}.bias`)});
  const matrix = name => ({...both(name), scale: tensor(`${name}.scale`)});
  const layers = Array.from({length: L}, (_, l) => ({
    ln_1: both(`h.${l}.ln_1`), c_attn: matrix(`h.${l}.attn.c_attn`), c_proj: matrix(`h.${l}.attn.c_proj`),
    ln_2: both(`h.${l}.ln_2`), c_fc: matrix(`h.${l}.mlp.c_fc`), down: matrix(`h.${l}.mlp.c_proj`),
    k: new Float32Array(n_ctx * C), v: new Float32Array(n_ctx * C),  // the cache: (n_ctx,C)
  }));
  const wte = {w: tensor("wte.weight"), scale: tensor("wte.scale"), b: null};
  const wpe = tensor("wpe.weight"), ln_f = both("ln_f");

  // Forward pass of one token: (C,) in and out

  function linear(y, x, {w, scale, b}) {  // y = x·wᵀ·scale + b; four sums, so that none waits for another
    const K = x.length;
    for (let n = 0, at = 0; n < y.length; n++, at += K) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (let k = 0; k < K; k += 4) {
        s0 += w[at + k] * x[k];
        s1 += w[at + k + 1] * x[k + 1];
        s2 += w[at + k + 2] * x[k + 2];
        s3 += w[at + k + 3] * x[k + 3];
      }
      y[n] = (s0 + s1 + s2 + s3) * scale[n] + (b ? b[n] : 0);
    }
  }
  function norm(y, x, {w, b}) {
    let mean = 0, variance = 0;
    for (let i = 0; i < C; i++) mean += x[i] / C;
    for (let i = 0; i < C; i++) variance += (x[i] - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < C; i++) y[i] = (x[i] - mean) * scale * w[i] + b[i];
  }
  const root = Math.sqrt(2 / Math.PI);
  const gelu = x => 0.5 * x * (1 + Math.tanh(root * (x + 0.044715 * x ** 3)));

  const x = new Float32Array(C), h = new Float32Array(C), y = new Float32Array(C);
  const qkv = new Float32Array(3 * C), wide = new Float32Array(4 * C), scores = new Float32Array(n_ctx);
  const logits = new Float32Array(spec.tokens.length);

  function attend(y, qkv, k, v, n) {  // to n tokens
    y.fill(0);
    for (let from = 0; from < C; from += D) {
      let most = -Infinity, sum = 0;
      for (let t = 0; t < n; t++) {
        let s = 0;
        for (let i = from; i < from + D; i++) s += qkv[i] * k[t * C + i];
        scores[t] = s / Math.sqrt(D);
        most = Math.max(most, scores[t]);
      }
      for (let t = 0; t < n; t++) sum += scores[t] = Math.exp(scores[t] - most);
      for (let t = 0; t < n; t++) {
        const share = scores[t] / sum;
        for (let i = from; i < from + D; i++) y[i] += share * v[t * C + i];
      }
    }
  }
  function read(id, at) {  // token and its place; `x` is the state of the last block afterwards
    for (let i = 0; i < C; i++) x[i] = wte.w[id * C + i] * wte.scale[id] + wpe[at * C + i];
    for (const o of layers) {
      norm(h, x, o.ln_1);
      linear(qkv, h, o.c_attn);
      o.k.set(qkv.subarray(C, 2 * C), at * C);
      o.v.set(qkv.subarray(2 * C), at * C);
      attend(h, qkv, o.k, o.v, at + 1);
      linear(y, h, o.c_proj);
      for (let i = 0; i < C; i++) x[i] += y[i];
      norm(h, x, o.ln_2);
      linear(wide, h, o.c_fc);
      for (let i = 0; i < 4 * C; i++) wide[i] = gelu(wide[i]);
      linear(y, wide, o.down);
      for (let i = 0; i < C; i++) x[i] += y[i];
    }
  }
  function score() {  // logits of the next token
    norm(h, x, ln_f);
    linear(logits, h, wte);
    return logits;
  }

  // Tokens: byte-pair encoding as SentencePiece does it. Of two pairs the one of the smaller id is merged first.

  const {tokens, eot, escape} = spec;  // a token is text, a byte, or null where no text has it
  const ids = new Map(), byteIds = [], utf8 = new TextEncoder();
  tokens.forEach((t, i) => { if (typeof t === "string") ids.set(t, i); else if (t !== null) byteIds[t] = i; });
  const mark = "\u2581";  // SentencePiece's own sign for a space
  const escaped = s => s.replaceAll(escape, escape + "b").replaceAll(mark, escape + "a");
  const unescaped = s => s.replaceAll(escape + "a", mark).replaceAll(escape + "b", escape);

  function encode(text) {
    const parts = [...escaped(text)];
    const rank = i => ids.get(parts[i] + parts[i + 1]) ?? Infinity;
    const ranks = parts.map((_, i) => (i + 1 < parts.length ? rank(i) : Infinity));
    for (;;) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (!(ranks[best] < Infinity)) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      for (const i of [best - 1, best]) if (i >= 0) ranks[i] = i + 1 < parts.length ? rank(i) : Infinity;
    }
    return parts.flatMap(p => ids.get(p) ?? [...utf8.encode(p)].map(b => byteIds[b]));
  }
  const bytesOf = id => {
    const t = tokens[id];
    return typeof t === "string" ? utf8.encode(t) : new Uint8Array(t === null ? [] : [t]);
  };
  function decoder() {  // token by token, never half a character
    const stream = new TextDecoder("utf-8", {ignoreBOM: true});
    let rest = "";
    return id => {
      let s = rest + (id === null ? stream.decode() : stream.decode(bytesOf(id), {stream: true}));
      rest = "";
      if (id !== null && s.endsWith(escape)) [s, rest] = [s.slice(0, -escape.length), escape];
      return unescaped(s);
    };
  }
  const shown = id => (id === eot ? "⟨end⟩" : new TextDecoder().decode(bytesOf(id)));

  // Choices

  function random(seed) {  // mulberry32: numbers from 0 to 1
    let a = seed >>> 0;
    return () => {
      a = a + 0x6D2B79F5 | 0;
      let t = Math.imul(a ^ a >>> 15, 1 | a);
      t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
      return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
    };
  }
  function draw(temperature, u, mayEnd) {  // the likeliest token at temperature 0
    if (!mayEnd) logits[eot] = -Infinity;
    let best = 0, sum = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    if (temperature < 1e-3) return best;
    const weight = i => Math.exp((logits[i] - logits[best]) / temperature);
    for (let i = 0; i < logits.length; i++) sum += weight(i);
    let left = u * sum;
    for (let i = 0; i < logits.length; i++) if ((left -= weight(i)) < 0) return i;
    return best;
  }
  function facts(id, n = 5) {  // bits of a token, and the likeliest ones with their probabilities
    let most = -Infinity, sum = 0;
    for (const v of logits) most = Math.max(most, v);
    for (const v of logits) sum += Math.exp(v - most);
    const p = i => Math.exp(logits[i] - most) / sum;
    const best = [];
    for (let i = 0; i < logits.length; i++) {
      if (best.length === n && logits[i] <= logits[best[n - 1]]) continue;
      const place = best.findIndex(b => logits[b] < logits[i]);
      best.splice(place < 0 ? best.length : place, 0, i);
      best.length = Math.min(n, best.length);
    }
    return {bits: -Math.log2(p(id)), best: best.map(i => [shown(i), p(i)])};
  }

  // The tokens of a text, and then those that continue it, each as {id, text, bits, best, given}. The document does not
  // end before `least` new tokens.
  function* write(text, temperature = 0, seed = 0, most = 100, least = 0) {
    const given = encode(text), all = given.length ? [...given] : [eot], say = decoder(), next = random(seed);
    let at = 0;
    const start = Math.max(0, all.length - n_ctx);  // of a longer text only the end is read
    for (let i = 0; i < all.length; i++) {
      const known = at ? facts(all[i]) : {};
      if (given.length) yield {id: all[i], text: say(all[i]), given: true, ...known};
      if (i < start) continue;
      read(all[i], at++);
      score();
    }
    for (let n = 0; n < most; n++) {
      const id = draw(temperature, next(), n >= least);
      if (id === eot) return yield {text: say(null), ended: "eot"};
      all.push(id);
      yield {id, text: say(id), ...facts(id)};
      if (n + 1 === most) break;
      if (at < n_ctx) {
        read(id, at++);
      } else {  // the context is full: its last half becomes a new beginning
        at = 0;
        for (const old of all.slice(-Math.max(1, n_ctx >> 1))) read(old, at++);
      }
      score();
    }
    yield {text: say(null), ended: "length"};
  }
  return {encode, write, logits};
}

function writerWorker(
  makeModel,  // `writerModel`
) {
  "use strict";
  let model = null, run = 0;
  const channel = new MessageChannel(), waiting = [];
  channel.port1.onmessage = () => waiting.shift()();
  const turn = () => new Promise(go => { waiting.push(go); channel.port2.postMessage(0); });  // messages come in between
  async function write(m) {
    for (const o of model.write(m.text, m.temperature, m.seed, m.most, m.least)) {
      if (m.run !== run) return;
      postMessage({run, ...o});
      await turn();
    }
  }
  self.onmessage = async ({data}) => {
    try {
      if (data.file) {
        model = makeModel(data.spec, data.file);
        return postMessage({ready: true});
      }
      run = data.run;  // another number than that of a text which is being written ends it
      if (data.text !== undefined) await write(data);
    } catch (e) {
      postMessage({run: data.run, problem: String(e)});
    }
  };
}
