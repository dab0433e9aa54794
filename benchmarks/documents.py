"""Text for the documents that benchmarks write: in README.md and docs/ between marks."""

import textwrap


def sentence(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def wrapped(text: str) -> str:
    """The text in lines of at most 125 characters, none of them broken within a word."""
    return textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False)


def between(text: str, name: str, command: str, content: str) -> str:
    """The text with this content between the marks of that name, which also say what command made it."""
    start, end = f"<!-- {name}: {command} -->\n", f"<!-- /{name} -->"
    head, _, rest = text.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"the document has no marks {start.strip()} … {end}.")
    return f"{head}{start}{content}{end}{tail}"
