"""Qwen2 of Hugging Face in PyTorch on one GPU, eager, bf16: the yardstick of `gpu.sh speed`.

usage: gpu_speed_torch.py CONFIG_JSON [--quick] [--json FILE]
Prints one JSON object a line: versions, rates of the card, then a measurement a line; last a table. --json writes the
objects as one list. Random weights, random tokens, every token but the first is a response token.

forward_backward: one sequence, -mean log p. step: reference and old log-probs without gradient, then forward and
backward of every sample as a micro-batch of its own, GSPO and KL terms, gradient clipping, AdamW. step_fp32_state: the
same with the state of a trainer of mixed precision, as Megatron keeps it: bf16 weights, and in float32 the weights that
AdamW updates, the gradients that micro-batches add up, and the moments.

Choices, each the cheaper one for this side: but for step_fp32_state weights, gradients and moments are bf16, AdamW is
the fused one, the reference model is the policy itself, no entropy term. As trainers do, logits are converted to float32
before the log-softmax. A size that does not fit the card's memory is reported so.
"""
import argparse
import gc
import json
import math
import statistics

import torch
import transformers

DEVICE = "cuda"
FORWARD_BACKWARD_TOKENS = (2048, 8192, 16384, 32768)
STEP_SHAPES = ((8, 1024), (1, 2048), (1, 8192), (1, 16384))  # samples x tokens
WARM_UP = 2
REPEATS, QUICK_REPEATS = 9, 3


def timed(run):
    """Seconds of run() on the device, and its result."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3, result


def rates():
    """What this card does at best: bf16 matrix products of random numbers, and copies (bytes read + written)."""
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(1 << 30, device=DEVICE, dtype=torch.float32).zero_()
    target = torch.empty_like(source)

    def median_of(run):
        return statistics.median([timed(run)[0] for _ in range(3 + 15)][3:])

    return {"kind": "rates",
            "matmul_flop_per_s": 2 * n ** 3 / median_of(lambda: torch.matmul(a, b, out=product)),
            "copy_bytes_per_s": 2 * source.nbytes / median_of(lambda: target.copy_(source))}


def make_model(config_file):
    torch.manual_seed(1)
    config = transformers.Qwen2Config.from_json_file(config_file)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.train()


def log_probs(model, tokens):
    """Log-probability of tokens 1.. of one sequence, each from the row before it."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens[1:, None]).squeeze(-1)


def forward_backward(model, tokens):
    loss = -log_probs(model, tokens).mean()
    loss.backward()
    return loss.detach()


def policy_loss(new, old, ref, advantage):
    """GSPO with clipping at 3.5e-4 and 4e-4, KL by the low-variance estimator with factor 0.01."""
    ratio = torch.exp((new - old).mean())
    policy = torch.maximum(-ratio * advantage, -ratio.clamp(1 - 3.5e-4, 1 + 4e-4) * advantage)
    d = new - ref
    return policy + 0.01 * (torch.exp(-d) - 1 + d).clamp(-10, 10).mean()


class Bf16State:
    """AdamW on the model's own weights and gradients."""

    def __init__(self, model):
        self.weights = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6, weight_decay=0.1, fused=True)

    def zero_grad(self):
        self.optimizer.zero_grad(set_to_none=True)

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()

    def close(self):
        self.zero_grad()


class Float32State(Bf16State):
    """AdamW on float32 copies, whose gradients the model's are added to as they come."""

    def __init__(self, model):
        self.model_weights = list(model.parameters())
        self.weights = [weight.detach().float().requires_grad_() for weight in self.model_weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6, weight_decay=0.1, fused=True)
        self.hooks = [own.register_post_accumulate_grad_hook(self.adder(weight))
                      for own, weight in zip(self.model_weights, self.weights)]

    @staticmethod
    def adder(weight):
        def add(own):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad += own.grad
            own.grad = None
        return add

    @torch.no_grad()
    def update(self):
        super().update()
        torch._foreach_copy_(self.model_weights, self.weights)

    def close(self):
        self.zero_grad()
        for hook in self.hooks:
            hook.remove()


STATES = {"forward_backward": Bf16State, "step": Bf16State, "step_fp32_state": Float32State}


def training_step(model, state, batch):
    state.zero_grad()
    with torch.no_grad():
        ref = [log_probs(model, tokens) for tokens in batch]
        old = [log_probs(model, tokens) for tokens in batch]
    total = torch.zeros((), device=DEVICE)
    for j, tokens in enumerate(batch):
        loss = policy_loss(log_probs(model, tokens), old[j], ref[j], 1.0 - 2.0 * (j % 2)) / len(batch)
        loss.backward()
        total += loss.detach()
    state.update()
    return total


def repeated(model, state, kind, batch, repeats):
    """Seconds of each repeat after the warm-up, and the last loss."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        if kind == "forward_backward":
            state.zero_grad()
            took, loss = timed(lambda: forward_backward(model, batch[0]))
        else:
            took, loss = timed(lambda: training_step(model, state, batch))
        seconds.append(took)
    return seconds[WARM_UP:], loss.item()


def measure(model, kind, samples, length, repeats):
    entry = {"kind": kind, "shape": f"{samples}x{length}", "samples": samples, "tokens": length}
    torch.cuda.reset_peak_memory_stats()
    state = STATES[kind](model)
    try:
        batch = torch.randint(0, model.config.vocab_size, (samples, length), device=DEVICE)
        seconds, loss = repeated(model, state, kind, batch, repeats)
        entry.update(seconds=seconds, median_s=statistics.median(seconds), min_s=min(seconds), max_s=max(seconds),
                     loss=loss)
    except RuntimeError as error:  # cuBLAS has its own words for it
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        entry.update(out_of_memory=str(error).splitlines()[0])
    entry["peak_bytes"] = torch.cuda.max_memory_allocated()
    # Only here has the failed call's traceback, and with it its tensors, gone.
    state.close()
    del state
    gc.collect()
    torch.cuda.empty_cache()
    return entry


def table(entries):
    print(f"{'PyTorch, eager':<18} {'shape':>8} {'median ms':>10} {'min':>9} {'max':>9} {'peak GiB':>9}")
    for e in entries:
        if "shape" in e:
            times = ("{:>10} {:>9} {:>9}".format("no memory", "", "") if "out_of_memory" in e else
                     "{:10.2f} {:9.2f} {:9.2f}".format(*(1e3 * e[key] for key in ("median_s", "min_s", "max_s"))))
            print(f"{e['kind']:<18} {e['shape']:>8} {times} {e['peak_bytes'] / 2 ** 30:9.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    repeats = QUICK_REPEATS if arguments.quick else REPEATS
    entries = []

    def report(entry):
        entries.append(entry)
        print(json.dumps(entry), flush=True)
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(entries, file, indent=1)

    report({"kind": "versions", "card": torch.cuda.get_device_name(), "torch": torch.__version__,
            "cuda": torch.version.cuda, "transformers": transformers.__version__})
    report(rates())
    gc.collect()
    torch.cuda.empty_cache()
    model = make_model(arguments.config)
    for length in FORWARD_BACKWARD_TOKENS:
        report(measure(model, "forward_backward", 1, length, repeats))
    for kind in ("step", "step_fp32_state"):
        for samples, length in STEP_SHAPES:
            report(measure(model, kind, samples, length, repeats))
    table(entries)
    broken = [e["shape"] for e in entries if not math.isfinite(e.get("loss", 0.0))]
    if broken:
        raise SystemExit(f"the loss is not finite at {', '.join(broken)}")


if __name__ == "__main__":
    main()
