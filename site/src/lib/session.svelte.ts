/** The model that the scenes share: the bundled one, or one that the reader has opened. */

import { bytes, load, type FirstData, type ModelData } from "./data";
import type { Config } from "./model";
import type { Opened } from "./open";
import { Remote } from "./remote";
import { sentence, t } from "./text";
import { BPETokenizer, type Tokenizer } from "./tokenizer";

export type Losses = { as_stored: number; in_8_bits: number };

class Session {
  /** What is known before the model has come. */
  first = $state.raw<FirstData>();
  tokenizer = $state.raw<Tokenizer>();
  /** Set once the model can be asked. */
  config = $state.raw<Config>();
  name = $state("shakespeare-5m");
  own = $state(false);
  losses = $state.raw<Losses>();
  /** What went wrong while the bundled model was loaded. */
  failure = $state.raw<unknown>();
  remote: Remote | undefined;

  /** Loads the first slider's data, then the bundled model. */
  async start() {
    try {
      const first = await load<FirstData>("first");
      this.tokenizer = new BPETokenizer(first.tokenizer);
      this.first = first;
      // Two frames: what the reader can use is drawn before seven megabytes keep the page busy.
      for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
      const { losses, ...model } = await load<ModelData & { losses: Losses }>("shakespeare-5m");
      if (this.own) return;
      const name = this.name;
      await this.open(
        { name, tokenizer: this.tokenizer, config: model.config, weights: bytes(model.weights) },
        false,
      );
      this.losses = losses;
    } catch (error) {
      this.failure = error;
    }
  }

  /** Returns the ids of a text, and what is wrong with it, if anything, in one sentence. */
  read(text: string): { ids: number[]; problem?: string } {
    try {
      const ids = this.tokenizer?.encode(text) ?? [];
      return { ids, problem: this.config && ids.length === 0 ? t("error.emptyPrompt") : undefined };
    } catch (error) {
      return { ids: [], problem: sentence(error) };
    }
  }

  /** Puts another model in the place of the one that is open, if it can be read. */
  async open({ name, config, weights, tokenizer }: Opened, own = true) {
    const remote = new Remote();
    const opened = await remote.open(config, weights).catch((error) => {
      remote.close();
      throw error;
    });
    this.remote?.close();
    this.remote = remote;
    this.own = own;
    this.losses = undefined;
    this.name = name;
    this.tokenizer = tokenizer;
    this.config = opened;
  }
}

export const session = new Session();
