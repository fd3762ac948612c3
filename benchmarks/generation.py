"""Measure how fast the bundled model writes, next to transformers' `generate` on the same weights, in float32.

    python -m benchmarks generation [rounds]

Each round runs every row once, so that what else the machine does meets all of them; the table shows medians over the
rounds, and ratios are taken within a round. The matvec-only rate is what would be reached if a token cost nothing but
the products of its vectors with the model's matrices: what is left to gain.
"""

import statistics
import sys

import torch
from torch import nn

from benchmarks.timing import measure, rate, ratio, setting
from gptcourse.fast_decoder import Decoder
from gptcourse.generation import Sampling, generate, stream
from gptcourse.pretrained import load_pretrained

TOKENS = 200
LENGTHS, ROWS, PROMPTS = (50, 100, 200), (1, 8, 32), (8, 64, 240)
GREEDY = Sampling(temperature=0)
MUST, AIM = 2.5, 4  # times transformers' rate, from the design
WAYS = {
    "greedy": GREEDY,
    "sampled": Sampling(seed=0),
    "sampled, top-k 50, top-p 0.95": Sampling(0.8, top_k=50, top_p=0.95, seed=0),
}


def theirs(hf, prompt, sampling, new_tokens=TOKENS):
    """Return what transformers' `generate` writes with the same settings."""
    options = {"do_sample": False}
    if sampling.temperature:
        options = {"do_sample": True} | {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    mask = torch.ones_like(prompt)
    return hf.generate(prompt, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=0, **options)


@torch.inference_mode()
def read(model):
    """Run the model alone, a token at a time, with its cache and no choice of a token."""
    decoder, cache, token = Decoder(model), model.new_cache(), torch.tensor([[0]])
    for _ in range(TOKENS):
        decoder(token, cache=cache)


@torch.inference_mode()
def multiply(matrices):
    """Do only the products of each matrix (out, in) with one vector, as often as for TOKENS tokens."""
    vectors = {matrix.shape[1]: torch.ones(matrix.shape[1]) for matrix in matrices}
    for _ in range(TOKENS):
        for matrix in matrices:
            torch.mv(matrix, vectors[matrix.shape[1]])


def print_rates(seconds):
    """Print tokens a second, ours and theirs, for each way to choose the token."""
    products = seconds["multiply"]
    print(f"{'tokens/s':<32}{'ours':>6}{'transformers':>14}{'ratio':>8}{'of the matvec-only rate':>25}")
    for way in WAYS:
        ours, other = seconds["ours", way], seconds["theirs", way]
        rates = [rate(TOKENS, values) for values in (ours, other)]
        print(f"{way:<32}{rates[0]:>6.0f}{rates[1]:>14.0f}{ratio(other, ours):>8.2f}{ratio(products, ours):>25.0%}")
    most = ratio(seconds["theirs", "greedy"], products)
    print(f"{'matvec only':<32}{rate(TOKENS, products):>6.0f}{'':>14}{most:>8.2f}{1:>25.0%}")


def print_parts(seconds):
    """Print where the time of a greedy token goes, as differences between medians."""
    products, forward, whole = (
        statistics.median(seconds[name]) / TOKENS * 1000 for name in ("multiply", "read", ("ours", "greedy"))
    )
    print(f"\n{'ms for a greedy token, ours':<32}")
    for part, milliseconds in {
        "matrix times vector": products,
        "the rest of the model": forward - products,
        "choosing the token, the loop": whole - forward,
    }.items():
        print(f"{part:<32}{milliseconds:>6.2f}{milliseconds / whole:>7.0%}")


def print_lengths(model, prompt, rounds):
    """Print tokens a second against the number of new tokens, with the cache and without."""
    jobs = {
        (n, use_cache): lambda n=n, use_cache=use_cache: generate(model, prompt, n, GREEDY, use_cache=use_cache)
        for n in LENGTHS
        for use_cache in (True, False)
    }
    seconds = measure(jobs, rounds)
    print(f"\n{'tokens/s, greedy, new tokens':<32}{'cache':>6}{'no cache':>14}{'ratio':>8}")
    for n in LENGTHS:
        cached, anew = seconds[n, True], seconds[n, False]
        rates = [rate(n, values) for values in (cached, anew)]
        print(f"{n:<32}{rates[0]:>6.0f}{rates[1]:>14.0f}{ratio(anew, cached):>8.2f}")


def print_rows(model, hf, prompt, rounds):
    """Print tokens a second, all rows together, when one prompt is continued several times at once."""
    n, sampling = LENGTHS[0], Sampling(seed=0)
    jobs = {}
    for rows in ROWS:
        batch = prompt.expand(rows, -1)
        jobs["ours", rows] = lambda batch=batch: generate(model, batch, n, sampling)
        jobs["theirs", rows] = lambda batch=batch: theirs(hf, batch, sampling, n)
    seconds = measure(jobs, rounds)
    print(f"\n{f'tokens/s, sampled, {n} new, rows':<32}{'ours':>6}{'transformers':>14}{'ratio':>8}")
    for rows in ROWS:
        ours, other = seconds["ours", rows], seconds["theirs", rows]
        rates = [rate(rows * n, values) for values in (ours, other)]
        print(f"{rows:<32}{rates[0]:>6.0f}{rates[1]:>14.0f}{ratio(other, ours):>8.2f}")


def print_first(model, hf, rounds):
    """Print the milliseconds until the first token is there, against the length of the prompt."""
    jobs = {}
    for length in PROMPTS:
        prompt = torch.arange(length)[None]
        jobs["ours", length] = lambda prompt=prompt: next(stream(model, prompt, TOKENS, GREEDY))
        jobs["theirs", length] = lambda prompt=prompt: theirs(hf, prompt, GREEDY, 1)
    seconds = measure(jobs, rounds)
    print(f"\n{'ms to the first token, prompt of':<32}{'ours':>6}{'transformers':>14}{'ratio':>8}")
    for length in PROMPTS:
        ours, other = seconds["ours", length], seconds["theirs", length]
        times = [statistics.median(values) * 1000 for values in (ours, other)]
        print(f"{length:<32}{times[0]:>6.1f}{times[1]:>14.1f}{ratio(other, ours):>8.2f}")


def main(rounds):
    """Print the rates, side by side, where the time of a token goes, and what length and batch change."""
    model, tokenizer = load_pretrained("shakespeare-5m")
    hf = model.to_transformers()
    prompt = torch.tensor([tokenizer.encode("KING:\n")])
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    jobs = {"read": lambda: read(model), "multiply": lambda: multiply(matrices)}
    for way, sampling in WAYS.items():
        jobs["ours", way] = lambda sampling=sampling: generate(model, prompt, TOKENS, sampling)
        jobs["theirs", way] = lambda sampling=sampling: theirs(hf, prompt, sampling)
    same = torch.equal(jobs["ours", "greedy"](), jobs["theirs", "greedy"]())
    print(setting())
    print(f"{TOKENS} tokens after {prompt.shape[1]}, {rounds} rounds", end="; ")
    print(f"must {MUST} x, aim {AIM} x; both write the same greedy text: {same}\n")
    seconds = measure(jobs, rounds)
    print_rates(seconds)
    print_parts(seconds)
    print_lengths(model, prompt, rounds)
    print_rows(model, hf, prompt, rounds)
    print_first(model, hf, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
