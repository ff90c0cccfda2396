"""Shows one document of each task: what the model was asked, what it wrote, and how that was scored. Prints Markdown.

    lm_eval --model hf --model_args pretrained=.demo/SmolLM2-135M-Instruct,dtype=float32 --device cpu \
            --tasks lora_drop_all --metadata '{"data_dir": "docs/example_data"}' --limit 1 \
            --log_samples --output_path out/examples
    python tools/benchmark_examples.py out/examples

Any folder that lm_eval wrote with `--log_samples` will do; the first document of each file is shown. The documents in
`docs/example_data` are invented: the licences of some benchmarks do not allow their text to stand here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

SHOWN = 360
"""Characters of an output that are shown."""

HARNESS_FIELDS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip


def main() -> int:
    """Prints a section per samples file; 1 where there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the --output_path of a run with --log_samples")
    folder: Path = parser.parse_args().folder
    newest = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        found = re.fullmatch(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl", path.name)
        if found:
            newest[found[1]] = path
    if not newest:
        print(f"{folder}: no samples_*.jsonl in it. Was the run made with --log_samples?", file=sys.stderr)
        return 1
    print("\n".join(section(task, path) for task, path in newest.items()), end="")
    return 0


def section(task: str, path: Path) -> str:
    """The first document of a samples file, under every filter."""
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    first = [sample for sample in samples if sample["doc_id"] == samples[0]["doc_id"]]
    prompt = first[0]["arguments"]["gen_args_0"]["arg_0"]
    lines = [f"## {task}", "", *block("Prompt", prompt), *block("Expected", first[0]["target"])]
    lines += block("Output", shortened(first[0]["resps"][0][0]))
    for sample in first:
        filtered = "" if sample["filter"] in ("none", "output") else f", filter `{sample['filter']}`"
        taken = sample["filtered_resps"][0]
        if taken != sample["resps"][0][0]:
            filtered += f" (took `{taken}`)"
        lines += [f"Score{filtered}: " + ", ".join(f"`{name}` {value}" for name, value in scores(sample)) + ".", ""]
    return "\n".join(lines) + "\n"


def shortened(text: str) -> str:
    """The text, its middle left out where it is long: what a model repeats needs to be seen once."""
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN - 60]}\n[... {len(text) - SHOWN:,} characters left out ...]\n{text[-60:]}"


def scores(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of one sample: a number, or the counts that only a corpus turns into one."""
    return [
        (name, f"counts {value}" if isinstance(value, list) else "none" if value is None else f"{value:.4g}")
        for name, value in sample.items()
        if name not in HARNESS_FIELDS
    ]


def block(title: str, text: str) -> list[str]:
    """A titled block of text, fenced so that no text can end it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return [f"{title}:", "", f"{fence}text", text, fence, ""]


if __name__ == "__main__":
    sys.exit(main())
