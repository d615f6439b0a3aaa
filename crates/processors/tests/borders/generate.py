"""Runs the splitters of TrustGraph 2.11's chunkers on texts of ours and prints where they cut, as JSON.

    pip download --no-deps trustgraph-flow==2.11.1 && tar xzf trustgraph_flow-2.11.1.tar.gz
    pip install tiktoken
    python generate.py trustgraph_flow-2.11.1 > vectors.json

Only the splitting methods are taken from the package, so nothing else of it has to be installed.
"""

import ast
import json
import pathlib
import random
import sys

import tiktoken

ROOT = pathlib.Path(sys.argv[1])
SAMPLES = pathlib.Path(__file__).resolve().parents[4] / "samples"


def splitter(kind, wanted):
    """An object with just the wanted methods of a chunker."""
    tree = ast.parse((ROOT / "trustgraph" / "chunking" / kind / "chunker.py").read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    found.bases = []
    found.body = [
        node for node in found.body if isinstance(node, ast.Assign) or getattr(node, "name", "") in wanted
    ]
    names = {"tiktoken": tiktoken}
    exec(compile(ast.Module([found], []), kind, "exec"), names)
    return names[found.name]()


recursive = splitter("recursive", {"_recursive_split", "_split_text", "_merge_splits"})
token = splitter("token", {"_split_by_tokens"})
token.encoding = tiktoken.get_encoding("cl100k_base")


def by_characters(text, size, overlap):
    return recursive._recursive_split(text, size, overlap)


def by_tokens(text, size, overlap):
    return token._split_by_tokens(text, size, overlap)


cases = []


def add(split, kind, text, size, overlap, sample=None):
    chunks = list(split(text, size, overlap))
    case = {"kind": kind, "size": size, "overlap": overlap}
    case["sample" if sample else "text"] = sample or text
    if sample:
        # Whole chunks of a long text would only repeat it.
        spans, start = [], 0
        for chunk in chunks:
            start = text.index(chunk, start)
            spans.append([start, len(chunk)])
        case["spans"] = spans
    else:
        case["chunks"] = chunks
    cases.append(case)


for name in ["coffee.md", "bicycle.md"]:
    text = (SAMPLES / name).read_text()
    for size, overlap in [(2000, 100), (2000, 50), (500, 50), (120, 30), (40, 39)]:
        add(by_characters, "characters", text, size, overlap, name)
    for size, overlap in [(250, 15), (40, 10), (7, 0)]:
        add(by_tokens, "tokens", text, size, overlap, name)

for text in [
    "",
    " ",
    "\n\n",
    "one",
    "one two three four five",
    "first paragraph\n\nsecond paragraph\n\nthird",
    "a line\nanother line\n\na paragraph with several words in it\n\n\n\nend",
    "x" * 37,
    "x" * 37 + " y",
    "short " + "z" * 25 + " short",
    "Größe und Länge in Zeichen, nicht in Bytes: äöüß €",
    "  leading and trailing blanks  ",
    "tab\tseparated\tcells\nnext\trow",
]:
    for size, overlap in [(10, 0), (10, 4), (16, 8), (20, 19), (5, 5)]:
        add(by_characters, "characters", text, size, overlap)
    for size, overlap in [(4, 0), (5, 2), (8, 7)]:
        add(by_tokens, "tokens", text, size, overlap)

dice = random.Random(211)
for _ in range(400):
    letters = dice.choice(["ab \n", "abcdefgh    \n\n", "äb€ \n", "x \n\n\n"])
    text = "".join(dice.choice(letters) for _ in range(dice.randrange(1, 70)))
    size = dice.randrange(2, 24)
    add(by_characters, "characters", text, size, dice.randrange(0, size))

json.dump(cases, sys.stdout, ensure_ascii=False, separators=(",", ":"))
print()
