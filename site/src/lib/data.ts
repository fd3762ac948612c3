/**
 * Recorded data, as scripts: public/data/NAME.js calls gptcourseData(NAME, value).
 *
 * A page that is opened from a folder (file://) may not fetch files, but it may run scripts; so this works everywhere.
 */

import type { Config } from "./model";
import type { BPEFile } from "./tokenizer";

/** A model in a data file: its config, and its weights as base64 of a safetensors file. */
export interface ModelData {
  config: Config;
  weights: string;
}

/** What the first slider needs, before the model has come. */
export interface FirstData {
  prompt: string;
  tokenizer: BPEFile;
  logits: string; // base64 of float32 (V): those after the prompt
}

declare global {
  interface Window {
    gptcourseData: (name: string, value: unknown) => void;
  }
}

const arrived = new Map<string, unknown>();
const asked = new Map<string, Promise<unknown>>();
window.gptcourseData = (name, value) => arrived.set(name, value);

/** Returns what data/NAME.js holds, asked for once; the promise fails where the file cannot be had. */
export function load<T>(name: string): Promise<T> {
  if (!asked.has(name)) {
    asked.set(
      name,
      new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => resolve(arrived.get(name));
        script.onerror = () => {
          asked.delete(name);
          reject(new Error(script.src));
        };
        document.head.append(script);
      }),
    );
  }
  return asked.get(name) as Promise<T>;
}

/** Returns the bytes that base64 stands for. */
export function bytes(base64: string): ArrayBuffer {
  const letters = atob(base64);
  const read = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) read[i] = letters.charCodeAt(i); // 30 times as fast as Uint8Array.from
  return read.buffer;
}
