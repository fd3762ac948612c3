/**
 * One text that a model has written, and how to write it again with other settings.
 *
 * What was computed is kept: as long as another setting draws the same tokens, nothing is computed anew.
 */

import { Cache, type GPT } from "./model";
import { distribution, draw, type Sampling } from "./sampling";

/** One token that was written: the logits that it was drawn from, and its probability. */
export interface Written {
  id: number;
  probability: number;
  logits: Float32Array;
}

/** Whoever writes with these settings; `forced` gives places of the text tokens that the reader chose. */
export interface WriteRequest {
  prompt: number[];
  count: number;
  sampling: Sampling;
  forced: Record<number, number>;
}

export class Writer {
  private readonly cache: Cache;
  private start = 0; // the first token of the text that counts
  private read: number[] = []; // from there
  private logits: Float32Array[] = []; // after each token that was read

  constructor(private readonly model: GPT) {
    this.cache = new Cache(model.config);
  }

  /** Yields `count` tokens, one after the other. */
  *write({ prompt, count, sampling, forced }: WriteRequest): Generator<Written> {
    const text = [...prompt];
    for (let place = 0; place < count; place++) {
      const logits = this.after(text);
      const probabilities = distribution(logits, sampling, text);
      const id = forced[place] ?? draw(probabilities, sampling.seed, place);
      text.push(id);
      yield { id, probability: probabilities[id], logits };
    }
  }

  /** Returns the logits after a text, reading only what follows the part that was read before. */
  private after(text: number[]): Float32Array {
    const start = firstKept(text.length, this.model.config.n_positions);
    if (start !== this.start) this.read = []; // every token comes to stand at another position
    this.start = start;
    const counts = text.slice(start);
    let same = 0;
    while (same < counts.length && counts[same] === this.read[same]) same++;
    if (same < counts.length) this.readOn(counts, same);
    return this.logits[counts.length - 1];
  }

  private readOn(counts: number[], from: number) {
    this.read = counts;
    this.logits.length = this.cache.length = from;
    for (const id of counts.slice(from)) this.logits.push(this.model.step(id, this.cache).logits);
  }
}

/** Returns the first token that counts: a text that outgrows the window keeps its last half, as in generation.py. */
export function firstKept(length: number, window: number): number {
  const dropped = window + 1 - Math.max(1, Math.floor(window / 2));
  return dropped * Math.ceil(Math.max(0, length - window) / dropped);
}
