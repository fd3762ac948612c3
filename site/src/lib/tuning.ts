/** The recorded runs of notebook 05: trials (one setting, several seeds) in maps of batch size by learning rate. */

import type { Point } from "./chart";

interface Run {
  batch_size?: number; // 16 where none is said
  rate: number;
  seed: number;
  loss: number; // nats per character, on the held-out text to choose on
  tokens: number; // characters that were read
  curve?: Point[]; // [step, loss of its training batch]
}

export interface TuningData {
  rates: { runs: Run[]; short: Run[]; longer_warmup: Run[] };
  batches: { runs: Run[] };
  lines: { choose: number[] }; // losses of the tables of 1-grams, 2-grams …
}

/** The runs with one setting. */
export interface Trial {
  key: string;
  batch: number;
  rate: number;
  characters: number;
  steps: number;
  warmup: number; // steps
  seeds: { loss: number; curve?: Point[] }[]; // curves by characters read
  median: number;
  low: number;
  high: number;
}

/** The trials of one batch size. */
export interface Row {
  key: string;
  batch: number;
  steps: number;
  warmup: number;
  trials: Trial[]; // by rate
  best: Trial;
}

export const WARMUPS = ["share", "longer"] as const;
/** A twentieth of the steps, or 100 steps at least: recipes/tuning_experiments.py. Some runs have both. */
export type Warmup = (typeof WARMUPS)[number];

const WINDOW = 64; // characters
const SHARE = 0.05;
const LONGER = 100; // steps

/** Returns all trials that were recorded. */
export function readTrials({ rates, batches }: TuningData): Trial[] {
  const share = (steps: number) => Math.floor(SHARE * steps);
  const longer = (steps: number) => Math.max(LONGER, share(steps));
  const runs = [
    ...[...rates.runs, ...rates.short].map((run) => ({ run, warmup: share })),
    ...[...rates.longer_warmup, ...batches.runs].map((run) => ({ run, warmup: longer })),
  ];
  const trials = new Map<string, Trial>();
  for (const { run, warmup } of runs) {
    const { batch_size: batch = 16, rate, tokens: characters, loss, curve } = run;
    const steps = characters / (batch * WINDOW);
    const key = [characters, batch, warmup(steps), rate].join("-");
    const trial = trials.get(key) ?? {
      ...{ key, batch, rate, characters, steps, warmup: warmup(steps), seeds: [] },
      ...{ median: NaN, low: NaN, high: NaN },
    };
    trial.seeds.push({ loss, curve: curve?.map(([step, loss]) => [step * batch * WINDOW, loss]) });
    trials.set(key, trial);
  }
  return [...trials.values()].map((trial) => ({ ...trial, ...summary(trial.seeds.map(({ loss }) => loss)) }));
}

/** Returns the rows of a map, small batches first. */
export function rowsOf(trials: Trial[], characters: number, warmup: Warmup): Row[] {
  const fits = (trial: Trial) =>
    warmup === "share" ? trial.warmup === Math.floor(SHARE * trial.steps) : trial.warmup >= LONGER;
  const inMap = trials.filter((trial) => trial.characters === characters && fits(trial));
  return ascending(inMap.map(({ batch }) => batch)).map((batch) => {
    const row = inMap.filter((trial) => trial.batch === batch).sort((a, b) => a.rate - b.rate);
    const { steps, warmup } = row[0];
    const best = row.reduce((a, b) => (b.median < a.median ? b : a));
    return { key: [characters, batch, warmup].join("-"), batch, steps, warmup, trials: row, best };
  });
}

/** Returns the different values in ascending order. */
export function ascending(values: number[]): number[] {
  return [...new Set(values)].sort((a, b) => a - b);
}

/** Says whether the ranges of a row's best trial and of another overlap: its seeds cannot tell them apart. */
export const alike = (row: Row, trial: Trial) => trial !== row.best && trial.low <= row.best.high;

/**
 * Returns the trial at an end of a row beyond which a better rate may lie, as notebook 05 decides it (tuning.widen): the
 * end is the best, or stands beside the best and is not separated from it.
 */
export function openEnd(row: Row): Trial | undefined {
  const { trials, best } = row;
  if (trials.length === 1) return undefined;
  const pairs = [
    [trials[0], trials[1]],
    [trials.at(-1)!, trials.at(-2)!],
  ];
  return pairs.find(([end, beside]) => end === best || (beside === best && alike(row, end)))?.[0];
}

/** Returns the longest n whose n-gram table has a higher loss; 0 if there is none. */
export function rank(loss: number, tables: number[]): number {
  return tables.findLastIndex((table) => loss < table) + 1;
}

/** Returns the median of several curves that have the same places. */
export function medianCurve(curves: Point[][]): Point[] {
  return curves[0].map(([at], n) => [at, median(curves.map((curve) => curve[n][1]))]);
}

function summary(losses: number[]) {
  return { median: median(losses), low: Math.min(...losses), high: Math.max(...losses) };
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
}
