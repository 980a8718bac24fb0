"""Remakes the goldens of the tokenizer and the chat template from llama.cpp.

Usage: python make.py MODEL.gguf OUT.json    (with llama-cpp-python and jinja2 installed)

Each text is tokenized twice: as ordinary text, and with control tokens recognised. The chats are
rendered by Python's Jinja as transformers runs it, and tokenized with control tokens recognised.
"""

import json
import random
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama_cpp import Llama

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    " \n \t x",
    "Hello world",
    " Hello world",
    "Hello  world   again    ",
    "don't we'll I'VE they'Re it's 'tis ''s",
    "3.14159 and 1234567890, 1st 22nd",
    "x=1;y=22;zzz=333",
    "Grüße aus Köln, Straße 7½",
    "naïve café, décor e\u0301 combining",
    "中文分词测试。日本語のテスト、한국어 시험",
    "👋🏽 👩‍👩‍👧‍👦 flags 🇩🇪🇫🇷 end",
    "Привет, мир! Ελληνικά العربية עברית हिन्दी ไทย",
    "\u00a0non-breaking\u2003em space\u200bzero width\ufeff",
    "٣٤٥ Ⅷ ²³ ४५",
    "fn main() {\n    println!(\"{}\", 1 << 3);\n}\n",
    "def f(x):\n\treturn x**2  # tab\r\n\r\nprint(f(3))",
    "<div class=\"a\">text &amp; more</div>",
    "{\"role\": \"user\", \"content\": [1, 2.5e-3, null]}",
    "https://example.org/a?b=c&d=%20e#f",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$",
    "<|im_start|>user\nhi<|im_end|>\n",
    "text<|endoftext|>text <|im_end|> <|im_start|>",
    "<|im_start|><|im_start|>",
    "<|im_startX <|im_end| |im_end|> <|IM_END|>",
    "<repo_name>x<reponame>y<file_sep>z<filename>",
    "a" * 300,
    "ab" * 120 + " " * 40 + "c",
    "!?!?!?...---___***   ###",
    "\x00\x01\x7f control",
    "ﬁ ligature Å Å ｆｕｌｌ",
    "\U0001d11e\U0001f600\U0010ffff",
    "I\u2019m \u201cquoted\u201d \u2013 dash \u2026",
    " leading and trailing ",
    "MixedCASEwordsAndnumbers123abc456",
    "line one\nline two\n\nline four\n   indented",
]

CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2+2? "}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three\n\nFour"},
    ],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "Grüße 👋 <b>&amp;</b> 'x' \"y\""}],
]


def random_texts(count):
    rng = random.Random(7)
    alphabet = list("abcXYZ 0129 \n\t.,'!<|>_éß中文🙂²") + ["'s", "  ", "\r\n", "the", " and"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(count)]


def main(model, out):
    llama = Llama(model, vocab_only=True, verbose=False)

    def tokens(text, special):
        return llama.tokenize(text.encode(), add_bos=False, special=special) if text else []

    texts = [
        {"text": text, "plain": tokens(text, False), "special": tokens(text, True)}
        for text in TEXTS + random_texts(120)
    ]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(llama.metadata["tokenizer.chat_template"])
    special = {
        name: llama._model.token_get_text(int(llama.metadata[f"tokenizer.ggml.{name}_id"]))
        for name in ("bos_token", "eos_token")
    }
    chats = []
    for messages in CHATS:
        for add in (True, False):
            text = template.render(messages=messages, add_generation_prompt=add, **special)
            chats.append(
                {
                    "messages": messages,
                    "add_generation_prompt": add,
                    "text": text,
                    "tokens": tokens(text, True),
                }
            )
    with open(out, "w") as file:
        json.dump({"texts": texts, "chats": chats}, file, ensure_ascii=True, indent=None)
        file.write("\n")


main(*sys.argv[1:])
