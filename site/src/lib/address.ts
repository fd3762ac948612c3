/** The state of the page as the part of its address after #: a scene, and the settings of that scene. */

export interface Address {
  scene: string;
  settings: Record<string, string>;
}

export function readAddress(hash: string = location.hash): Address {
  const [scene, query = ""] = hash.replace(/^#/, "").split("?");
  return { scene, settings: Object.fromEntries(new URLSearchParams(query)) };
}

const PAUSE = 300; // milliseconds: browsers refuse to be told a new address many times a second
let waiting: number | undefined;

/** Writes settings into the address, without a new entry in the browser's history. Undefined ones are left out. */
export function writeAddress(scene: string, settings: Record<string, string | number | undefined>) {
  clearTimeout(waiting);
  waiting = window.setTimeout(() => replaceAddress(scene, settings), PAUSE);
}

function replaceAddress(scene: string, settings: Record<string, string | number | undefined>) {
  if (readAddress().scene !== scene && location.hash) return; // the reader has gone on to another scene
  const given = Object.entries(settings).filter(([, value]) => value !== undefined);
  const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  history.replaceState(null, "", `#${scene}${given.length ? `?${query}` : ""}`);
}

/** Returns a number of an address within its limits; anything else gives the default. */
export function numberIn(text: string | undefined, least: number, most: number, otherwise: number) {
  const value = text === undefined || text.trim() === "" ? NaN : Number(text);
  return value >= least && value <= most ? value : otherwise;
}
