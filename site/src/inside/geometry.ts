/**
 * Where things stand in the picture, in CSS pixels: it is drawn at the size it has, so that text stays readable.
 *
 * x runs along the residual stream, y away from it: what reads the stream and adds to it hangs beside it. Where there is
 * room, the stream runs from left to right; upright, x and y change places, and it runs from top to bottom.
 */

interface Span {
  y: number;
  height: number;
}

export interface Layout {
  upright: boolean;
  across: number; // the size of the picture away from the stream
  stream: number; // the middle of the residual stream
  thick: number; // half the thickness that the longest vector adds to it
  numbers: number; // beside the stream's vectors
  vector: Span; // strips across the stream
  card: { top: number; bottom: number };
  title: number;
  small: Span; // strips of C numbers
  tall: Span; // what is larger: queries, keys and values, the MLP's hidden units
  heads: Span;
  closed: { maps: Span; strip: Span }; // in a block that is not open
  pitch: number; // from one row or column of heads to the next, without the maps
  more: number; // that each further one needs
  open: number; // the least width of the open block
  end: number; // the width of what follows the last block
  at: typeof AT;
}

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

const WIDE: Layout = {
  upright: false,
  across: 484,
  stream: 82,
  thick: 22,
  numbers: 32,
  vector: { y: 40, height: 84 },
  card: { top: 148, bottom: 476 },
  title: 171,
  small: { y: 230, height: 160 },
  tall: { y: 188, height: 248 },
  heads: { y: 188, height: 248 },
  closed: { maps: { y: 184, height: 176 }, strip: { y: 364, height: 100 } },
  pitch: 104,
  more: 150,
  open: 546,
  end: 246,
  at: AT,
};

/** Returns the layout of a picture that is `across` wide. */
const upright = (across: number): Layout => ({
  upright: true,
  across,
  stream: 54,
  thick: 11,
  numbers: 28,
  vector: { y: 32, height: 44 },
  card: { top: 92, bottom: across - 2 },
  title: 104,
  small: { y: 106, height: across - 192 },
  tall: { y: 106, height: across - 166 },
  heads: { y: 104, height: across - 118 },
  closed: { maps: { y: 118, height: across - 180 }, strip: { y: across - 54, height: 42 } },
  pitch: 56,
  more: 114,
  open: 524,
  end: 316,
  at: {
    ...{ norm1: 48, qkv: 100, maps: 152, attended: 296, plus1: 316, middle: 332 },
    ...{ norm2: 382, hidden: 428, mlp: 476, plus2: 500 },
  },
});

export const EMBED = 122; // the width of what comes before the first block
const CLOSED = { least: 46, most: 92 };
const DESK = 1140; // a window with as much room scrolls deep models sideways
const [LEAST, LARGEST] = [280, 520]; // across an upright picture

/** Returns the layout for a room across the page: upright where the whole picture would not fit. */
export function layoutFor(room: number, layers: number, heads: number): Layout {
  const needed = EMBED + WIDE.open + wider(WIDE, heads) + CLOSED.least * (layers - 1) + WIDE.end;
  return room > 0 && room < Math.min(needed, DESK) ? upright(Math.max(LEAST, Math.min(room, LARGEST))) : WIDE;
}

/** Returns a point of the picture on the screen, or the other way round. */
export const turned = ({ upright }: Layout, { x, y }: Point): Point => (upright ? { x: y, y: x } : { x, y });

export interface Point {
  x: number;
  y: number;
}

export interface Block {
  x: number;
  width: number;
}

const COLUMN = 6; // heads below each other, at most

const wider = ({ more }: Layout, heads: number) => more * (Math.ceil(heads / COLUMN) - 1);

/** Returns where the parts of the open block are: closer together while it unfolds. */
export function places(layout: Layout, block: Block, heads: number): typeof AT {
  const { open, at } = layout;
  const scale = block.width / (open + wider(layout, heads));
  const place = (x: number) => block.x + scale * (x > at.maps ? x + wider(layout, heads) : x);
  return Object.fromEntries(Object.entries(at).map(([name, x]) => [name, place(x)])) as typeof AT;
}

/** Returns the width of every block: the open one gets what the others leave. An upright picture has no need to fill. */
export function blockWidths(
  layout: Layout,
  room: number,
  layers: number,
  open: number,
  heads: number,
): number[] {
  const least = layout.open + wider(layout, heads);
  const free = layout.upright ? 0 : room - EMBED - layout.end;
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

/** The area of a stream with this middle whose thickness changes smoothly from station to station. */
export function river(middle: number, stations: Station[]): string {
  const side = (points: Station[], sign: number) =>
    points
      .map(({ x, half }, i) => {
        const y = middle + sign * half;
        if (i === 0) return `L${x} ${y}`;
        const last = points[i - 1];
        const between = (last.x + x) / 2;
        return `C${between} ${middle + sign * last.half} ${between} ${y} ${x} ${y}`;
      })
      .join("");
  return `M${side(stations, -1).slice(1)}${side([...stations].reverse(), 1)}Z`;
}

/** Where the list of next tokens stands on the screen: its rows, their bars, and the ways of the last vector to them. */
export function listing({ upright, across: size, card, small }: Layout, end: number) {
  const left = upright ? card.top + 12 : end + 68;
  const from = upright ? { x: small.y, y: end + 36 } : { x: end + 43, y: small.y + small.height / 2 };
  const way = (y: number) => {
    const to = { x: left - 6, y };
    return upright ? around(from, to) : across(from, to);
  };
  return { left, way, ...(upright ? { top: end + 88, step: 28, bar: size - left - 110 } : ROWS) };
}

const ROWS = { top: 188, step: 31, bar: 72 };

/** A curve that leaves to the left and arrives from there. */
function around(from: Point, to: Point): string {
  const bulge = to.x - 44;
  return `M${from.x} ${from.y}C${bulge} ${from.y} ${bulge} ${to.y} ${to.x} ${to.y}`;
}
