"""A GPT with its tokenizer as one GGUF file, the format of llama.cpp and of the programs that are built on it.

Names and order are those that llama.cpp's own converter gives a GPT-2 (convert_hf_to_gguf.py, class GPT2Model); the
package gguf writes the file. A matrix is stored as (out, in), as torch's Linear has it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gptcourse.checks import Choice
from gptcourse.files import expand, fsync, writing
from gptcourse.hf import to_gpt2_names
from gptcourse.model import GPT
from gptcourse.tokenizers import CHAT_TEMPLATE, CHAT_TOKENS, BPETokenizer

STORAGE = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}  # of matrices: the name of the file's type
GROUP = 32  # weights that share a scale in Q8_0


def to_gguf(model: GPT, tokenizer: BPETokenizer, path: str | Path, storage: str = "F16") -> None:
    """Write a GPT-2-shaped model and its tokenizer into one file at `path`.

    Matrices are stored as "F32", "F16" or "Q8_0" (8 bits, a scale for 32 weights); vectors and positions stay in
    float32. Raises ValueError for another shape of model, another kind of tokenizer, an unknown storage, and rows that
    groups of 32 do not fill, and if the file cannot be written; ImportError without the package gguf.
    """
    _check(model, tokenizer, storage)
    gguf, path, (config, state) = _library(), expand(path), model._plain_state()
    with writing(path), TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        whole = Path(folder, "whole.gguf")
        _write(gguf, whole, config, state, tokenizer, storage)
        whole.replace(path)  # until then, what stood there stays


def _write(gguf, path, config, state, tokenizer, storage):
    writer = gguf.GGUFWriter(path, "gpt2")
    _write_settings(writer, config)
    writer.add_file_type(gguf.LlamaFileType[STORAGE[storage]])
    _write_tokenizer(writer, tokenizer, gguf.TokenType)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # the same matrix as wte.weight: stored once
        (full_name,) = to_gpt2_names({name: tensor})
        kind = "F32" if tensor.dim() < 2 or name == "wpe.weight" else storage
        kind = gguf.GGMLQuantizationType[kind]
        values = gguf.quants.quantize(tensor.detach().float().cpu().numpy(), kind)
        writer.add_tensor(names.get_name(full_name, (".weight", ".bias")), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fsync(path)


def _check(model, tokenizer, storage):
    if not isinstance(model, GPT) or not model.config.is_gpt2_shaped:
        raise ValueError("Only a GPT-2-shaped GPT of this course goes into GGUF here: save others as they are.")
    if not isinstance(tokenizer, BPETokenizer) or tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError("A GGUF file holds a BPETokenizer with as many tokens as its model has: give that one.")
    Choice(tuple(STORAGE))("storage", storage)
    if storage == "Q8_0" and model.config.n_embd % GROUP:
        raise ValueError(f"n_embd is {model.config.n_embd}, which groups of {GROUP} do not fill: take F16.")


def _library():
    try:
        import gguf
    except ImportError as error:
        raise ImportError('A GGUF file needs the library gguf: run `pip install "gptcourse[real-models]"`.') from error
    return gguf


def _write_settings(writer, config):
    writer.add_name("gptcourse")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _write_tokenizer(writer, tokenizer, kinds):
    tokens, merges = tokenizer.vocabulary
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("gpt-2")  # which cuts a text into words as GPT-2 does
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if token in CHAT_TOKENS else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    end = tokenizer.token_id(CHAT_TOKENS[-1])
    writer.add_bos_token_id(end)  # needed by the format; no text begins with it
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(end)
    writer.add_chat_template(CHAT_TEMPLATE)
