/** The strings of the page, one file a language; {name} in a string is filled in. */

import en from "../strings/en.json";
import { FileError } from "./safetensors";

export type Key = keyof typeof en;

/** Returns a string of the page's language. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return en[key].replace(/\{(\w+)\}/g, (_, name: string) => String(values[name]));
}

/** Returns one sentence for an error. */
export function sentence(error: unknown): string {
  if (error instanceof FileError) return t(`error.${error.key}` as Key, error.values);
  return t("error.other", { message: error instanceof Error ? error.message : String(error) });
}

/** Returns how a token is written where spaces and line ends must be seen. */
export function visible(token: string): string {
  return token.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}
