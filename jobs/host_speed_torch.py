"""Forward and backward of Qwen2 in PyTorch on the CPU: the yardstick of host_speed.sh.

usage: host_speed_torch.py CONFIG_JSON TOKENS REPEATS
Prints one JSON object: seconds of each repeat after one warm-up, threads, the version of torch.
float32, random weights, one sequence; the loss is the mean of -log p(y) - 0.01 H over TOKENS - 1 rows.
Written out, since PyTorch 1.13 has no fused attention on the CPU.
"""
import json
import os
import sys
import time

import torch
import torch.nn.functional as F


class Model:
    def __init__(self, config):
        self.c = config
        self.head_dim = config["hidden_size"] // config["num_attention_heads"]
        h, f = config["hidden_size"], config["intermediate_size"]
        kv = self.head_dim * config["num_key_value_heads"]
        self.embedding = self.normal(config["vocab_size"], h)  # the head is tied to it
        self.norm = torch.ones(h)
        self.layers = [
            {
                "norm1": torch.ones(h), "norm2": torch.ones(h),
                "wq": self.normal(h, h), "bq": torch.zeros(h),
                "wk": self.normal(kv, h), "bk": torch.zeros(kv),
                "wv": self.normal(kv, h), "bv": torch.zeros(kv),
                "wo": self.normal(h, h),
                "gate": self.normal(f, h), "up": self.normal(f, h), "down": self.normal(h, f),
            }
            for _ in range(config["num_hidden_layers"])
        ]
        for p in self.parameters():
            p.requires_grad_(True)

    @staticmethod
    def normal(rows, columns):
        return torch.empty(rows, columns).normal_(0, 0.02)

    def parameters(self):
        return [self.embedding, self.norm] + [p for layer in self.layers for p in layer.values()]

    def rms_norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"]) * weight

    def heads(self, x, weight, bias, count):
        return F.linear(x, weight, bias).view(-1, count, self.head_dim).transpose(0, 1)

    def attention(self, x, w, cos, sin, mask):
        def rope(t):  # (heads, T, d), halves rotated
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat((-b, a), -1) * sin

        query_heads, kv_heads = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        q = rope(self.heads(x, w["wq"], w["bq"], query_heads))
        k = rope(self.heads(x, w["wk"], w["bk"], kv_heads))
        v = self.heads(x, w["wv"], w["bv"], kv_heads)
        k = k.repeat_interleave(query_heads // kv_heads, 0)
        v = v.repeat_interleave(query_heads // kv_heads, 0)
        scores = q @ k.transpose(1, 2) * self.head_dim ** -0.5
        p = torch.softmax(scores.masked_fill(mask, float("-inf")), -1)
        return F.linear((p @ v).transpose(0, 1).reshape(x.shape), w["wo"])

    def loss(self, tokens):
        length = tokens.numel()
        frequencies = self.c["rope_theta"] ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.outer(torch.arange(length), torch.cat((frequencies, frequencies)))
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = F.embedding(tokens, self.embedding)
        for w in self.layers:
            x = x + self.attention(self.rms_norm(x, w["norm1"]), w, angles.cos(), angles.sin(), mask)
            y = self.rms_norm(x, w["norm2"])
            x = x + F.linear(F.silu(F.linear(y, w["gate"])) * F.linear(y, w["up"]), w["down"])
        log_p = F.log_softmax(F.linear(self.rms_norm(x, self.norm)[:-1], self.embedding), -1)
        chosen = log_p.gather(1, tokens[1:, None])
        entropy = -(log_p.exp() * log_p).sum(-1)
        return -chosen.mean() - 0.01 * entropy.mean()


def main():
    config_file, tokens, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    with open(config_file) as file:
        model = Model(json.load(file))
    sequence = torch.randint(0, model.c["vocab_size"], (tokens,))
    seconds = []
    for _ in range(1 + repeats):
        for p in model.parameters():
            p.grad = None
        start = time.perf_counter()
        loss = model.loss(sequence)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    assert torch.isfinite(loss), loss
    print(json.dumps({"seconds": seconds[1:], "threads": threads, "version": torch.__version__}))


main()
