/** The sentences of a stage, filled in with the numbers of this forward pass. */

import { t, visible, type Key } from "../lib/text";
import { lengthOf, type Next } from "./numbers";
import type { Seen } from "./picture";
import type { Stage } from "./stages";

type Named = Next & { token: string };

const percent = (p: number) => (100 * p).toFixed(1);

/** The variant of a stage that the open model has, where it has one. */
function variant(stage: Stage, { config }: Seen): string {
  if (stage === "embed" && config.position_embedding !== "learned") return "embed.rotary";
  if (stage === "norm1" && config.norm === "rmsnorm") return "norm1.rms";
  if (stage === "others" && config.n_layer === 1) return "others.none";
  return stage;
}

/** Returns one or two sentences on what happens at a stage, with the shapes. */
export function explain(stage: Stage, view: Seen, next: Named[]): string {
  const { config, tokens, traces, at, layer } = view;
  const { n_embd: C, n_head: H, n_layer: L, vocab_size: V, n_positions: N } = config;
  const trace = traces[at];
  const { hidden, output } = trace.layers[layer];
  return t(`inside.explain.${variant(stage, view)}` as Key, {
    ...{ T: tokens.length, C, H, D: C / H, L, V, N, F: hidden.length, others: L - 1, layer: layer + 1 },
    token: visible(tokens[at]),
    id: trace.id,
    place: at,
    start: lengthOf(trace.embedded).toFixed(1),
    end: lengthOf(trace.layers.at(-1)!.output).toFixed(1),
    here: lengthOf(output).toFixed(1),
    positive: hidden.filter((value) => value > 0).length,
    next: visible(next[0].token),
    p: percent(next[0].probability),
  });
}

/** Returns the picture in words. */
export function describe({ config, tokens, at, layer, off }: Seen, next: Named[]): string {
  return t("inside.description", {
    L: config.n_layer,
    H: config.n_head,
    token: visible(tokens[at]),
    layer: layer + 1,
    off: off.size,
    next: next.map(({ token, probability }) => `${visible(token)} ${percent(probability)} %`).join(", "),
  });
}
