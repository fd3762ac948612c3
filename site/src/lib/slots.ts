/** How the curves of a chart are told apart: a colour, and dashes where colours come again. */
const COLOURS = ["var(--model)", "var(--now)", "var(--human)"];

export const stroke = (slot: number) => ({
  colour: COLOURS[slot % COLOURS.length],
  dashes: slot < COLOURS.length ? undefined : "7 4",
});
