/** Reads safetensors: eight bytes of length, a JSON header, then the numbers of each tensor, little-endian. */

export type Tensors = Map<string, { shape: number[]; data: Float32Array }>;

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** Thrown for a file that is damaged or holds another kind of numbers; the message is a key of the strings. */
export class FileError extends Error {
  constructor(
    readonly key: string,
    readonly values: Record<string, string | number> = {},
  ) {
    super(key);
  }
}

/**
 * Returns every tensor in float32. A matrix `name` of int8 codes is multiplied by its `name.scale`, one for each row,
 * as gptcourse.quantisation writes it.
 */
export function readSafetensors(file: ArrayBuffer): Tensors {
  const header = readHeader(file);
  const begin = 8 + Number(new DataView(file).getBigUint64(0, true));
  const tensors: Tensors = new Map();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    const [from, to] = data_offsets.map((offset) => begin + offset);
    const count = shape.reduce((a, b) => a * b, 1);
    const size = BYTES[dtype];
    if (!size || to - from !== size * count || to > file.byteLength) {
      throw new FileError("damaged", { file: "model.safetensors" });
    }
    tensors.set(name, { shape, data: numbers(file.slice(from, to), dtype) });
  }
  for (const [name, tensor] of tensors) scaleRows(tensor, tensors.get(`${name}.scale`)?.data);
  for (const name of [...tensors.keys()]) if (name.endsWith(".scale")) tensors.delete(name);
  return tensors;
}

const BYTES: Record<string, number> = { F32: 4, F16: 2, BF16: 2, I8: 1 };

function readHeader(file: ArrayBuffer): Record<string, Entry> {
  try {
    const length = Number(new DataView(file).getBigUint64(0, true));
    const text = new TextDecoder().decode(new Uint8Array(file, 8, length));
    const { __metadata__: _, ...header } = JSON.parse(text);
    return header;
  } catch {
    throw new FileError("damaged", { file: "model.safetensors" });
  }
}

function numbers(bytes: ArrayBuffer, dtype: string): Float32Array {
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "I8") return Float32Array.from(new Int8Array(bytes));
  const halves = new Uint16Array(bytes);
  if (dtype === "F16") return Float32Array.from(halves, float16);
  const wide = new Uint32Array(halves.length);
  halves.forEach((half, i) => (wide[i] = half << 16)); // bfloat16 is the upper half of a float32
  return new Float32Array(wide.buffer);
}

/** Returns the number that 16 bits of IEEE 754 half precision stand for. */
export function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function scaleRows({ shape, data }: { shape: number[]; data: Float32Array }, scales?: Float32Array) {
  if (!scales) return;
  const [rows, columns] = shape;
  for (let row = 0; row < rows; row++) {
    for (let i = row * columns; i < (row + 1) * columns; i++) data[i] *= scales[row];
  }
}
