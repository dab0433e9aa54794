"""How the judge reads the base's own pictures of an anchor at strong guidance: what no erasure can make less.

    python -m benchmarks.anchor_guidance [--concept "line art"]

The erased model is to draw the anchor where the concept is asked for. Where the base's pictures of the anchor already look like
the concept, the gate counts them against the erased model. results/anchor_guidance.json gets the counts.
"""

import argparse
from pathlib import Path

from benchmarks.environment import environment
from erase.concepts import find_concept, forget_prompts
from erase.files import write_json
from erase.plan import plan
from erase.recipes import resolve
from eval.detectors import EmojiJudge
from pipelines.load import EMOJI_VOCABULARY, load

RECORD = Path(__file__).parent / "results" / "anchor_guidance.json"
NUM, FIRST_SEED, STEPS = 48, 900_000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="line art")
    concept = find_concept(parser.parse_args().concept, EMOJI_VOCABULARY)
    family, judge = load("emoji"), EmojiJudge()
    anchor = plan(resolve({"concept": concept.name}, []), family).anchors[0]
    prompts = [prompt.text for prompt in forget_prompts(find_concept(anchor, EMOJI_VOCABULARY), EMOJI_VOCABULARY, NUM)]
    seeds = list(range(FIRST_SEED, FIRST_SEED + NUM))
    found = {}
    for guidance in (3.0, 7.5, 15.0):
        latents = family.generate(prompts, seeds, num_inference_steps=STEPS, guidance_scale=guidance, batch_size=NUM)
        read = [reading.object if concept.object else reading.style for reading in judge(family.decode_latents(latents))]
        found[f"{guidance:g}"] = {str(name): read.count(name) for name in sorted(set(read), key=str)}
    record = {"concept": concept.name, "anchor": anchor, "n": NUM, "read as, by guidance": found, "environment": environment()}
    write_json(record, RECORD)
    print(record)


if __name__ == "__main__":
    main()
