/** What one head computes for one token, with every number on the way: from the query to what the head brings. */

import { softmax } from "../lib/model";
import type { Seen } from "./picture";

export const WALK = ["query", "products", "scaled", "masked", "softmax", "values"] as const;
export type WalkStep = (typeof WALK)[number];

/** What a head computes with one of the tokens that are looked at. Vectors have D numbers. */
export interface Looked {
  token: string;
  hidden: boolean; // later than the token that looks
  key: Float32Array;
  products: Float32Array; // of the query and the key, number by number
  score: number; // their sum
  scaled: number; // the score / √D
  masked: number; // the same, or −∞ where it is hidden
  weight: number;
  share: Float32Array; // weight × value
}

export interface Walk {
  query: Float32Array; // (D)
  looked: Looked[]; // one of each token
  best: number; // the one with the largest weight
  sum: Float32Array; // (D) of the shares: what the head brings
}

/** Returns what a head of the open layer computes for the token that is followed. */
export function walk({ config, tokens, traces, at, layer }: Seen, head: number): Walk {
  const D = config.n_embd / config.n_head;
  const own = (vector: Float32Array) => vector.slice(head * D, (head + 1) * D);
  const query = own(traces[at].layers[layer].queries);
  const scored = traces.map((trace, n) => {
    const key = own(trace.layers[layer].keys);
    const products = key.map((value, i) => value * query[i]);
    const score = products.reduce((a, b) => a + b, 0);
    const scaled = score / Math.sqrt(D);
    const hidden = n > at;
    return { token: tokens[n], hidden, key, products, score, scaled, masked: hidden ? -Infinity : scaled };
  });
  const weights = softmax(Float64Array.from(scored, ({ masked }) => masked));
  const looked = scored.map((one, n) => {
    const share = own(traces[n].layers[layer].values).map((value) => weights[n] * value);
    return { ...one, weight: weights[n], share };
  });
  const sum = query.map((_, i) => looked.reduce((total, { share }) => total + share[i], 0));
  return { query, looked, best: weights.indexOf(Math.max(...weights)), sum };
}

/** Returns the vector and the number of a row that a step is about; no number yet while there is only the key. */
export function seen(row: Looked, step: WalkStep): { vector: Float32Array; value?: number } {
  if (step === "query") return { vector: row.key };
  if (step === "products") return { vector: row.products, value: row.score };
  if (step === "scaled") return { vector: row.products, value: row.scaled };
  if (step === "masked") return { vector: row.products, value: row.masked };
  return { vector: step === "softmax" ? row.products : row.share, value: row.weight };
}
