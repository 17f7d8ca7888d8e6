#!/usr/bin/env python3
"""Write the tiny Qwen2 checkpoint and its reference model: inputs/tiny and inputs/tiny-ref.

Standard library only. The same seed gives the same bytes on every machine: weights are sums of uniform
numbers (no libm), and ties of the tokenizer's training go to the smaller pair.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import struct

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 64, 2, 4, 2, 16, 128, 384
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SYSTEM = "You answer briefly and show each step."
REFERENCE_NOISE = 0.02  # of each tensor's own standard deviation

# With these the entropy of a next token lies well below log V and differs from token to token.
EMBEDDING_STD, WEIGHT_STD, NORM_STD, BIAS_STD = 0.2, 0.15, 0.1, 0.1

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Training needs no Unicode tables: letters, digits one by one, other signs, white space.
TRAINING_SPLIT = re.compile(r" ?[^\W\d_]+|\d| ?(?:[^\w\s]|_)+|\s+")

TEXT = """
The ring passes keys and values from rank to rank while each rank keeps its own queries. A sequence is cut into
twice as many chunks as there are ranks, and a rank takes one chunk from the front and one from the back, so that
all of them do the same work. The loss of a sequence is the sum over the tokens of its response, and the gradient
does not depend on where the tokens are kept. To check this, the program runs the same step twice and compares.
注意力把每个词与它前面的词联系起来。归一化让数值保持稳定，梯度累积让小批量得到大批量的效果。
直角三角形两条直角边的平方和等于斜边的平方。今天也要加油，你做得很好。
"""


def byte_symbols():
    """The printable stand-in of each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in symbols:
            symbols[b] = chr(256 + len(symbols) - len(plain))
    return symbols


def merged(word, pair):
    """`word` (a tuple of symbols) with each occurrence of `pair` made one symbol, left to right."""
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def train_merges(text, symbols, count):
    """The `count` most frequent pairs in turn; no pair makes a symbol that exists already."""
    words = collections.Counter(
        tuple(symbols[b] for b in piece.encode()) for piece in TRAINING_SPLIT.findall(text)
    )
    known, merges = set(symbols.values()), []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        fresh = [(-times, pair) for pair, times in pairs.items() if pair[0] + pair[1] not in known]
        best = min(fresh)[1]
        merges.append(best)
        known.add(best[0] + best[1])
        shortened = collections.Counter()
        for word, times in words.items():
            shortened[merged(word, best)] += times
        words = shortened
    return merges


def tokenizer(prompts):
    symbols = byte_symbols()
    text = TEXT + "".join(m["content"] + "\n" for p in prompts for m in p["messages"])
    merges = train_merges(text, symbols, VOCAB - 256 - len(SPECIAL))
    tokens = sorted(symbols.values()) + [a + b for a, b in merges]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(tokens) + i, "content": content, **flags, "special": True}
        for i, content in enumerate(SPECIAL)
    ]
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**byte_level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [[a, b] for a, b in merges],
        },
    }


def tokenizer_config():
    template = (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 4096,
        "chat_template": template,
    }


def config():
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": VOCAB - 3,
        "eos_token_id": VOCAB - 1,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
    }


def tensor_shapes():
    """(name, shape, mean, standard deviation) of every tensor."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = [("model.embed_tokens.weight", [VOCAB, HIDDEN], 0.0, EMBEDDING_STD)]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors.append((prefix + "input_layernorm.weight", [HIDDEN], 1.0, NORM_STD))
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            name = f"{prefix}self_attn.{name}_proj."
            tensors.append((name + "weight", [rows, HIDDEN], 0.0, WEIGHT_STD))
            tensors.append((name + "bias", [rows], 0.0, BIAS_STD))
        tensors.append((prefix + "self_attn.o_proj.weight", [HIDDEN, queries], 0.0, WEIGHT_STD))
        tensors.append((prefix + "post_attention_layernorm.weight", [HIDDEN], 1.0, NORM_STD))
        for name, shape in (("gate", [FFN, HIDDEN]), ("up", [FFN, HIDDEN]), ("down", [HIDDEN, FFN])):
            tensors.append((f"{prefix}mlp.{name}_proj.weight", shape, 0.0, WEIGHT_STD))
    return tensors + [("model.norm.weight", [HIDDEN], 1.0, NORM_STD)]


def normal(source):
    """Nearly normal: twelve uniform numbers have variance 1. Summed as integers, hence exactly."""
    return sum(source.getrandbits(32) for _ in range(12)) / 2**32 - 6.0


def size(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


def bf16(value):
    """The nearest bfloat16, ties to even, as 16 bits."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def safetensors(weights):
    header, data = {}, bytearray()
    for name, shape, values in weights:
        begin = len(data)
        data += struct.pack(f"<{len(values)}H", *(bf16(v) for v in values))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def models(seed):
    """Weights of the policy, and of a reference model close to it."""
    policy_source, reference_source = random.Random(seed), random.Random(seed + 1)
    policy, reference = [], []
    for name, shape, mean, std in tensor_shapes():
        values = [mean + std * normal(policy_source) for _ in range(size(shape))]
        policy.append((name, shape, values))
        noise = REFERENCE_NOISE * std
        reference.append((name, shape, [v + noise * normal(reference_source) for v in values]))
    return policy, reference


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1234, help="of the weights (default %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=here, help="folder for tiny/ and tiny-ref/")
    arguments = parser.parse_args()

    lines = (here / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    for folder, weights in zip(("tiny", "tiny-ref"), models(arguments.seed)):
        target = arguments.output / folder
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / "config.json", config())
        (target / "model.safetensors").write_bytes(safetensors(weights))
    write_json(arguments.output / "tiny" / "tokenizer.json", tokenizer(prompts))
    write_json(arguments.output / "tiny" / "tokenizer_config.json", tokenizer_config())


if __name__ == "__main__":
    main()
