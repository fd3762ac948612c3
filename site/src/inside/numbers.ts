/** What is read off a forward pass: lengths, losses, the likeliest next tokens, and cells for drawing. */

import { crossEntropy, softmax, type Trace } from "../lib/model";

export const CELLS = 64; // at most that many cells in a strip

/** Returns the vector itself, or of equally many neighbours the one furthest from 0: no more than CELLS numbers. */
export function cells(vector: Float32Array): number[] {
  const each = Math.ceil(vector.length / CELLS);
  return Array.from({ length: Math.ceil(vector.length / each) }, (_, i) => {
    const some = vector.subarray(i * each, (i + 1) * each);
    return some.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
  });
}

/** Returns a size that all but the largest few numbers stay under: one outlier should not make the others pale. */
export function scaleOf(numbers: number[]): number {
  const sizes = numbers.map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.floor(0.95 * (sizes.length - 1))] || 1;
}

/** Returns the length of a vector, √Σx². */
export function lengthOf(vector: Float32Array): number {
  return Math.hypot(...vector);
}

/** Returns a − b. */
export function difference(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((value, i) => value - b[i]);
}

/** Returns the mean cross-entropy of the true next tokens in nats, or undefined where no token has a next one. */
export function meanLoss(traces: Trace[]): number | undefined {
  const losses = traces.slice(1).map(({ id }, i) => crossEntropy(traces[i].logits, id));
  return losses.length ? losses.reduce((a, b) => a + b, 0) / losses.length : undefined;
}

export interface Next {
  id: number;
  logit: number;
  probability: number;
  before: number; // its probability with every head on
}

/** Returns the likeliest next tokens after one token. */
export function likeliest(now: Float32Array, before: Float32Array, count: number): Next[] {
  const [probabilities, old] = [softmax(now), softmax(before)];
  const best = Uint32Array.from(now.keys()).sort((a, b) => now[b] - now[a]);
  return Array.from(best.slice(0, count), (id) => ({
    id,
    logit: now[id],
    probability: probabilities[id],
    before: old[id],
  }));
}
