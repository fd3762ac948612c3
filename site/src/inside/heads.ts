/** The switched-off heads as a part of the address: 3.2 is head 2 of layer 3, counted from one as on the page. */

import { headKey } from "../lib/model";

export function readHeads(text: string | undefined): string[] {
  return (text ?? "")
    .split("_")
    .filter((part) => /^[1-9]\d*\.[1-9]\d*$/.test(part))
    .map((part) => part.split(".").map((number) => Number(number) - 1))
    .map(([layer, head]) => headKey(layer, head));
}

export function writeHeads(keys: Iterable<string>): string | undefined {
  const one = (key: string) => key.split(".").map((number) => Number(number) + 1);
  return Array.from(keys, (key) => one(key).join(".")).join("_") || undefined;
}
