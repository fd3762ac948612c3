"""How fast the bundled model writes, next to transformers' `generate` and nanoGPT's on the same weights, in float32.

Rounds take turns, and ratios are taken within a round. The matvec-only rate is what would be reached if a token cost
nothing but the products of its vectors with the model's matrices: what is left to gain. Past its window of 256 tokens
transformers' GPT-2 cannot write; nanoGPT computes the last window anew for each token, as it has no cache.
"""

import statistics

import torch
from torch import nn

from benchmarks.peers import nanogpt, take_weights
from benchmarks.timing import in_turns, medians, rate, ratio
from gptcourse.fast_decoder import Decoder
from gptcourse.generation import Sampling, generate
from gptcourse.pretrained import load_pretrained

TOKENS, ROUNDS = 200, 15
LENGTHS, ROWS, GRID_ROUNDS = (50, 200, 300), (1, 16), 3  # nanoGPT takes a minute or two for 16 rows of 300
GREEDY = Sampling(temperature=0)
WAYS = {
    "greedy": GREEDY,
    "sampled": Sampling(seed=0),
    "sampled, top-k 50, top-p 0.95": Sampling(0.8, top_k=50, top_p=0.95, seed=0),
}


def theirs(hf, prompt, sampling, new_tokens):
    """Return what transformers' `generate` writes with the same settings."""
    options = {"do_sample": False}
    if sampling.temperature:
        options = {"do_sample": True} | {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    mask = torch.ones_like(prompt)
    return hf.generate(prompt, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=0, **options)


@torch.inference_mode()
def read(model, n_tokens):
    """Run the model alone, a token at a time, with its cache and no choice of a token."""
    decoder, cache, token = Decoder(model), model.new_cache(), torch.tensor([[0]])
    for _ in range(n_tokens):
        decoder(token, cache=cache)


@torch.inference_mode()
def multiply(model, n_tokens):
    """Do only the products of each matrix (out, in) with one vector, as often as for `n_tokens` tokens."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    vectors = {matrix.shape[1]: torch.ones(matrix.shape[1]) for matrix in matrices}
    for _ in range(n_tokens):
        for matrix in matrices:
            torch.mv(matrix, vectors[matrix.shape[1]])


def compared(seconds, work, *key):
    """Return the columns of a row: our rate, transformers', and how many times theirs ours is."""
    ours, other = seconds["ours", *key], seconds["theirs", *key]
    return {
        "gptcourse": rate(work, ours),
        "transformers": rate(work, other),
        "times transformers'": ratio(other, ours),
    }


def ways(model, hf, prompt, n, rounds):
    """Return two tables: tokens a second for each way to choose a token, and where the time of a greedy one goes."""
    jobs = {"read": lambda: read(model, n), "multiply": lambda: multiply(model, n)}
    for way, sampling in WAYS.items():
        jobs["ours", way] = lambda sampling=sampling: generate(model, prompt, n, sampling)
        jobs["theirs", way] = lambda sampling=sampling: theirs(hf, prompt, sampling, n)
    seconds = in_turns(jobs, rounds)
    products, forward, whole = (
        statistics.median(seconds[name]) / n * 1000 for name in ("multiply", "read", ("ours", "greedy"))
    )
    parts = {
        "matrix times vector": products,
        "the rest of the model": forward - products,
        "choosing the token, the loop": whole - forward,
    }
    rows = [
        {f"tokens/s, {n} new": way}
        | compared(seconds, n, way)
        | {"% of the matvec-only rate": ratio(seconds["multiply"], seconds["ours", way], 100)}
        for way in WAYS
    ]
    return rows, [{"a greedy token of ours": part, "ms": round(ms, 3)} for part, ms in parts.items()]


def grid(models, prompt, lengths, n_rows, rounds):
    """Return tokens a second, all rows together, for each number of rows and of new tokens, sampled."""
    (model, hf, (name, nano)), jobs = models, {}
    fits = [n for n in lengths if prompt.shape[1] + n <= model.config.n_positions]
    for rows in n_rows:
        batch = prompt.expand(rows, -1)
        for n in lengths:
            jobs["ours", rows, n] = lambda n=n, batch=batch: generate(model, batch, n, Sampling(seed=0))
            jobs["nano", rows, n] = lambda n=n, batch=batch: nano.generate(batch, n)
        for n in fits:
            jobs["theirs", rows, n] = lambda n=n, batch=batch: theirs(hf, batch, Sampling(), n)
    seconds, records = in_turns(jobs, rounds), []
    for rows, n in ((rows, n) for rows in n_rows for n in lengths):
        ours, work = seconds["ours", rows, n], rows * n
        row = {"tokens/s, batch": rows, "new tokens": n, "gptcourse": rate(work, ours), "transformers": None}
        row |= compared(seconds, work, rows, n) if n in fits else {"times transformers'": None}
        nanos = seconds["nano", rows, n]
        records.append(row | {name: rate(work, nanos), "times nanoGPT's": ratio(nanos, ours)})
    return records


def measure(options):
    """Return how it was measured, and the tables."""
    model, tokenizer = load_pretrained("shakespeare-5m")
    hf, prompt = model.to_transformers(), torch.tensor([tokenizer.encode("KING:\n")])
    name, nano = nanogpt(options.nanogpt, model.config, bias=True)
    models = model, hf, (name, take_weights(nano, model).eval())
    n, lengths, rows = TOKENS, LENGTHS, ROWS
    if options.quick:  # past the window all the same: the prompt nearly fills it
        n, lengths, rows, prompt = 4, (4, 12), (1,), prompt.repeat(1, 250)[:, :250]
    same = torch.equal(generate(model, prompt, n, GREEDY), theirs(hf, prompt, GREEDY, n))
    chosen, parts = ways(model, hf, prompt, n, options.take(ROUNDS))
    tables = {
        "": chosen,
        "Batches, short and long, sampled": grid(models, prompt, lengths, rows, options.take(GRID_ROUNDS)),
        "Where the time goes": parts,
    }
    how = medians(options.take(ROUNDS), f"rounds in turns ({options.take(GRID_ROUNDS)} for the batches)")
    return f"{how} Ours and transformers write the same greedy text: {'yes' if same else 'no'}.", tables
