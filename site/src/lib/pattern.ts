/** Pictures of attention weights as few SVG paths: one for each shade, which draws much faster than one per cell. */

const SHADES = 12;

/** Returns, for each shade from pale to full, its opacity and the path of all cells (1 × 1) that have it. */
export function shades(pattern: ArrayLike<number>[]): { opacity: number; path: string }[] {
  const paths = Array.from({ length: SHADES }, () => "");
  pattern.forEach((row, query) => {
    for (let key = 0; key <= query; key++) {
      const shade = Math.round(row[key] * SHADES);
      if (shade > 0) paths[shade - 1] += `M${key} ${query}h1v1h-1z`;
    }
  });
  return paths.map((path, n) => ({ opacity: (n + 1) / SHADES, path })).filter(({ path }) => path);
}

/** Returns the outline of the cells in which a token looks at itself and at those before it. */
export function staircase(n: number): string {
  const stairs = Array.from({ length: n }, (_, i) => `H${i + 1}V${i + 1}`).join("");
  return `M0 0${stairs}H0z`;
}

/** Returns the place of the largest weight. */
export function strongest(row: ArrayLike<number>): number {
  return Array.from(row).reduce((best, weight, i, all) => (weight > all[best] ? i : best), 0);
}
