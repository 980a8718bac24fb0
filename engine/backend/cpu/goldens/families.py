"""Remakes the checkpoints of `families/`, and what `transformers` answers on them.

    python families.py            write all of them
    python families.py phi3 ...   only these

Needs: torch==2.15.0 transformers==5.24.0 (the definition of every family here).

families/NAME/   config.json and model.safetensors (BF16), as `save_pretrained` writes them, and expected.bin (all
                 numbers little-endian): u32 sequences, u32 steps, u32 vocab; per sequence: u32 tokens,
                 u32 ids[tokens], u32 greedy[steps]; then, for the last sequence, u32 rows and f32 logits[rows][vocab]
                 of every position of its prompt and of its greedy answer but the last. Computed in F32.

Names such as `awq-128` are the same with matrices quantized in one of the formats, written here from its definition; what is
expected of them is what `transformers` answers with the values that the stored numbers stand for.

Weights are random: norms near one, biases that matter, projections scaled so that every layer does something.
The seed is the first one with which the two best logits of every greedy step differ by more than 1e-2 (and by more than
a thousandth of the row's L2 norm over the square root of its width), so that no rounding can turn an answer.
"""

import json
import pathlib
import struct
import sys

import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "families"
STEPS, VOCAB = 64, 384
LENGTHS = [1, 2, 3, 7, 16, 17, 31, 33, 50]

# True head widths, and widths that quantization groups of 64 and 128 divide.
SMALL = dict(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=128, max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=0,
    eos_token_id=1, pad_token_id=0,
)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
PLAIN = dict(rope_type="default", rope_theta=1e6)
WINDOWS = dict(use_sliding_window=True, sliding_window=24, max_window_layers=1)
FAMILIES = {
    "llama": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=False)),
    "llama-tied": ("llama", dict(rope_parameters=PLAIN, tie_word_embeddings=True)),
    "qwen2": ("qwen2", dict(rope_parameters=YARN)),
    "qwen2-windows": ("qwen2", dict(rope_parameters=PLAIN, **WINDOWS)),
    "qwen3": ("qwen3", dict(rope_parameters=YARN, tie_word_embeddings=True)),
    "qwen3_moe": (
        "qwen3_moe",
        dict(
            rope_parameters=PLAIN, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128,
            norm_topk_prob=True, num_hidden_layers=3, mlp_only_layers=[1], decoder_sparse_step=1,
        ),
    ),
    "phi3": ("phi3", dict(rope_parameters=PLAIN, num_attention_heads=2, hidden_size=256, num_key_value_heads=1)),
    "seed_oss": ("seed_oss", dict(rope_parameters=dict(PLAIN, rope_theta=1e7), attention_out_bias=False)),
    "gemma3_text": (
        "gemma3_text",
        dict(
            head_dim=256, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=7, sliding_window=24,
            intermediate_size=128, query_pre_attn_scalar=256,
        ),
    ),
}


def nibbles(q, order=range(8)):
    """Eight four-bit numbers along the last axis to one word, the lowest bits first, taken in this order."""
    q = q.reshape(*q.shape[:-1], -1, 8).to(torch.int64)
    word = sum(q[..., n] << (4 * at) for at, n in enumerate(order))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def in_groups(w, group, symmetric, scale_type):
    """[N][K] to numbers from 0 to 15, and scales and zeros [N][K/group]; value = scale * (q - zero)."""
    parts = w.reshape(w.shape[0], -1, group)
    if symmetric:
        scale = (parts.abs().amax(-1) / 7.5).to(scale_type).float()
        zero = torch.full_like(scale, 8)
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scale = ((high - low) / 15).to(scale_type).float()
        zero = (-low / scale).round().clamp(0, 15)
    q = ((parts / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    value = (scale[..., None] * (q - zero[..., None])).reshape(w.shape)
    return q.reshape(w.shape).to(torch.int64), scale, zero.to(torch.int64), value


def awq(group):
    def store(name, w):
        q, scale, zero, value = in_groups(w, group, False, torch.float16)
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return value, {
            name + ".qweight": nibbles(q.T, order), name + ".qzeros": nibbles(zero.T, order),
            name + ".scales": scale.T.half(),
        }

    return store, dict(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm")


def gptq(group, v2):
    def store(name, w):
        q, scale, zero, value = in_groups(w, group, False, torch.float16)
        # Version 1 stores one less, in four bits: a zero of 0 cannot be said.
        if not v2:
            zero = zero.clamp(min=1)
            value = (scale[..., None] * (q.reshape(*scale.shape, group) - zero[..., None])).reshape(w.shape)
        return value, {
            name + ".qweight": nibbles(q).T, name + ".scales": scale.T.half(),
            name + ".qzeros": nibbles(zero.T - (0 if v2 else 1)),
            name + ".g_idx": torch.arange(w.shape[1], dtype=torch.int32) // group,
        }

    form = "gptq_v2" if v2 else "gptq"
    return store, dict(quant_method="gptq", bits=4, group_size=group, desc_act=False, checkpoint_format=form)


def packed(group, symmetric):
    def store(name, w):
        q, scale, zero, value = in_groups(w, group, symmetric, torch.bfloat16)
        parts = {
            name + ".weight_packed": nibbles(q), name + ".weight_scale": scale.bfloat16(),
            name + ".weight_shape": torch.tensor(w.shape),
        }
        if not symmetric:
            parts[name + ".weight_zero_point"] = nibbles(zero.T).T
        return value, parts

    weights = dict(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group)
    return store, compressed("pack-quantized", weights)


def compressed(form, weights):
    group = dict(targets=["Linear"], weights=weights)
    return dict(quant_method="compressed-tensors", format=form, config_groups=dict(group_0=group), ignore=["lm_head"])


def fp8(kind):
    def store(name, w):
        if kind == "block":
            shape = (-(-w.shape[0] // 128), -(-w.shape[1] // 128))
            wide = torch.nn.functional.pad(w, (0, shape[1] * 128 - w.shape[1], 0, shape[0] * 128 - w.shape[0]))
            scale = wide.reshape(shape[0], 128, shape[1], 128).abs().amax((1, 3)) / 448
            all = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: w.shape[0], : w.shape[1]]
        elif kind == "channel":
            scale = (w.abs().amax(1, keepdim=True) / 448).bfloat16().float()
            all = scale
        else:
            scale = (w.abs().amax() / 448).reshape(1)
            all = scale
        q = (w / all).to(torch.float8_e4m3fn)
        part = ".weight_scale_inv" if kind == "block" else ".weight_scale"
        kept = scale.bfloat16() if kind == "channel" else scale
        return q.float() * all, {name + ".weight": q, name + part: kept}

    if kind == "block":
        return store, dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
    weights = dict(num_bits=8, type="float", symmetric=True, strategy=kind)
    return store, compressed("float-quantized", weights)


QUANTIZED = {
    "awq-128": ("qwen3_moe", awq(128)),
    "awq-64": ("llama", awq(64)),
    "gptq": ("llama", gptq(128, False)),
    "gptq-v2": ("qwen2-windows", gptq(64, True)),
    "packed": ("seed_oss", packed(128, True)),
    "packed-zeros": ("phi3", packed(64, False)),
    "fp8-block": ("qwen3_moe", fp8("block")),
    "fp8-tensor": ("llama", fp8("tensor")),
    "fp8-channel": ("phi3", fp8("channel")),
}


def quantize(model, store):
    """Quantizes the matrices of all layers in place, and says what stands for them in a file."""
    parts = {}

    def one(name, w):
        value, parts[name] = store(name, w.clone())
        w.copy_(value)

    for name, module in model.named_modules():
        if not name.startswith("model.layers."):
            continue
        if isinstance(module, torch.nn.Linear):
            one(name, module.weight.data)
        elif isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            # All experts in one tensor here, and one by one in a file.
            for expert, both in enumerate(module.gate_up_proj.data):
                for part, w in zip(["gate_proj", "up_proj"], both.chunk(2)):
                    one(f"{name}.{expert}.{part}", w)
                one(f"{name}.{expert}.down_proj", module.down_proj.data[expert])
    return parts


def make(kind, more, seed):
    gemma = kind.startswith("gemma")
    tied = more.get("tie_word_embeddings", gemma)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **more})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.randn(p.shape, generator=random)
            if "norm" in name:
                # With one matrix for both ends, a large last norm lets answers differ from the last token.
                mean = 30.0 if tied and name == "model.norm.weight" else 1.0
                # What gemma stores is one less.
                p.copy_(values * 0.1 + mean - (1.0 if gemma else 0.0))
            elif name.endswith("bias"):
                p.copy_(values * 0.5)
            elif "embed" in name:
                p.copy_(values * (0.05 if tied else 0.5))
            elif "lm_head" in name:
                p.copy_(values * 2.0)
            else:
                p.copy_(values * (1.5 / p.shape[-1] ** 0.5))
            p.copy_(p.bfloat16().float())
    return model


def prompts(seed):
    random = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(2, VOCAB, (n,), generator=random).tolist() for n in LENGTHS]


def greedy(model, prompt):
    """The answer, and the logits of every position but the answer's last; None where two tokens are too close."""
    ids, rows = list(prompt), None
    for _ in range(STEPS):
        with torch.no_grad():
            rows = model(torch.tensor([ids]), use_cache=False).logits[0].float()
        best = rows[-1].topk(2).values
        if best[0] - best[1] < max(1e-2, 1e-3 * rows[-1].norm() / VOCAB**0.5):
            return None
        ids.append(int(rows[-1].argmax()))
    return ids[len(prompt):], rows


def write(name):
    base, (store, config) = QUANTIZED.get(name, (name, (None, None)))
    kind, more = FAMILIES[base]
    for seed in range(1, 200):
        model, answers = make(kind, more, seed), []
        parts = quantize(model, store) if store else {}
        texts = prompts(seed)
        for prompt in texts:
            answer = greedy(model, prompt)
            if answer is None:
                break
            answers.append(answer)
        # A model that says one thing for ever shows little.
        variety = min((len(set(answer)) for answer, _ in answers), default=0)
        if len(answers) == len(texts) and variety >= STEPS // 4:
            break
    else:
        raise SystemExit(f"{name}: no seed")
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    out = struct.pack("<3I", len(texts), STEPS, VOCAB)
    for prompt, (answer, _) in zip(texts, answers):
        out += struct.pack(f"<{1 + len(prompt) + STEPS}I", len(prompt), *prompt, *answer)
    rows = answers[-1][1]
    out += struct.pack("<I", len(rows)) + rows.numpy().astype("<f4").tobytes()
    (folder / "expected.bin").write_bytes(out)
    model.bfloat16().save_pretrained(folder)
    if store:
        file = folder / "model.safetensors"
        stored = safetensors.torch.load_file(file)
        for module, own in parts.items():
            del stored[module + ".weight"]
            stored.update({part: tensor.contiguous() for part, tensor in own.items()})
        safetensors.torch.save_file(stored, file, metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, "quantization_config": config}, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: seed {seed}, {size / 1e6:.1f} MB, at least {variety} different tokens of {STEPS}", flush=True)


for name in sys.argv[1:] or [*FAMILIES, *QUANTIZED]:
    write(name)
