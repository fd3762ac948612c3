/**
 * From logits to the distribution that the next token is drawn from, and a draw: gptcourse/generation.py, rule by rule.
 *
 * The order is that of transformers: repetition penalty, temperature, top-nσ, top-k, top-p, min-p, typical. Sources:
 * Fan et al. (2018), section 5.4; Holtzman et al. (2020), section 3.1; Nguyen et al. (2024); Tang et al. (2024);
 * Meister et al. (2023); Keskar et al. (2019), section 4.1.
 */

import { softmax } from "./model";

export interface Sampling {
  temperature: number; // 0 takes the best token
  top_k: number; // 0: off
  top_p: number; // 1: off
  min_p: number; // 0: off
  typical_p: number; // 1: off
  top_n_sigma: number; // 0: off
  repetition_penalty: number; // 1: off
  seed: number;
}

export const PLAIN: Sampling = {
  temperature: 1,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  typical_p: 1,
  top_n_sigma: 0,
  repetition_penalty: 1,
  seed: 1,
};

/** Returns the probabilities (V) of the next token, given the logits (V) and the tokens so far. */
export function distribution(
  logits: Float32Array,
  sampling: Sampling,
  previous: readonly number[],
): Float64Array {
  let x = Float64Array.from(logits);
  penalise(x, previous, sampling.repetition_penalty);
  if (sampling.temperature === 0) {
    const best = x.indexOf(x.reduce((a, b) => Math.max(a, b), -Infinity));
    return x.map((_, i) => (i === best ? 1 : 0));
  }
  x = x.map((value) => value / sampling.temperature);
  if (sampling.top_n_sigma > 0) keepTopNSigma(x, sampling.top_n_sigma);
  if (sampling.top_k > 0) keepTopK(x, sampling.top_k);
  if (sampling.top_p < 1) keepTopP(x, sampling.top_p);
  if (sampling.min_p > 0) keepMinP(x, sampling.min_p);
  if (sampling.typical_p < 1) keepTypicalP(x, sampling.typical_p);
  return softmax(x);
}

/**
 * Returns the token that is drawn: the first to arrive in a race, in which token i needs the time noise_i / p_i. The
 * noise depends on the seed and the place alone, so that a slider changes a token only where the probabilities do.
 */
export function draw(probabilities: Float64Array, seed: number, place: number): number {
  const random = generator(seed, place);
  let best = 0;
  let highest = -1;
  for (let i = 0; i < probabilities.length; i++) {
    const value = probabilities[i] / -Math.log(random());
    if (value > highest) [highest, best] = [value, i];
  }
  return best;
}

function penalise(x: Float64Array, previous: readonly number[], penalty: number) {
  if (penalty === 1) return;
  for (const id of new Set(previous)) x[id] = x[id] < 0 ? x[id] * penalty : x[id] / penalty;
}

function keepTopK(x: Float64Array, k: number) {
  const kth = Float64Array.from(x).sort().at(-Math.min(k, x.length))!;
  dropWhere(x, (value) => value < kth);
}

function keepTopP(x: Float64Array, p: number) {
  const probabilities = softmax(x);
  const ascending = order(probabilities);
  let held = 0;
  for (const i of ascending.slice(0, -1)) {
    held += probabilities[i];
    if (held > 1 - p) return;
    x[i] = -Infinity;
  }
}

function keepMinP(x: Float64Array, minP: number) {
  const probabilities = softmax(x);
  const best = probabilities.reduce((a, b) => Math.max(a, b));
  dropWhere(x, (_, i) => probabilities[i] < minP * best);
}

function keepTopNSigma(x: Float64Array, n: number) {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const deviation = Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length);
  const best = x.reduce((a, b) => Math.max(a, b));
  dropWhere(x, (value) => value < best - n * deviation);
}

function keepTypicalP(x: Float64Array, p: number) {
  const probabilities = softmax(x);
  const surprise = probabilities.map((q) => -Math.log(q));
  const entropy = probabilities.reduce((a, q, i) => a + (q > 0 ? q * surprise[i] : 0), 0);
  const distance = surprise.map((s) => Math.abs(s - entropy));
  let held = 0;
  let last = Infinity;
  for (const i of order(distance)) {
    held += probabilities[i];
    last = distance[i];
    if (held >= p) break;
  }
  dropWhere(x, (_, i) => distance[i] > last);
}

function dropWhere(x: Float64Array, drops: (value: number, i: number) => boolean) {
  x.forEach((value, i) => drops(value, i) && (x[i] = -Infinity));
}

/** Returns the indices in ascending order of their values. */
function order(values: Float64Array): Uint32Array {
  return Uint32Array.from(values.keys()).sort((a, b) => values[a] - values[b] || a - b);
}

/** Returns numbers in (0, 1) that seed and place determine: SplitMix32. */
function generator(seed: number, place: number): () => number {
  let state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(place + 1, 0x85ebca6b)) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state ^ (state >>> 16);
    z = Math.imul(z, 0x21f0aaad);
    z ^= z >>> 15;
    z = Math.imul(z, 0x735a2d97);
    z ^= z >>> 15;
    return ((z >>> 0) + 0.5) / 2 ** 32;
  };
}
