/** What the panel with the numbers says of a vector, of an attention map and of the logits. */

import { t, visible } from "../lib/text";
import type { Shown } from "./Numbers.svelte";
import { lengthOf, type Next } from "./numbers";
import type { HeadMap, Strip } from "./picture";

const FIRST = 64; // numbers of a vector

const signed = (value: number, digits: number) => value.toFixed(digits).replace("-", "−");

export function showVector({ name, values }: Strip): Shown {
  const rows = Array.from(values.slice(0, FIRST), (value, i) => ({
    name: String(i),
    numbers: [signed(value, 3)],
  }));
  const length = lengthOf(values).toFixed(2);
  const note = values.length > FIRST ? t("inside.first", { n: FIRST }) : undefined;
  return { title: name, shape: t("inside.vector", { n: values.length, length }), note, rows };
}

export function showMap({ layer, head, rows }: HeadMap, tokens: string[]): Shown {
  const names = tokens.map(visible);
  return {
    title: t("inside.weights", { head: head + 1, layer: layer + 1 }),
    shape: t("inside.matrix", { n: rows.length }),
    columns: names,
    rows: rows.map((row, i) => ({ name: names[i], numbers: Array.from(row, (weight) => weight.toFixed(2)) })),
  };
}

export function showLogits(next: (Next & { token: string })[], vocabulary: number): Shown {
  const rows = next.map(({ token, logit, probability }) => ({
    name: visible(token),
    numbers: [signed(logit, 2), `${(100 * probability).toFixed(1)} %`],
  }));
  const shape = t("inside.logits", { n: vocabulary });
  return { title: t("inside.part.logits"), shape, note: t("inside.likeliest", { n: next.length }), rows };
}
