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
  private read: number[] = [];
  private logits: Float32Array[] = []; // after each token that was read

  constructor(private readonly model: GPT) {
    this.cache = new Cache(model.config);
  }

  /** Yields tokens one after the other, up to `count` of them or the end of the window. */
  *write({ prompt, count, sampling, forced }: WriteRequest): Generator<Written> {
    const text = prompt.slice(-(this.model.config.n_positions - 1));
    for (let place = 0; place < count && text.length < this.model.config.n_positions; place++) {
      const logits = this.after(text);
      const probabilities = distribution(logits, sampling, text);
      const id = forced[place] ?? draw(probabilities, sampling.seed, place);
      text.push(id);
      yield { id, probability: probabilities[id], logits };
    }
  }

  /** Returns the logits after a text, reading only what follows the part that was read before. */
  private after(text: number[]): Float32Array {
    let same = 0;
    while (same < text.length && same < this.read.length && text[same] === this.read[same]) same++;
    if (same === text.length) return this.logits[same - 1];
    this.read = this.read.slice(0, same);
    this.logits = this.logits.slice(0, same);
    this.cache.length = same;
    for (const id of text.slice(same)) {
      this.logits.push(this.model.step(id, this.cache).logits);
      this.read.push(id);
    }
    return this.logits.at(-1)!;
  }
}
