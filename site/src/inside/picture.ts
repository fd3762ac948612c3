/** The picture of a forward pass as lists of what to draw; nothing here knows of SVG elements or of Svelte. */

import { headKey, type Config, type LayerTrace, type Trace } from "../lib/model";
import { t, visible, type Key } from "../lib/text";
import * as G from "./geometry";
import { STREAM, type Block, type Point, type Station } from "./geometry";
import { difference, lengthOf } from "./numbers";
import type { Part } from "./stages";

export type Tone = "stream" | "attention" | "norm" | "mlp" | "changed";

export interface Strip {
  part: Part;
  name: string;
  x: number; // its middle
  y: number;
  width: number;
  height: number;
  values: Float32Array;
  columns?: (Float32Array | undefined)[]; // those of all tokens side by side, where they are drawn
  away?: boolean; // zeroed
}

/** A line that numbers flow along. */
export interface Pipe {
  part: Part;
  tone: Tone;
  d: string;
  width: number;
  away?: boolean;
}

export interface Area {
  part: Part;
  tone: Tone;
  d: string;
}

export interface Label {
  part?: Part;
  x: number;
  y: number;
  text: string;
  kind?: "title" | "token" | "start";
}

export interface HeadMap {
  part: Part;
  layer: number;
  head: number;
  x: number;
  y: number;
  size: number;
  rows: Float32Array[];
  off: boolean;
  large: boolean; // one of the open block
}

export interface Picture {
  areas: Area[];
  pipes: Pipe[];
  strips: Strip[];
  maps: HeadMap[];
  pluses: (Point & { part: Part })[];
  labels: Label[];
}

/** What is to be drawn. */
export interface View {
  config: Config;
  tokens: string[];
  traces: Trace[];
  before: Trace[]; // with every head on
  weights: Float32Array[][][]; // of each layer, of each head: the rows of its map
  at: number; // the token that is followed
  layer: number; // the block that is open
  off: ReadonlySet<string>;
  widths: number[]; // of the blocks
}

const WIDE = 14; // of a strip
const MIDDLE = G.SMALL.y + G.SMALL.height / 2;
const END_OF = { small: G.SMALL.y + G.SMALL.height, tall: G.TALL.y + G.TALL.height };

/** Returns everything to draw. */
export function picture(view: View): Picture {
  const all: Picture = { areas: [], pipes: [], strips: [], maps: [], pluses: [], labels: [] };
  const thick = thickness(view);
  const blocks = G.blocksOf(view.widths);
  const parts = [
    stream(view, blocks, thick),
    embedding(view, thick),
    ...blocks.map((block, layer) =>
      layer === view.layer ? openBlock(view, block, thick) : closedBlock(view, block, layer, thick),
    ),
    ending(view, blocks.at(-1)!),
  ];
  for (const part of parts) {
    for (const kind of Object.keys(all) as (keyof Picture)[]) {
      (all[kind] as unknown[]).push(...(part[kind] ?? []));
    }
  }
  return all;
}

type Thickness = (vector: Float32Array) => number;

/** Half the thickness of a band for a vector; the longest one on the stream has the thickest. */
function thickness({ traces, before, at }: View): Thickness {
  const all = [traces[at], before[at]].flatMap(({ embedded, layers }) => [
    embedded,
    ...layers.flatMap(({ middle, output }) => [middle, output]),
  ]);
  const longest = Math.max(...all.map(lengthOf)) || 1;
  return (vector) => 2 + (22 * lengthOf(vector)) / longest;
}

const named = (name: string, values: Record<string, string | number> = {}) =>
  t(`inside.part.${name}` as Key, values);

/** The stream itself: a river, in it what has changed since every head was on, and its vectors across it. */
function stream(view: View, blocks: Block[], thick: Thickness): Partial<Picture> {
  const { traces, before, at } = view;
  const [now, old] = [traces[at], before[at]];
  const end = blocks.at(-1)!.x + blocks.at(-1)!.width;
  const course = (half: (pick: (trace: Trace) => Float32Array) => number): Station[] => [
    { x: 62, half: half((trace) => trace.token) },
    { x: 80, half: half((trace) => trace.token) },
    { x: 104, half: half((trace) => trace.embedded) },
    ...blocks.flatMap((block, layer) => stations(view, block, layer, half)),
    { x: end + 14, half: 2 },
  ];
  const areas: Area[] = [{ part: "stream", tone: "stream", d: G.river(course((pick) => thick(pick(now)))) }];
  if (now !== old) {
    const changed = course((pick) => thick(difference(pick(now), pick(old))) - 2);
    areas.push({ part: "stream", tone: "changed", d: G.river(changed) });
  }
  const d = `M62 ${STREAM}H${end + 14}`;
  const pipes: Pipe[] = [{ part: "stream", tone: "stream", d, width: 0 }];
  const vectors = [
    { x: G.EMBED - 4, name: named("embedded"), values: now.embedded },
    ...blocks.flatMap((block, layer) => {
      const { middle, output } = now.layers[layer];
      const after = { x: block.x + block.width - 4, name: named("output", { n: layer + 1 }), values: output };
      if (layer !== view.layer) return [after];
      const between = {
        x: G.places(block, view.config.n_head).middle,
        name: named("middle", { n: layer + 1 }),
        values: middle,
      };
      return [between, after];
    }),
  ];
  const strips = vectors.map((one): Strip => ({
    ...one,
    part: "stream",
    y: STREAM - 42,
    width: 10,
    height: 84,
  }));
  const labels = vectors.map(({ x, values }): Label => ({ part: "stream", x, y: 32, text: short(values) }));
  labels.push({ part: "stream", x: 8, y: 14, text: t("inside.stream"), kind: "start" });
  return { areas, pipes, strips, labels };
}

const short = (values: Float32Array) => lengthOf(values).toFixed(1);

type Half = (pick: (trace: Trace) => Float32Array) => number;

function stations(view: View, block: Block, layer: number, half: Half): Station[] {
  const step = (x: number, from: number, to: number) => [
    { x: x - 10, half: from },
    { x: x + 10, half: to },
  ];
  const read = (name: "middle" | "output") => half((trace) => trace.layers[layer][name]);
  const start = half((trace) => (layer ? trace.layers[layer - 1].output : trace.embedded));
  if (layer !== view.layer) return step(block.x + plusOf(block), start, read("output"));
  const { plus1, plus2 } = G.places(block, view.config.n_head);
  return [...step(plus1, start, read("middle")), ...step(plus2, read("middle"), read("output"))];
}

/** Where a closed block adds to the stream, from its left edge. */
const plusOf = (block: Block) => 0.68 * block.width;

function embedding({ config, traces, tokens, at }: View, thick: Thickness): Partial<Picture> {
  const { token, position } = traces[at];
  const learned = config.position_embedding === "learned";
  const part = "embed";
  const strips = [small(part, 30, named("token"), token)];
  const pipes: Pipe[] = [
    pipe(
      part,
      "stream",
      G.bend({ x: 30, y: G.SMALL.y - 6 }, { x: 64, y: STREAM }, "along"),
      2 * thick(token),
    ),
  ];
  const labels: Label[] = [
    {
      part,
      x: learned ? 57 : 44,
      y: END_OF.small + 66,
      text: shortened(visible(tokens[at]), 12),
      kind: "token",
    },
    ...captions(part, 30, "wte", token.length, END_OF.small),
  ];
  const pluses = [];
  if (learned) {
    strips.push(small(part, 84, named("position", { n: at }), position));
    const way = G.rise({ x: 84, y: G.SMALL.y - 6 }, { x: 92, y: STREAM + 8 });
    pipes.push(pipe(part, "stream", way, 2 * thick(position)));
    labels.push(...captions(part, 84, "wpe", position.length, END_OF.small));
    pluses.push({ part, x: 92, y: STREAM } as const);
  }
  return { strips, pipes, labels, pluses };
}

function small(part: Part, x: number, name: string, values: Float32Array): Strip {
  return { part, name, x, ...G.SMALL, width: WIDE, values };
}

function pipe(part: Part, tone: Tone, d: string, width = 2): Pipe {
  return { part, tone, d, width };
}

/** What a strip is, and how many numbers it has, below it. */
function captions(part: Part, x: number, text: string, count: number, bottom: number): Label[] {
  return [
    { part, x, y: bottom + 17, text },
    { part, x, y: bottom + 33, text: String(count) },
  ];
}

export const shortened = (text: string, most: number) =>
  [...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text;

/** From the stream down into what reads it. */
const reading = (from: number, to: Point) => G.bend({ x: from, y: STREAM }, to, "across");

function openBlock(view: View, block: Block, thick: Thickness): Partial<Picture> {
  const parts = [attention(view, block, thick), mlp(view, block, thick)];
  const title = t("inside.layer", { n: view.layer + 1 });
  const label: Label = { x: block.x + 50, y: 171, text: title, kind: "title" };
  return {
    areas: parts.flatMap((part) => part.areas),
    pipes: parts.flatMap((part) => part.pipes),
    strips: parts.flatMap((part) => part.strips),
    maps: parts.flatMap((part) => part.maps),
    labels: [label, ...parts.flatMap((part) => part.labels)],
    pluses: parts.flatMap((part) => part.pluses),
  };
}

function attention(view: View, block: Block, thick: Thickness): Picture {
  const trace = view.traces[view.at].layers[view.layer];
  const at = G.places(block, view.config.n_head);
  const maps = openMaps(view, block);
  const strips = [
    small("norm1", at.norm1, named("norm"), trace.normed),
    ...threefold(view, at.qkv),
    ...maps.map((map) => headStrip(trace, map, view.config)),
    small("attended", at.attended, named("attended"), trace.attended),
  ];
  const top = { x: at.norm1, y: G.SMALL.y - 4 };
  const out = { x: at.attended, y: G.SMALL.y - 4 };
  const pipes = [
    pipe("norm1", "norm", reading(block.x - 2, top), 3),
    pipe("qkv", "attention", acrossStrips(at.norm1, at.qkv), 0),
    ...maps.flatMap((map) => headPipes(map, view.config, at.qkv, at.attended)),
    pipe("attended", "attention", G.rise(out, { x: at.plus1, y: STREAM + 8 }), 2 * thick(trace.attended)),
  ];
  const labels = [
    ...captions("norm1", at.norm1, t("inside.norm"), trace.normed.length, END_OF.small),
    ...["Q", "K", "V"].map((text, i): Label => ({
      part: "qkv",
      x: at.qkv - 17,
      y: threeY(i) + THIRD / 2 + 4,
      text,
    })),
    { part: "qkv", x: at.qkv + 8, y: END_OF.tall + 20, text: `3 × ${trace.queries.length}` } as const,
    ...captions("attended", at.attended, t("inside.sum"), trace.attended.length, END_OF.small),
  ];
  const areas = [widening("qkv", "attention", at.norm1, at.qkv)];
  return { areas, pipes, strips, maps, labels, pluses: [{ part: "attended", x: at.plus1, y: STREAM }] };
}

const THIRD = (G.TALL.height - 16) / 3;
const threeY = (i: number) => G.TALL.y + i * (THIRD + 8);

const SIDE = 32; // of the keys, and the values, of all tokens

/** The query of the token, and below it the keys and the values of all tokens that it may look at. */
function threefold({ traces, at, layer, tokens }: View, left: number): Strip[] {
  return (["queries", "keys", "values"] as const).map((name, i) => {
    const width = i ? SIDE : WIDE;
    const each = traces.map((trace, n) => (n > at ? undefined : trace.layers[layer][name]));
    return {
      part: "qkv",
      name: named(name, { token: visible(tokens[at]) }),
      x: left - WIDE / 2 + width / 2,
      y: threeY(i),
      width,
      height: THIRD,
      values: traces[at].layers[layer][name],
      columns: i ? each : undefined,
    };
  });
}

const acrossStrips = (from: number, to: number) =>
  G.across({ x: from + WIDE / 2, y: MIDDLE }, { x: to - WIDE / 2, y: MIDDLE });

/** From a strip of C numbers to one of more, or back. */
function widening(part: Part, tone: Tone, from: number, to: number, back = false): Area {
  const edge = (x: number, { y, height }: typeof G.SMALL) => ({ x, top: y, bottom: y + height });
  const [left, right] = back ? [G.TALL, G.SMALL] : [G.SMALL, G.TALL];
  return { part, tone, d: G.band(edge(from + WIDE / 2, left), edge(to - WIDE / 2, right)) };
}

const isOff = ({ off }: View, layer: number, head: number) => off.has(headKey(layer, head));

function openMaps(view: View, block: Block): HeadMap[] {
  const { layer, config } = view;
  const grid = G.mapGrid(config.n_head, Infinity, G.TALL.height, 10);
  const size = Math.min(58, grid.size);
  return Array.from({ length: config.n_head }, (_, head) => {
    const column = Math.floor(head / grid.rows);
    return {
      part: "heads",
      layer,
      head,
      x: G.places(block, config.n_head).maps + column * (size + 104),
      y: G.TALL.y + (head % grid.rows) * grid.step,
      size,
      rows: view.weights[layer][head],
      off: isOff(view, layer, head),
      large: true,
    };
  });
}

/** What a head has brought, next to its map. */
function headStrip({ heads }: LayerTrace, map: HeadMap, { n_embd, n_head }: Config): Strip {
  const D = n_embd / n_head;
  return {
    part: "heads",
    name: named("head", { n: map.head + 1 }),
    x: map.x + map.size + 9,
    y: map.y,
    width: 8,
    height: map.size,
    values: heads.slice(map.head * D, (map.head + 1) * D),
    away: map.off,
  };
}

/** From a head's part of the queries, keys and values to its map, and from its output to the projection. */
function headPipes(map: HeadMap, { n_head }: Config, qkv: number, attended: number): Pipe[] {
  const share = (map.head + 0.5) / n_head;
  const incoming = [0, 1, 2].map((i) => {
    const from = { x: qkv - WIDE / 2 + (i ? SIDE : WIDE), y: threeY(i) + share * THIRD };
    return pipe(
      "heads",
      "attention",
      G.across(from, { x: map.x, y: map.y + map.size * (0.3 + 0.2 * i) }),
      1.2,
    );
  });
  const from = { x: map.x + map.size + 14, y: map.y + map.size / 2 };
  const to = { x: attended - WIDE / 2, y: G.SMALL.y + share * G.SMALL.height };
  return [...incoming, { ...pipe("attended", "attention", G.across(from, to), 3), away: map.off }];
}

function mlp(view: View, block: Block, thick: Thickness): Picture {
  const trace = view.traces[view.at].layers[view.layer];
  const at = G.places(block, view.config.n_head);
  const hidden: Strip = {
    part: "hidden",
    name: named("hidden"),
    x: at.hidden,
    ...G.TALL,
    width: WIDE,
    values: trace.hidden,
  };
  const strips = [
    small("norm2", at.norm2, named("norm"), trace.normed2),
    hidden,
    small("mlp", at.mlp, named("mlp"), trace.mlp),
  ];
  const out = { x: at.mlp, y: G.SMALL.y - 4 };
  const pipes = [
    pipe("norm2", "norm", reading(at.middle, { x: at.norm2, y: G.SMALL.y - 4 }), 3),
    pipe("hidden", "mlp", acrossStrips(at.norm2, at.hidden), 0),
    pipe("mlp", "mlp", acrossStrips(at.hidden, at.mlp), 0),
    pipe("mlp", "mlp", G.rise(out, { x: at.plus2, y: STREAM + 8 }), 2 * thick(trace.mlp)),
  ];
  const labels = [
    ...captions("norm2", at.norm2, t("inside.norm"), trace.normed2.length, END_OF.small),
    ...captions("mlp", at.mlp, t("inside.sum"), trace.mlp.length, END_OF.small),
    { part: "hidden", x: at.hidden, y: END_OF.tall + 20, text: String(trace.hidden.length) } as const,
    { part: "hidden", x: at.hidden, y: 171, text: "MLP", kind: "title" } as const,
  ];
  const areas = [
    widening("hidden", "mlp", at.norm2, at.hidden),
    widening("mlp", "mlp", at.hidden, at.mlp, true),
  ];
  return { areas, pipes, strips, maps: [], labels, pluses: [{ part: "mlp", x: at.plus2, y: STREAM }] };
}

/** A block that is not open: its maps and hidden units, small. */
function closedBlock(view: View, block: Block, layer: number, thick: Thickness): Partial<Picture> {
  const part = "others";
  const { n_head } = view.config;
  const trace = view.traces[view.at].layers[layer];
  const before = layer ? view.traces[view.at].layers[layer - 1].output : view.traces[view.at].embedded;
  const room = block.width - 20;
  const grid = G.mapGrid(n_head, room, 176, 6);
  const left = block.x + block.width / 2 - (grid.size * grid.columns + 6 * (grid.columns - 1)) / 2;
  const maps = Array.from({ length: n_head }, (_, head): HeadMap => ({
    part,
    layer,
    head,
    x: left + Math.floor(head / grid.rows) * (grid.size + 6),
    y: 184 + (head % grid.rows) * Math.min(grid.step, grid.size + 8),
    size: grid.size,
    rows: view.weights[layer][head],
    off: isOff(view, layer, head),
    large: false,
  }));
  const strip: Strip = {
    part,
    name: named("hidden"),
    x: block.x + block.width / 2,
    y: 364,
    width: 12,
    height: 100,
    values: trace.hidden,
  };
  const plus = { x: block.x + plusOf(block), y: STREAM };
  const added = 2 * thick(difference(trace.output, before));
  const pipes = [
    pipe(part, "norm", reading(block.x - 2, { x: block.x + 0.28 * block.width, y: G.CARD.top }), 3),
    pipe(part, "stream", G.rise({ x: plus.x, y: G.CARD.top }, { x: plus.x, y: STREAM + 8 }), added),
  ];
  const label: Label = { part, x: block.x + block.width / 2, y: 171, text: String(layer + 1), kind: "title" };
  return { maps, strips: [strip], pipes, labels: [label], pluses: [{ ...plus, part }] };
}

function ending({ traces, at }: View, last: Block): Partial<Picture> {
  const x = last.x + last.width + 36;
  const { final } = traces[at];
  return {
    strips: [small("final", x, named("final"), final)],
    pipes: [pipe("final", "norm", reading(last.x + last.width + 8, { x, y: G.SMALL.y - 4 }), 3)],
    labels: captions("final", x, t("inside.norm"), final.length, END_OF.small),
  };
}
