/** The recorded run of the time machine: what was measured at each checkpoint, and its model, which reads and writes. */

import { bytes, type ModelData } from "./data";
import { softmax } from "./model";
import { Remote } from "./remote";
import { PLAIN } from "./sampling";
import { CharTokenizer } from "./tokenizer";

/** What a head can be known for; the scores of all heads, [layer][head], are recorded under these names. */
export const KINDS = ["induction", "previous_token", "first_token"] as const;
export type Kind = (typeof KINDS)[number];

/** The scores of a head that looks at everything alike: gptcourse/assets/time-machine/README.md. */
export const EVEN: Record<Kind, number> = { induction: 0.04, previous_token: 0.07, first_token: 0.05 };

export interface Checkpoint extends Record<Kind, number[][]> {
  step: number;
  held_out_loss: number; // nats per token, on plays
  second_copy_loss: number; // on random characters, when they stand there again
  model: ModelData;
}

export interface RunData {
  characters: string;
  checkpoints: Checkpoint[];
}

/** What a checkpoint makes of a prompt. */
export interface Reading {
  patterns: Float32Array[][][]; // attention weights [layer][head][query][key]
  probabilities: Float64Array; // (V) of the next token
}

const KEPT = 100; // readings that are remembered
const SAMPLING = { ...PLAIN, temperature: 0.8 };

export class Recording {
  readonly tokenizer: CharTokenizer;
  readonly checkpoints: Checkpoint[];
  readonly window: number;
  private readonly remote = new Remote();
  private readonly readings = new Map<string, Promise<Reading>>();
  private readonly texts = new Map<string, number[]>();
  private opened = -1;

  constructor({ characters, checkpoints }: RunData) {
    this.tokenizer = new CharTokenizer(characters);
    this.checkpoints = checkpoints;
    this.window = checkpoints[0].model.config.n_positions;
  }

  /** Returns what checkpoint n makes of a prompt; remembered. */
  read(n: number, ids: number[]): Promise<Reading> {
    const key = `${n}:${ids}`;
    if (this.readings.size >= KEPT) this.readings.clear();
    if (!this.readings.has(key)) this.readings.set(key, this.readAnew(n, ids));
    return this.readings.get(key)!;
  }

  /**
   * Lets checkpoint n write after a prompt, with the same noise at every checkpoint; `each` gets the ids so far. Whole
   * texts are remembered. A newer call ends an older one.
   */
  async write(n: number, prompt: number[], count: number, each: (written: number[]) => void) {
    const key = `${n}:${prompt}`;
    let written = this.texts.get(key) ?? [];
    each(written);
    if (written.length) return;
    this.open(n);
    const newest = await this.remote.write({ prompt, count, sampling: SAMPLING, forced: {} }, (some) => {
      written = [...written, ...some.map(({ id }) => id)];
      each(written);
    });
    if (newest) this.texts.set(key, written);
  }

  close() {
    this.remote.close();
  }

  private async readAnew(n: number, ids: number[]): Promise<Reading> {
    this.open(n);
    const traces = await this.remote.trace(ids);
    const { n_layer, n_head } = this.checkpoints[n].model.config;
    const patterns = Array.from({ length: n_layer }, (_, layer) =>
      Array.from({ length: n_head }, (_, head) => traces.map(({ layers }) => layers[layer].weights[head])),
    );
    return { patterns, probabilities: softmax(traces.at(-1)!.logits) };
  }

  /** Opens a checkpoint in the worker, which answers in order: what is asked next, it is asked. */
  private open(n: number) {
    if (this.opened === n) return;
    const { config, weights } = this.checkpoints[n].model;
    this.remote.open(config, bytes(weights)).catch(() => {}); // what is asked next fails, too, and is heard
    this.opened = n;
  }
}

/** Returns the head with the highest score of [layer][head]. */
export function best(scores: number[][]): { layer: number; head: number; score: number } {
  const all = scores.flatMap((row, layer) => row.map((score, head) => ({ layer, head, score })));
  return all.reduce((a, b) => (b.score > a.score ? b : a));
}
