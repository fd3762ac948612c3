/** Talks to the model in its worker: open a model, look inside, let it write. */

import type { Config, Trace } from "./model";
import { FileError } from "./safetensors";
import type { Answer, Request } from "./worker";
import ModelWorker from "./worker?worker&inline"; // inline, as a page from a folder may not load a worker's file
import type { WriteRequest, Written } from "./writer";

const CLOSED: Answer = { number: 0, error: { message: "This model has been closed." } };

export class Remote {
  private readonly worker = new ModelWorker();
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private count = 0;
  private writing = 0; // the number of the newest request to write
  private closed = false;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => this.waiting.get(data.number)?.(data);
  }

  /** Opens a model; returns its config. Throws a FileError for files that are no model of ours. */
  open(config: Config, weights: ArrayBuffer): Promise<Config> {
    return this.ask({ kind: "open", config, weights });
  }

  /** Returns what happens with each token of a text; `off` names heads that are switched off, see headKey. */
  trace(ids: number[], off: string[] = []): Promise<Trace[]> {
    return this.ask({ kind: "trace", ids, off });
  }

  /** Writes; `each` gets the tokens as they come. A newer call ends an older one. Returns false where that happened. */
  async write(request: WriteRequest, each: (written: Written[]) => void): Promise<boolean> {
    const number = this.count + 1;
    this.writing = number;
    const guarded = (written: Written[]) => this.writing === number && each(written);
    guarded(await this.ask<Written[]>({ kind: "write", ...request }, guarded));
    return this.writing === number;
  }

  /** Ends the worker: what it has not answered, and what it is asked from now on, fails. */
  close() {
    this.worker.terminate();
    this.closed = true;
    for (const settle of this.waiting.values()) settle(CLOSED);
  }

  private ask<T>(request: Request, each?: (value: T) => void): Promise<T> {
    const number = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, (answer) => {
        if ("error" in answer) {
          const { key, message, values } = answer.error;
          reject(key ? new FileError(key, values) : new Error(message));
        } else if (answer.done) {
          resolve(answer.value as T);
        } else {
          each?.(answer.value as T);
          return;
        }
        this.waiting.delete(number);
      });
      if (this.closed) this.waiting.get(number)!(CLOSED);
      else this.worker.postMessage({ number, request });
    });
  }
}
