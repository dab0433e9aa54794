"""Everything that is measured on a folder of pictures, and on a model beside its base."""

from collections.abc import Sequence
from pathlib import Path

from eval.collapse import Evidence, gather
from eval.detectors import EmojiJudge, read_all
from eval.pictures import Picture, Stream


def gate_evidence(folder: Path, pictures: Sequence[Picture], judge: EmojiJudge) -> dict[str, Evidence]:
    """The collapse gate's evidence on the retained pictures and on the concept's, by role."""
    sure = {p.file: r["anything"] for p, r in zip(pictures, read_all(judge, folder, pictures)[0], strict=True) if r}
    evidence = {}
    for role in ("retain", "forget"):
        chosen = [picture for picture in pictures if picture.role == role]
        readable, thumbnails, features = gather(Stream(folder, chosen), judge.features)
        evidence[role] = Evidence(readable, thumbnails, features, [sure[p.file] for p in readable])
    return evidence
