/** Reads a folder that GPT.save, or notebook 04, has written: config.json, model.safetensors and the tokenizer. */

import type { Config } from "./model";
import { FileError } from "./safetensors";
import { BPETokenizer, CharTokenizer, type Tokenizer } from "./tokenizer";

export interface Opened {
  name: string;
  config: Config;
  weights: ArrayBuffer;
  tokenizer: Tokenizer;
}

const KINDS = ["gpt2", "gptcourse"];
const SIZES = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"] as const;

/** Returns the model in a list of files. Throws a FileError that says what is missing or wrong. */
export async function readFolder(files: File[]): Promise<Opened> {
  const named = (name: string) => files.find((file) => file.name === name);
  const need = (name: string) => {
    const file = named(name);
    if (!file) throw new FileError("missing", { file: name });
    return file;
  };
  const config = parse(await need("config.json").text(), "config.json") as Config & {
    model_type?: string;
  };
  if (!KINDS.includes(config.model_type ?? "")) {
    throw new FileError("otherKind", { kind: config.model_type ?? "?" });
  }
  if (SIZES.some((size) => !Number.isInteger(config[size]) || config[size] < 1)) {
    throw new FileError("damaged", { file: "config.json" });
  }
  const weights = await need("model.safetensors").arrayBuffer();
  const tokenizer = await readTokenizer(named("characters.json"), named("tokenizer.json"));
  if (tokenizer.vocabSize > config.vocab_size) throw new FileError("otherTokenizer");
  const folder = need("config.json").webkitRelativePath.split("/").at(-2);
  return { name: folder ?? "model.safetensors", config, weights, tokenizer };
}

async function readTokenizer(characters?: File, bpe?: File): Promise<Tokenizer> {
  if (characters) {
    const text = parse(await characters.text(), "characters.json");
    if (typeof text !== "string") throw new FileError("damaged", { file: "characters.json" });
    return new CharTokenizer(text);
  }
  if (!bpe) throw new FileError("missing", { file: "characters.json" });
  try {
    return BPETokenizer.read(await bpe.text());
  } catch {
    throw new FileError("damaged", { file: "tokenizer.json" });
  }
}

function parse(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new FileError("damaged", { file });
  }
}

type Item = DataTransferItem & { getAsFileSystemHandle?: () => Promise<FileSystemHandle | null> };

/**
 * Returns the files that were dropped, those of dropped folders included. For a page from a folder (file://) Chromium
 * reads handles, but no entries; other browsers have entries alone.
 */
export async function droppedFiles(transfer: DataTransfer): Promise<File[]> {
  const found = Array.from(
    transfer.items as Iterable<Item>,
    (item) => item.getAsFileSystemHandle?.().then(filesBehind) ?? filesOf(item.webkitGetAsEntry()),
  );
  return (await Promise.all(found)).flat();
}

async function filesBehind(handle: FileSystemHandle | null): Promise<File[]> {
  if (!handle) return [];
  if (handle.kind === "file") return [await (handle as FileSystemFileHandle).getFile()];
  const files: File[] = [];
  for await (const inner of (handle as FileSystemDirectoryHandle).values()) {
    if (inner.kind === "file") files.push(placed(await inner.getFile(), `${handle.name}/${inner.name}`));
  }
  return files;
}

async function filesOf(entry: FileSystemEntry | null): Promise<File[]> {
  if (!entry) return [];
  if (entry.isFile) return [await fileOf(entry as FileSystemFileEntry)];
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const all: FileSystemEntry[] = [];
  for (;;) {
    // A browser gives a hundred at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject),
    );
    if (!some.length) break;
    all.push(...some);
  }
  return (await Promise.all(all.filter((inner) => inner.isFile).map(filesOf))).flat();
}

async function fileOf(entry: FileSystemFileEntry): Promise<File> {
  const file = await new Promise<File>((resolve, reject) => entry.file(resolve, reject));
  return placed(file, entry.fullPath.slice(1));
}

/** Returns the file with the path that one from the file button has, so that its folder is known. */
const placed = (file: File, path: string): File =>
  Object.defineProperty(file, "webkitRelativePath", { value: path });
