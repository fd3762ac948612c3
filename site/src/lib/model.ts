/**
 * A GPT's forward pass, one token at a time, with a key/value cache: what gptcourse/model.py and attention.py compute.
 *
 * Plain loops over float32 arrays. At five million weights they write some hundred tokens a second, every number on the
 * way can be looked at, and nothing has to be downloaded but the weights. Shapes: C = n_embd, H = n_head, D = C / H,
 * V = vocab_size, T = tokens so far.
 */

import { FileError, type Tensors } from "./safetensors";

/** The fields of config.json that matter here, under transformers' names. */
export interface Config {
  vocab_size: number;
  n_positions: number;
  n_embd: number;
  n_layer: number;
  n_head: number;
  layer_norm_epsilon: number;
  activation_function: string;
  norm: string;
  position_embedding: string;
  qk_norm: boolean;
  mup_base_width: number | null;
}

const DEFAULTS = {
  layer_norm_epsilon: 1e-5,
  activation_function: "gelu_new",
  norm: "layernorm",
  position_embedding: "learned",
  qk_norm: false,
  mup_base_width: null,
};

/** What one layer did with one token. */
export interface LayerTrace {
  normed: Float32Array; // (C) what attention reads
  queries: Float32Array; // (C) the heads side by side
  keys: Float32Array; // (C)
  values: Float32Array; // (C)
  weights: Float32Array[]; // H × (T) attention weights of each head
  heads: Float32Array; // (C) what the heads brought, side by side
  attended: Float32Array; // (C) what attention adds to the residual stream
  middle: Float32Array; // (C) the residual stream after attention
  normed2: Float32Array; // (C) what the MLP reads
  hidden: Float32Array; // (4C) the MLP's hidden units after their activation
  mlp: Float32Array; // (C) what the MLP adds
  output: Float32Array; // (C) the residual stream after this block
}

/** What happened with one token, from its id to the logits of the next one. */
export interface Trace {
  id: number;
  token: Float32Array; // (C) its row of wte
  position: Float32Array; // (C) the row of wpe, zeros without one
  embedded: Float32Array; // (C) their sum
  layers: LayerTrace[];
  final: Float32Array; // (C) after the last norm
  logits: Float32Array; // (V)
}

/** Keys and values of the tokens so far, for each layer. Make `length` smaller to forget the last ones. */
export class Cache {
  length = 0;
  readonly keys: Float32Array[];
  readonly values: Float32Array[];

  constructor({ n_layer, n_positions, n_embd }: Config) {
    const room = () => new Float32Array(n_positions * n_embd);
    this.keys = Array.from({ length: n_layer }, room);
    this.values = Array.from({ length: n_layer }, room);
  }
}

interface Linear {
  weight: Float32Array; // (out, in)
  bias: Float32Array | null;
}

interface Norm {
  weight: Float32Array;
  bias: Float32Array | null; // RMSNorm has none
}

interface Block {
  ln_1: Norm;
  ln_2: Norm;
  c_attn: Linear;
  attn_proj: Linear;
  c_fc: Linear;
  mlp_proj: Linear;
}

/** The key of a head in a set of heads that are switched off. */
export const headKey = (layer: number, head: number) => `${layer}.${head}`;

export class GPT {
  readonly config: Config;
  private readonly wte: Float32Array;
  private readonly wpe: Float32Array | null;
  private readonly lmHead: Float32Array;
  private readonly lnF: Norm;
  private readonly blocks: Block[];

  /** `settings` is config.json and `tensors` model.safetensors, in transformers' GPT-2 layout or in ours. */
  constructor(settings: Partial<Config> & { model_type?: string }, tensors: Tensors) {
    const isGPT2 = settings.model_type === "gpt2";
    this.config = { ...DEFAULTS, ...settings } as Config;
    const { n_embd: C, n_layer, vocab_size, n_positions } = this.config;
    const get = (name: string, ...shape: number[]) => {
      const found = tensors.get(isGPT2 && name !== "lm_head.weight" ? `transformer.${name}` : name);
      if (found?.shape.join() !== shape.join()) throw new FileError("wrongShape", { name });
      return found.data;
    };
    const norm = (name: string): Norm => ({
      weight: get(`${name}.weight`, C),
      bias: this.config.norm === "layernorm" ? get(`${name}.bias`, C) : null,
    });
    const linear = (name: string, out: number, inner: number): Linear => ({
      weight: isGPT2
        ? transposed(get(`${name}.weight`, inner, out), inner, out)
        : get(`${name}.weight`, out, inner),
      bias: get(`${name}.bias`, out),
    });
    this.wte = get("wte.weight", vocab_size, C);
    this.wpe = this.config.position_embedding === "learned" ? get("wpe.weight", n_positions, C) : null;
    this.lmHead = tensors.has("lm_head.weight") ? get("lm_head.weight", vocab_size, C) : this.wte;
    this.lnF = norm("ln_f");
    this.blocks = Array.from({ length: n_layer }, (_, i) => ({
      ln_1: norm(`h.${i}.ln_1`),
      ln_2: norm(`h.${i}.ln_2`),
      c_attn: linear(`h.${i}.attn.c_attn`, 3 * C, C),
      attn_proj: linear(`h.${i}.attn.c_proj`, C, C),
      c_fc: linear(`h.${i}.mlp.c_fc`, 4 * C, C),
      mlp_proj: linear(`h.${i}.mlp.c_proj`, C, 4 * C),
    }));
  }

  /** The matrix of the LM head (V, C) and the embedding table (V, C), to look at. */
  get matrices() {
    return { wte: this.wte, wpe: this.wpe, lm_head: this.lmHead };
  }

  /** Reads one more token; returns what happened, the logits (V) of the next token last. */
  step(id: number, cache: Cache, off: ReadonlySet<string> = new Set()): Trace {
    const { n_embd: C, n_positions, layer_norm_epsilon: epsilon } = this.config;
    const at = cache.length;
    if (at >= n_positions) throw new RangeError(`The window has ${n_positions} positions.`);
    const token = this.wte.slice(id * C, (id + 1) * C);
    const position = this.wpe?.slice(at * C, (at + 1) * C) ?? new Float32Array(C);
    const embedded = sum(token, position);
    const layers: LayerTrace[] = [];
    let x = embedded;
    this.blocks.forEach((block, layer) => {
      const normed = this.norm(x, block.ln_1);
      const attention = this.attend(normed, block, cache, layer, off);
      const middle = sum(x, attention.attended);
      const normed2 = this.norm(middle, block.ln_2);
      const hidden = this.activate(affine(normed2, block.c_fc));
      const mlp = affine(hidden, block.mlp_proj);
      x = sum(middle, mlp);
      layers.push({ normed, ...attention, middle, normed2, hidden, mlp, output: x });
    });
    cache.length = at + 1;
    const final = normalise(x, this.lnF, epsilon, this.config.norm);
    const { mup_base_width: base } = this.config;
    const read = base ? final.map((value) => (value * base) / C) : final;
    const logits = affine(read, { weight: this.lmHead, bias: null });
    return { id, token, position, embedded, layers, final, logits };
  }

  private norm(x: Float32Array, norm: Norm) {
    return normalise(x, norm, this.config.layer_norm_epsilon, this.config.norm);
  }

  private activate(x: Float32Array): Float32Array {
    if (this.config.activation_function === "relu2") return x.map((value) => Math.max(0, value) ** 2);
    const c = Math.sqrt(2 / Math.PI);
    return x.map((v) => 0.5 * v * (1 + Math.tanh(c * (v + 0.044715 * v ** 3))));
  }

  /** Looks back from the newest token with every head of one layer. */
  private attend(normed: Float32Array, block: Block, cache: Cache, layer: number, off: ReadonlySet<string>) {
    const { n_embd: C, n_head: H, qk_norm, position_embedding } = this.config;
    const D = C / H;
    const at = cache.length;
    const all = affine(normed, block.c_attn);
    const [queries, keys, values] = [0, 1, 2].map((i) => all.slice(i * C, (i + 1) * C));
    for (let head = 0; head < H; head++) {
      for (const x of [queries, keys].map((x) => x.subarray(head * D, (head + 1) * D))) {
        if (position_embedding === "rotary") rotate(x, at);
        if (qk_norm) x.set(normalise(x, { weight: x.map(() => 1), bias: null }, 2 ** -23, "rmsnorm"));
      }
    }
    cache.keys[layer].set(keys, at * C);
    cache.values[layer].set(values, at * C);
    const heads = new Float32Array(C);
    const weights = Array.from({ length: H }, (_, head) => {
      const scores = new Float32Array(at + 1);
      for (let s = 0; s <= at; s++) {
        scores[s] = dot(queries, head * D, cache.keys[layer], s * C + head * D, D) / Math.sqrt(D);
      }
      const row = new Float32Array(softmax(scores));
      if (off.has(headKey(layer, head))) return row;
      for (let s = 0; s <= at; s++) {
        const from = s * C + head * D;
        for (let i = 0; i < D; i++) heads[head * D + i] += row[s] * cache.values[layer][from + i];
      }
      return row;
    });
    return { queries, keys, values, weights, heads, attended: affine(heads, block.attn_proj) };
  }
}

/** Returns what happened with each of the tokens, read into an empty window. */
export function traceAll(model: GPT, ids: number[], off?: ReadonlySet<string>): Trace[] {
  const cache = new Cache(model.config);
  return ids.map((id) => model.step(id, cache, off));
}

/** Returns exp(x) / Σ exp(x), in double precision: rules of sampling compare sums of thousands of these. */
export function softmax(x: Float32Array | Float64Array): Float64Array {
  const wide = new Float64Array(x);
  const largest = wide.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = wide.map((value) => Math.exp(value - largest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}

/** Returns −ln p(target) in nats. */
export function crossEntropy(logits: Float32Array, target: number): number {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - largest);
  return Math.log(total) + largest - logits[target];
}

/** Turns the pairs (i, i + D/2) of a query or key by angles that grow with its position: RoFormer, section 3.2.2. */
function rotate(x: Float32Array, position: number) {
  const half = x.length / 2;
  for (let i = 0; i < half; i++) {
    const angle = position * 10_000 ** (-i / half);
    const [a, b, cos, sin] = [x[i], x[i + half], Math.cos(angle), Math.sin(angle)];
    x[i] = a * cos - b * sin;
    x[i + half] = a * sin + b * cos;
  }
}

function normalise(x: Float32Array, { weight, bias }: Norm, epsilon: number, kind: string) {
  const n = x.length;
  const mean = kind === "layernorm" ? x.reduce((a, b) => a + b, 0) / n : 0;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2 / n;
  const scale = 1 / Math.sqrt(variance + epsilon);
  return x.map((value, i) => (value - mean) * scale * weight[i] + (bias?.[i] ?? 0));
}

function affine(x: Float32Array, { weight, bias }: Linear): Float32Array {
  const n = x.length;
  const out = new Float32Array(weight.length / n);
  for (let row = 0; row < out.length; row++) {
    out[row] = dot(x, 0, weight, row * n, n) + (bias ? bias[row] : 0);
  }
  return out;
}

/** Four sums side by side: the processor need not wait for one addition to begin the next. */
function dot(a: Float32Array, i: number, b: Float32Array, j: number, n: number): number {
  let [s0, s1, s2, s3] = [0, 0, 0, 0];
  let k = 0;
  for (; k + 3 < n; k += 4) {
    s0 += a[i + k] * b[j + k];
    s1 += a[i + k + 1] * b[j + k + 1];
    s2 += a[i + k + 2] * b[j + k + 2];
    s3 += a[i + k + 3] * b[j + k + 3];
  }
  for (; k < n; k++) s0 += a[i + k] * b[j + k];
  return s0 + s1 + s2 + s3;
}

function sum(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((value, i) => value + b[i]);
}

function transposed(matrix: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      out[column * rows + row] = matrix[row * columns + column];
    }
  }
  return out;
}
