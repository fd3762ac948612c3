/**
 * Where things stand in the picture, in CSS pixels: it is drawn at the size it has, so that text stays readable.
 *
 * The residual stream runs along the top, from left to right; what reads it and adds to it hangs below.
 */

export const HEIGHT = 484;
export const STREAM = 82; // the middle of the residual stream
export const CARD = { top: 148, bottom: 476 };
export const SMALL = { y: 230, height: 160 }; // strips of C numbers
export const TALL = { y: 188, height: 248 }; // what is larger: queries, keys and values, the MLP's hidden units

export const EMBED = 122; // widths
const OPEN = 546;
export const END = 246;
const CLOSED = { least: 46, most: 92 };

/** The parts of the open block, from its left edge, where its heads stand in one column. */
const AT = {
  norm1: 30,
  qkv: 92,
  maps: 156,
  attended: 350,
  plus1: 374,
  middle: 388,
  norm2: 410,
  hidden: 458,
  mlp: 506,
  plus2: 528,
};

export interface Point {
  x: number;
  y: number;
}

export interface Block {
  x: number;
  width: number;
}

const COLUMN = 6; // heads below each other, at most
const MORE = 150; // for each further column of heads

const wider = (heads: number) => MORE * (Math.ceil(heads / COLUMN) - 1);

/** Returns where the parts of the open block are: closer together while it unfolds. */
export function places(block: Block, heads: number): typeof AT {
  const scale = block.width / (OPEN + wider(heads));
  const place = (x: number) => block.x + scale * (x > AT.maps ? x + wider(heads) : x);
  return Object.fromEntries(Object.entries(AT).map(([name, x]) => [name, place(x)])) as typeof AT;
}

/** Returns the width of every block: the open one gets what the others leave. */
export function blockWidths(room: number, layers: number, open: number, heads: number): number[] {
  const least = OPEN + wider(heads);
  const free = room - EMBED - END;
  const share = (free - least) / Math.max(1, layers - 1);
  const closed = Math.min(CLOSED.most, Math.max(CLOSED.least, share));
  const rest = Math.max(least, free - closed * (layers - 1));
  return Array.from({ length: layers }, (_, layer) => (layer === open ? rest : closed));
}

/** Returns the blocks, one after the other. */
export function blocksOf(widths: number[]): Block[] {
  let x = EMBED;
  return widths.map((width) => {
    const block = { x, width };
    x += width;
    return block;
  });
}

/** The size of n maps below each other, in as many columns as they need. */
export function mapGrid(n: number, width: number, height: number, gap: number) {
  const columns = Math.ceil(n / COLUMN);
  const rows = Math.ceil(n / columns);
  const size = Math.min((width - gap * (columns - 1)) / columns, (height - gap * (rows - 1)) / rows);
  return { rows, size, step: rows > 1 ? (height - size) / (rows - 1) : 0, columns };
}

/** A curve that leaves and arrives horizontally. */
export function across(from: Point, to: Point): string {
  const middle = (from.x + to.x) / 2;
  return `M${from.x} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
}

/** A curve that leaves horizontally and arrives from above, or leaves upwards and arrives horizontally. */
export function bend(from: Point, to: Point, first: "across" | "along"): string {
  const corner = first === "across" ? { x: to.x, y: from.y } : { x: from.x, y: to.y };
  return `M${from.x} ${from.y}C${corner.x} ${corner.y} ${corner.x} ${corner.y} ${to.x} ${to.y}`;
}

/** A curve that leaves upwards and arrives from below. */
export function rise(from: Point, to: Point): string {
  const middle = (from.y + to.y) / 2;
  return `M${from.x} ${from.y}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.y}`;
}

interface Edge {
  x: number;
  top: number;
  bottom: number;
}

/** The area between two upright edges. */
export function band(left: Edge, right: Edge): string {
  const middle = (left.x + right.x) / 2;
  return (
    `M${left.x} ${left.top}C${middle} ${left.top} ${middle} ${right.top} ${right.x} ${right.top}` +
    `V${right.bottom}C${middle} ${right.bottom} ${middle} ${left.bottom} ${left.x} ${left.bottom}Z`
  );
}

export interface Station {
  x: number;
  half: number; // half the thickness of the stream here
}

/** The area of a stream whose thickness changes smoothly from station to station. */
export function river(stations: Station[]): string {
  const side = (points: Station[], sign: number) =>
    points
      .map(({ x, half }, i) => {
        const y = STREAM + sign * half;
        if (i === 0) return `L${x} ${y}`;
        const last = points[i - 1];
        const middle = (last.x + x) / 2;
        return `C${middle} ${STREAM + sign * last.half} ${middle} ${y} ${x} ${y}`;
      })
      .join("");
  return `M${side(stations, -1).slice(1)}${side([...stations].reverse(), 1)}Z`;
}
