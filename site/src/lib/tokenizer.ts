/** Text to token ids and back, equal to gptcourse/tokenizers.py: one token per character, or byte-level BPE. */

import { FileError } from "./safetensors";

export interface Tokenizer {
  readonly vocabSize: number;
  /** Returns the ids of a text. Throws a FileError that names a character the tokenizer does not know. */
  encode(text: string): number[];
  /** Returns the text of these ids. */
  decode(ids: Iterable<number>): string;
}

export class CharTokenizer implements Tokenizer {
  private readonly characters: string[];
  private readonly ids: Map<string, number>;

  constructor(characters: string) {
    this.characters = [...characters];
    this.ids = new Map(this.characters.map((character, id) => [character, id]));
  }

  get vocabSize() {
    return this.characters.length;
  }

  encode(text: string): number[] {
    return [...text].map((character) => {
      const id = this.ids.get(character);
      if (id === undefined) throw new FileError("unknownCharacter", { character });
      return id;
    });
  }

  decode(ids: Iterable<number>): string {
    return Array.from(ids, (id) => this.characters[id]).join("");
  }
}

// GPT-2's pattern (Radford et al., 2019). \p{White_Space}, as JavaScript's \s is another set than the library's.
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The parts of tokenizer.json that a BPE needs. */
export interface BPEFile {
  vocab: string[]; // in the order of their ids, a letter for each byte
  merges: [string, string][];
}

export class BPETokenizer implements Tokenizer {
  private readonly vocab: string[];
  private readonly ids: Map<string, number>;
  private readonly merges: Map<number, { rank: number; id: number }>;

  constructor({ vocab, merges }: BPEFile) {
    this.vocab = vocab;
    this.ids = new Map(vocab.map((token, id) => [token, id]));
    this.merges = new Map(
      merges.map(([left, right], rank) => [
        this.pair(this.ids.get(left)!, this.ids.get(right)!),
        { rank, id: this.ids.get(left + right)! },
      ]),
    );
  }

  /** Reads the text of a tokenizer.json that BPETokenizer.save has written. */
  static read(text: string): BPETokenizer {
    const { model } = JSON.parse(text);
    const vocab: string[] = [];
    for (const [token, id] of Object.entries<number>(model.vocab)) vocab[id] = token;
    return new BPETokenizer({ vocab, merges: model.merges });
  }

  get vocabSize() {
    return this.vocab.length;
  }

  encode(text: string): number[] {
    if (!text.isWellFormed()) throw new FileError("halfPair");
    return Array.from(text.matchAll(WORDS), ([word]) => this.encodeWord(word)).flat();
  }

  decode(ids: Iterable<number>): string {
    const letters = Array.from(ids, (id) => this.vocab[id]).join("");
    const bytes = Uint8Array.from(letters, (letter) => BYTE_OF.get(letter)!);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  /** Joins the pair with the lowest rank, wherever it stands, until no pair is left: Sennrich et al. (2016), 3.2. */
  private encodeWord(word: string): number[] {
    let tokens = Array.from(new TextEncoder().encode(word), (byte) => this.ids.get(LETTERS[byte])!);
    for (;;) {
      let best = { rank: Infinity, id: -1 };
      for (let i = 0; i + 1 < tokens.length; i++) {
        const merge = this.merges.get(this.pair(tokens[i], tokens[i + 1]));
        if (merge && merge.rank < best.rank) best = merge;
      }
      if (best.id < 0) return tokens;
      const joined: number[] = [];
      for (let i = 0; i < tokens.length; i++) {
        const merge = this.merges.get(this.pair(tokens[i], tokens[i + 1] ?? -1));
        const joins = merge?.rank === best.rank;
        joined.push(joins ? best.id : tokens[i]);
        if (joins) i++;
      }
      tokens = joined;
    }
  }

  private pair(left: number, right: number) {
    return left * 2 ** 24 + right;
  }
}

/** A printable letter for each byte, as GPT-2 chose them: those of Latin-1 that can be seen, and 256 upwards. */
const LETTERS: string[] = [];
let unseen = 256;
for (let byte = 0; byte < 256; byte++) {
  const seen = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  LETTERS.push(String.fromCodePoint(seen ? byte : unseen++));
}
const BYTE_OF = new Map(LETTERS.map((letter, byte) => [letter, byte]));
