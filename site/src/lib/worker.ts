/** The model's own thread: it reads and writes there, so that the page answers meanwhile. See remote.ts. */

import { GPT, traceAll, type Config } from "./model";
import { readSafetensors } from "./safetensors";
import { Writer, type WriteRequest, type Written } from "./writer";

export type Request =
  | { kind: "open"; config: Config; weights: ArrayBuffer }
  | { kind: "trace"; ids: number[]; off: string[] }
  | ({ kind: "write" } & WriteRequest);
export type Answer = { number: number } & (
  | { value: unknown; done: boolean }
  | { error: { message: string; key?: string; values?: Record<string, string | number> } }
);

const PIECE = 20; // milliseconds of writing between two looks at what was asked meanwhile
let model: GPT;
let writer: Writer;
let newest = 0; // the number of the newest request to write: an older one stops

self.onmessage = async ({ data }: MessageEvent<{ number: number; request: Request }>) => {
  const { number, request } = data;
  const answer = (value: unknown, done = true) => self.postMessage({ number, value, done });
  try {
    if (request.kind === "open") {
      model = new GPT(request.config, readSafetensors(request.weights));
      writer = new Writer(model);
      answer(model.config);
    } else if (request.kind === "trace") {
      answer(traceAll(model, request.ids, new Set(request.off)));
    } else {
      await write(number, request, answer);
    }
  } catch (error) {
    const { message, key, values } = error as { message: string; key?: string; values?: object };
    self.postMessage({ number, error: { message, key, values } });
  }
};

async function write(
  number: number,
  request: WriteRequest,
  answer: (value: unknown, done?: boolean) => void,
) {
  newest = number;
  let piece: Written[] = [];
  let began = performance.now();
  for (const written of writer.write(request)) {
    piece.push(written);
    if (performance.now() - began < PIECE) continue;
    answer(piece, false);
    piece = [];
    await new Promise((resolve) => setTimeout(resolve));
    if (newest !== number) break;
    began = performance.now();
  }
  answer(piece);
}
