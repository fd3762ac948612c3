/** The stages of a forward pass, in their order, and the parts of the picture that each one is about. */

export type Part =
  | "embed"
  | "stream"
  | "norm1"
  | "qkv"
  | "heads"
  | "attended"
  | "norm2"
  | "hidden"
  | "mlp"
  | "others"
  | "final"
  | "logits";

/** The first stage is the whole; each of the others is named by the part it explains. */
export const STAGES = [
  "whole",
  "embed",
  "stream",
  "norm1",
  "qkv",
  "heads",
  "attended",
  "norm2",
  "hidden",
  "mlp",
  "others",
  "final",
  "logits",
] as const satisfies readonly (Part | "whole")[];

export type Stage = (typeof STAGES)[number];

/** What a stage reads or changes stays in view with it. */
const ALONGSIDE: Partial<Record<Stage, Part[]>> = {
  norm1: ["stream"],
  qkv: ["norm1"],
  heads: ["qkv"],
  attended: ["heads", "stream"],
  norm2: ["stream"],
  hidden: ["norm2"],
  mlp: ["hidden", "stream"],
  others: ["stream"],
  final: ["stream"],
  logits: ["final"],
};

/** Tells whether a part stands back while a stage is explained. */
export const standsBack = (part: Part, stage: Stage) =>
  stage !== "whole" && part !== stage && !ALONGSIDE[stage]?.includes(part);
