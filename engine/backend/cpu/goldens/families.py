"""Remakes the checkpoints of `families/`, and what `transformers` answers on them.

    python families.py            write all of them
    python families.py phi3 ...   only these

Needs: torch==2.15.0 transformers==5.24.0 (the definition of every family here).

families/NAME/   config.json and model.safetensors (BF16), as `save_pretrained` writes them, and expected.bin (all
                 numbers little-endian): u32 sequences, u32 steps, u32 vocab; per sequence: u32 tokens,
                 u32 ids[tokens], u32 greedy[steps]; then, for the last sequence, u32 rows and f32 logits[rows][vocab]
                 of every position of its prompt and of its greedy answer but the last. Computed in F32.

Weights are random: norms near one, biases that matter, projections scaled so that every layer does something.
The seed is the first one with which the two best logits of every greedy step differ by more than 1e-2 (and by more than
a thousandth of the row's L2 norm over the square root of its width), so that no rounding can turn an answer.
"""

import pathlib
import struct
import sys

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


def write(name, kind, more):
    for seed in range(1, 200):
        model, answers = make(kind, more, seed), []
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
    (folder / "generation_config.json").unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: seed {seed}, {size / 1e6:.1f} MB, at least {variety} different tokens of {STEPS}", flush=True)


for name in sys.argv[1:] or FAMILIES:
    write(name, *FAMILIES[name])
