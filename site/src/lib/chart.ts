/** What the charts share: their axes, curves and horizontal lines, and labels that do not overlap. */

export interface Axis {
  label: string;
  domain: [number, number];
  ticks: number[];
  show?: (value: number) => string;
  /** Logarithmic from about this value on, with room for 0 (d3's symlog); linear without it. */
  bend?: number;
}

export type Point = [x: number, y: number];

export interface Curve {
  name: string;
  colour: string;
  points: Point[];
  thin?: Point[][]; // others of its kind, such as single seeds
  dashes?: string;
  dot?: Point;
}

export interface Level {
  label: string;
  value: number;
}

/** Returns places at least `gap` apart and at most `last`, in the order of those given and near to them. */
export function spread(places: number[], gap: number, last: number): number[] {
  const order = places.map((_, i) => i).sort((a, b) => places[b] - places[a]);
  const moved = [...places];
  let limit = last;
  for (const i of order) {
    moved[i] = Math.min(moved[i], limit);
    limit = moved[i] - gap;
  }
  return moved;
}

/** Returns those of ascending values that stand at least `room` after the last one that was kept. */
export function roomy(values: number[], place: (value: number) => number, room: number): number[] {
  const kept: number[] = [];
  for (const value of values) {
    if (!kept.length || place(value) - place(kept.at(-1)!) >= room) kept.push(value);
  }
  return kept;
}

export const thousands = (value: number) => value.toLocaleString("en");
