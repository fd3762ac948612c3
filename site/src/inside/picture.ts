/** The picture of a forward pass as lists of what to draw; nothing here knows of SVG elements or of Svelte. */

import { headKey, type Config, type LayerTrace, type Trace } from "../lib/model";
import { t, visible, type Key } from "../lib/text";
import * as G from "./geometry";
import type { Block, Layout, Point, Station } from "./geometry";
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
  kind?: "title" | "token" | "stream";
  anchor?: "start" | "end"; // it stands with its middle at x where nothing is said
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
export interface Seen {
  config: Config;
  tokens: string[];
  traces: Trace[];
  before: Trace[]; // with every head on
  weights: Float32Array[][][]; // of each layer, of each head: the rows of its map
  at: number; // the token that is followed
  layer: number; // the block that is open
  off: ReadonlySet<string>;
}

/** What is to be drawn, and where. */
export interface View extends Seen {
  layout: Layout;
  widths: number[]; // of the blocks
}

const WIDE = 14; // of a strip

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
function thickness({ traces, before, at, layout }: View): Thickness {
  const all = [traces[at], before[at]].flatMap(({ embedded, layers }) => [
    embedded,
    ...layers.flatMap(({ middle, output }) => [middle, output]),
  ]);
  const longest = Math.max(...all.map(lengthOf)) || 1;
  return (vector) => 2 + (layout.thick * lengthOf(vector)) / longest;
}

const named = (name: string, values: Record<string, string | number> = {}) =>
  t(`inside.part.${name}` as Key, values);

/** The stream itself: a river, in it what has changed since every head was on, and its vectors across it. */
function stream(view: View, blocks: Block[], thick: Thickness): Partial<Picture> {
  const { traces, before, at, layout } = view;
  const [now, old] = [traces[at], before[at]];
  const end = blocks.at(-1)!.x + blocks.at(-1)!.width;
  const course = (half: Half): Station[] => [
    { x: 62, half: half((trace) => trace.token) },
    { x: 80, half: half((trace) => trace.token) },
    { x: 104, half: half((trace) => trace.embedded) },
    ...blocks.flatMap((block, layer) => stations(view, block, layer, half)),
    { x: end + 14, half: 2 },
  ];
  const river = (half: Half) => G.river(layout.stream, course(half));
  const areas: Area[] = [{ part: "stream", tone: "stream", d: river((pick) => thick(pick(now))) }];
  if (now !== old) {
    const d = river((pick) => thick(difference(pick(now), pick(old))) - 2);
    areas.push({ part: "stream", tone: "changed", d });
  }
  const pieces = Math.ceil((end + 14 - 62) / PIECE);
  const pipes = Array.from({ length: pieces }, (_, n): Pipe => {
    const x = 62 + n * PIECE;
    const d = `M${x} ${layout.stream}H${Math.min(x + PIECE, end + 14)}`;
    return { part: "stream", tone: "stream", d, width: 0 };
  });
  const vectors = [
    { x: G.EMBED - 4, name: named("embedded"), values: now.embedded },
    ...blocks.flatMap((block, layer) => {
      const { middle, output } = now.layers[layer];
      const after = { x: block.x + block.width - 4, name: named("output", { n: layer + 1 }), values: output };
      if (layer !== view.layer) return [after];
      const between = {
        x: G.places(layout, block, view.config.n_head).middle,
        name: named("middle", { n: layer + 1 }),
        values: middle,
      };
      return [between, after];
    }),
  ];
  const strips = vectors.map((one): Strip => ({
    ...one,
    part: "stream",
    ...layout.vector,
    width: 10,
  }));
  const labels = vectors.map(({ x, values }) => lengthBeside(layout, x, values));
  const corner = G.turned(layout, { x: 8, y: 14 });
  labels.push({ part: "stream", ...corner, text: t("inside.stream"), kind: "stream", anchor: "start" });
  return { areas, pipes, strips, labels };
}

/** The dots along the stream are drawn piece by piece, so that they can light up one after the other. */
const PIECE = 78; // three dots: a multiple of their distance, so that the pieces join
const BASELINE = 4; // from the middle of a line of text

function lengthBeside({ upright, numbers: y }: Layout, x: number, values: Float32Array): Label {
  const text = lengthOf(values).toFixed(1);
  return { part: "stream", x: x + (upright ? BASELINE : 0), y, text, anchor: upright ? "end" : undefined };
}

type Half = (pick: (trace: Trace) => Float32Array) => number;

function stations(view: View, block: Block, layer: number, half: Half): Station[] {
  const step = (x: number, from: number, to: number) => [
    { x: x - 10, half: from },
    { x: x + 10, half: to },
  ];
  const read = (name: "middle" | "output") => half((trace) => trace.layers[layer][name]);
  const start = half((trace) => (layer ? trace.layers[layer - 1].output : trace.embedded));
  if (layer !== view.layer) return step(block.x + plusOf(block), start, read("output"));
  const { plus1, plus2 } = G.places(view.layout, block, view.config.n_head);
  return [...step(plus1, start, read("middle")), ...step(plus2, read("middle"), read("output"))];
}

/** Where a closed block adds to the stream, from its left edge. */
const plusOf = (block: Block) => 0.68 * block.width;

function embedding({ config, traces, tokens, at, layout }: View, thick: Thickness): Partial<Picture> {
  const { token, position } = traces[at];
  const { small, stream } = layout;
  const learned = config.position_embedding === "learned";
  const part = "embed";
  const strips = [strip(part, 30, small, named("token"), token)];
  const start = G.bend({ x: 30, y: small.y - 6 }, { x: 64, y: stream }, "along");
  const pipes = [pipe(part, "stream", start, 2 * thick(token))];
  const labels = [chip(layout, learned, tokens[at]), ...beyond(layout, part, 30, small, "wte", token.length)];
  const pluses = [];
  if (learned) {
    strips.push(strip(part, 84, small, named("position", { n: at }), position));
    const way = G.rise({ x: 84, y: small.y - 6 }, { x: 92, y: stream + 8 });
    pipes.push(pipe(part, "stream", way, 2 * thick(position)));
    labels.push(...beyond(layout, part, 84, small, "wpe", position.length));
    pluses.push({ part, x: 92, y: stream } as const);
  }
  return { strips, pipes, labels, pluses };
}

/** The token that is followed: below its rows of the tables, or between them. */
function chip({ upright, small }: Layout, learned: boolean, token: string): Label {
  const below = { x: learned ? 57 : 44, y: small.y + small.height + 66 };
  const between = { x: 57 + BASELINE, y: small.y + small.height / 2 };
  return {
    part: "embed",
    ...(upright ? between : below),
    text: shortened(visible(token), 12),
    kind: "token",
  };
}

function strip(part: Part, x: number, place: Layout["small"], name: string, values: Float32Array): Strip {
  return { part, name, x, ...place, width: WIDE, values };
}

function pipe(part: Part, tone: Tone, d: string, width = 2): Pipe {
  return { part, tone, d, width };
}

/** What a strip is, and how many numbers it has: below its end, or beside it. */
function beyond(
  layout: Layout,
  part: Part,
  x: number,
  place: Layout["small"],
  ...words: (string | number)[]
): Label[] {
  const end = place.y + place.height;
  if (layout.upright) return [{ part, x: x + BASELINE, y: end + 6, text: words.join(" "), anchor: "start" }];
  return words.map((word, line) => ({ part, x, y: end + 17 + 16 * line, text: String(word) }));
}

/** A title over a part of the picture; `x` for the stream from left to right, and for the upright one. */
function heading({ upright, title: y }: Layout, x: [number, number], text: string, part?: Part): Label {
  return { part, x: x[Number(upright)], y, text, kind: "title", anchor: upright ? "start" : undefined };
}

export const shortened = (text: string, most: number) =>
  [...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text;

/** From the stream into what reads it. */
const reading = ({ stream }: Layout, from: number, to: Point) => G.bend({ x: from, y: stream }, to, "across");

function openBlock(view: View, block: Block, thick: Thickness): Partial<Picture> {
  const parts = [attention(view, block, thick), mlp(view, block, thick)];
  const title = t("inside.layer", { n: view.layer + 1 });
  const label = { ...heading(view.layout, [block.x + 46, block.x + 22], title), anchor: "start" } as const;
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
  const { layout } = view;
  const { small, stream: y } = layout;
  const trace = view.traces[view.at].layers[view.layer];
  const at = G.places(layout, block, view.config.n_head);
  const maps = openMaps(view, block);
  const strips = [
    strip("norm1", at.norm1, small, named("norm"), trace.normed),
    ...threefold(view, at.qkv),
    ...maps.map((map) => headStrip(trace, map, view.config)),
    strip("attended", at.attended, small, named("attended"), trace.attended),
  ];
  const top = { x: at.norm1, y: small.y - 4 };
  const out = { x: at.attended, y: small.y - 4 };
  const pipes = [
    pipe("norm1", "norm", reading(layout, block.x - 2, top), 3),
    pipe("qkv", "attention", acrossStrips(layout, at.norm1, at.qkv), 0),
    ...maps.flatMap((map) => headPipes(view, map, at.qkv, at.attended)),
    pipe("attended", "attention", G.rise(out, { x: at.plus1, y: y + 8 }), 2 * thick(trace.attended)),
  ];
  const labels = [
    ...beyond(layout, "norm1", at.norm1, small, t("inside.norm"), trace.normed.length),
    ...["Q", "K", "V"].map((text, i) => letter(layout, at.qkv, i, text)),
    ...beyond(layout, "qkv", at.qkv + 8, layout.tall, `3 × ${trace.queries.length}`),
    ...beyond(layout, "attended", at.attended, small, t("inside.sum"), trace.attended.length),
  ];
  const areas = [widening(layout, "qkv", "attention", at.norm1, at.qkv)];
  return { areas, pipes, strips, maps, labels, pluses: [{ part: "attended", x: at.plus1, y }] };
}

/** The place of the queries (0), the keys (1) and the values (2). */
function third({ tall }: Layout, i: number) {
  const height = (tall.height - 16) / 3;
  return { y: tall.y + i * (height + 8), height };
}

/** The letter before queries, keys and values. */
function letter(layout: Layout, qkv: number, i: number, text: string): Label {
  const { y, height } = third(layout, i);
  const middle = y + height / 2;
  const place = layout.upright ? { x: qkv - 11, y: middle } : { x: qkv - 17, y: middle + BASELINE };
  return { part: "qkv", ...place, text };
}

const SIDE = 32; // of the keys, and the values, of all tokens

/** The query of the token, and below it the keys and the values of all tokens that it may look at. */
function threefold({ traces, at, layer, tokens, layout }: View, left: number): Strip[] {
  return (["queries", "keys", "values"] as const).map((name, i) => {
    const width = i ? SIDE : WIDE;
    const each = traces.map((trace, n) => (n > at ? undefined : trace.layers[layer][name]));
    return {
      part: "qkv",
      name: named(name, { token: visible(tokens[at]) }),
      x: left - WIDE / 2 + width / 2,
      ...third(layout, i),
      width,
      values: traces[at].layers[layer][name],
      columns: i ? each : undefined,
    };
  });
}

function acrossStrips({ small }: Layout, from: number, to: number): string {
  const y = small.y + small.height / 2;
  return G.across({ x: from + WIDE / 2, y }, { x: to - WIDE / 2, y });
}

/** From a strip of C numbers to one of more, or back. */
function widening(
  { small, tall }: Layout,
  part: Part,
  tone: Tone,
  from: number,
  to: number,
  back = false,
): Area {
  const edge = (x: number, { y, height }: typeof small) => ({ x, top: y, bottom: y + height });
  const [left, right] = back ? [tall, small] : [small, tall];
  return { part, tone, d: G.band(edge(from + WIDE / 2, left), edge(to - WIDE / 2, right)) };
}

const isOff = ({ off }: View, layer: number, head: number) => off.has(headKey(layer, head));

function openMaps(view: View, block: Block): HeadMap[] {
  const { layer, config, layout } = view;
  const grid = G.mapGrid(config.n_head, Infinity, layout.heads.height, 10);
  const size = Math.min(58, grid.size);
  return Array.from({ length: config.n_head }, (_, head) => {
    const column = Math.floor(head / grid.rows);
    return {
      part: "heads",
      layer,
      head,
      x: G.places(layout, block, config.n_head).maps + column * (size + layout.pitch),
      y: layout.heads.y + (head % grid.rows) * grid.step,
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
function headPipes({ config, layout }: View, map: HeadMap, qkv: number, attended: number): Pipe[] {
  const share = (map.head + 0.5) / config.n_head;
  const incoming = [0, 1, 2].map((i) => {
    const { y, height } = third(layout, i);
    const from = { x: qkv - WIDE / 2 + (i ? SIDE : WIDE), y: y + share * height };
    return pipe(
      "heads",
      "attention",
      G.across(from, { x: map.x, y: map.y + map.size * (0.3 + 0.2 * i) }),
      1.2,
    );
  });
  const from = { x: map.x + map.size + 14, y: map.y + map.size / 2 };
  const to = { x: attended - WIDE / 2, y: layout.small.y + share * layout.small.height };
  return [...incoming, { ...pipe("attended", "attention", G.across(from, to), 3), away: map.off }];
}

function mlp(view: View, block: Block, thick: Thickness): Picture {
  const { layout } = view;
  const { small, tall, stream: y } = layout;
  const trace = view.traces[view.at].layers[view.layer];
  const at = G.places(layout, block, view.config.n_head);
  const strips = [
    strip("norm2", at.norm2, small, named("norm"), trace.normed2),
    strip("hidden", at.hidden, tall, named("hidden"), trace.hidden),
    strip("mlp", at.mlp, small, named("mlp"), trace.mlp),
  ];
  const out = { x: at.mlp, y: small.y - 4 };
  const pipes = [
    pipe("norm2", "norm", reading(layout, at.middle, { x: at.norm2, y: small.y - 4 }), 3),
    pipe("hidden", "mlp", acrossStrips(layout, at.norm2, at.hidden), 0),
    pipe("mlp", "mlp", acrossStrips(layout, at.hidden, at.mlp), 0),
    pipe("mlp", "mlp", G.rise(out, { x: at.plus2, y: y + 8 }), 2 * thick(trace.mlp)),
  ];
  const labels = [
    ...beyond(layout, "norm2", at.norm2, small, t("inside.norm"), trace.normed2.length),
    ...beyond(layout, "mlp", at.mlp, small, t("inside.sum"), trace.mlp.length),
    ...beyond(layout, "hidden", at.hidden, tall, trace.hidden.length),
    heading(layout, [at.hidden, at.norm2 - 18], "MLP", "hidden"),
  ];
  const areas = [
    widening(layout, "hidden", "mlp", at.norm2, at.hidden),
    widening(layout, "mlp", "mlp", at.hidden, at.mlp, true),
  ];
  return { areas, pipes, strips, maps: [], labels, pluses: [{ part: "mlp", x: at.plus2, y }] };
}

/** A block that is not open: its maps and hidden units, small. */
function closedBlock(view: View, block: Block, layer: number, thick: Thickness): Partial<Picture> {
  const part = "others";
  const { layout } = view;
  const { card, closed, stream } = layout;
  const { n_head } = view.config;
  const trace = view.traces[view.at].layers[layer];
  const before = layer ? view.traces[view.at].layers[layer - 1].output : view.traces[view.at].embedded;
  const room = block.width - 20;
  const grid = G.mapGrid(n_head, room, closed.maps.height, 6);
  const left = block.x + block.width / 2 - (grid.size * grid.columns + 6 * (grid.columns - 1)) / 2;
  const maps = Array.from({ length: n_head }, (_, head): HeadMap => ({
    part,
    layer,
    head,
    x: left + Math.floor(head / grid.rows) * (grid.size + 6),
    y: closed.maps.y + (head % grid.rows) * Math.min(grid.step, grid.size + 8),
    size: grid.size,
    rows: view.weights[layer][head],
    off: isOff(view, layer, head),
    large: false,
  }));
  const middle = block.x + block.width / 2;
  const plus = { x: block.x + plusOf(block), y: stream };
  const added = 2 * thick(difference(trace.output, before));
  const pipes = [
    pipe(part, "norm", reading(layout, block.x - 2, { x: block.x + 0.28 * block.width, y: card.top }), 3),
    pipe(part, "stream", G.rise({ x: plus.x, y: card.top }, { x: plus.x, y: stream + 8 }), added),
  ];
  const labels = [heading(layout, [middle, middle + BASELINE], String(layer + 1), part)];
  const strips = [strip(part, middle, closed.strip, named("hidden"), trace.hidden)];
  return { maps, strips, pipes, labels, pluses: [{ ...plus, part }] };
}

function ending({ traces, at, layout }: View, last: Block): Partial<Picture> {
  const x = last.x + last.width + 36;
  const { final } = traces[at];
  return {
    strips: [strip("final", x, layout.small, named("final"), final)],
    pipes: [pipe("final", "norm", reading(layout, last.x + last.width + 8, { x, y: layout.small.y - 4 }), 3)],
    labels: beyond(layout, "final", x, layout.small, t("inside.norm"), final.length),
  };
}
