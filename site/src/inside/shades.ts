/** Many coloured cells as a few paths, one a shade: hundreds of rectangles would make the page slow. */

const SHADES = 8; // of each sign

export interface Shade {
  level: number; // from -1 to 1
  d: string;
}

/** Returns the paths; `square(i)` is the outline of cell i. Cells that are nearly 0 have none. */
export function shades(values: ArrayLike<number>, scale: number, square: (i: number) => string): Shade[] {
  const outlines = new Map<number, string>();
  for (let i = 0; i < values.length; i++) {
    const size = Math.min(1, Math.abs(values[i]) / scale);
    const level = Math.round(size * SHADES) * Math.sign(values[i]);
    if (level) outlines.set(level, (outlines.get(level) ?? "") + square(i));
  }
  return Array.from(outlines, ([level, d]) => ({ level: level / SHADES, d }));
}

/** Returns the outline of a rectangle. */
export const box = (x: number, y: number, width: number, height: number) =>
  `M${x.toFixed(2)} ${y.toFixed(2)}h${width.toFixed(2)}v${height.toFixed(2)}h${(-width).toFixed(2)}z`;
