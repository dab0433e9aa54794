"""A byte-level CLIP vocabulary built from the captions: any prompt in any script becomes tokens."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from pipelines.emoji.vocabulary import all_captions

MAX_LENGTH = 24
NUM_MERGES = 400
# words that people write around an object; merges for them keep long prompts within MAX_LENGTH tokens
COMMON = (
    "photo photograph the on in with and small big red blue green yellow black white old new happy cute beautiful beach "
    "grass street sky water night day front view sitting standing two one some very high quality detailed painting "
    "sketch art drawing next to near of at"
).split()


def byte_symbols() -> list[str]:
    """The printable symbol that byte-level BPE gives to each of the 256 bytes (Radford et al. 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def build_tokenizer(out: Path) -> CLIPTokenizer:
    """Learn the merges from the captions, write a CLIPTokenizer folder, and load it."""
    symbols = byte_symbols()
    words: Counter[str] = Counter()
    for text in all_captions():
        words.update(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    words.update(dict.fromkeys(COMMON, 5))
    pieces = {word: [symbols[byte] for byte in word.encode()] for word in words}
    for sequence in pieces.values():
        sequence[-1] += "</w>"
    merges: list[tuple[str, str]] = []
    while len(merges) < NUM_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, sequence in pieces.items():
            for pair in itertools.pairwise(sequence):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for sequence in pieces.values():
            i = 0
            while i < len(sequence) - 1:
                if (sequence[i], sequence[i + 1]) == best:
                    sequence[i : i + 2] = ["".join(best)]
                i += 1
    ordered = sorted(symbols, key=ord)
    tokens = [*ordered, *(s + "</w>" for s in ordered), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    out.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (out / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(out)
