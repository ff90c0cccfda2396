"""Writes docs/reference/model_args.md, the tables of all options, from their declarations.

python tools/write_options.py
"""

from pathlib import Path

from lm_eval_lora_drop.options import (
    EvaluationOptions,
    LoraDropArgs,
    StudyOptions,
    StudyTaskOptions,
    StudyTrainingOptions,
    TrainingOptions,
    declared,
)

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "model_args.md"
HEAD = """# Options

Made by `python tools/write_options.py` from `lm_eval_lora_drop/options`; a test compares. The last column says whether
an option changes an answer, and therefore belongs to the identity of what is cached.
"""
TABLES = (
    ("model_args", "Of `hf-lora-drop` and `vllm-lora-drop`, beside those of `hf` and `vllm`.", LoraDropArgs),
    ("Settings of a training", "Options of `lora-drop train` and keys of its `--config` file.", TrainingOptions),
    ("Keys of a study", "The file of `lora-drop study --config`.", StudyOptions),
    ("Keys of a study's task", "Below `tasks.NAME`.", StudyTaskOptions),
    ("Keys of a study's training", "Below `trainings.NAME`, beside the settings of a training.", StudyTrainingOptions),
    ("Evaluation in a study", "Below `evaluation`; handed to `lm_eval.simple_evaluate`.", EvaluationOptions),
)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, sentence, table in TABLES:
        rows = [
            f"| `{one.name}` | {one.rule} | {one.shown_default} | {one.sentence} | "
            f"{f'`{one.example}`' if one.example else ''} | {'no' if one.neutral else 'yes'} |"
            for one in declared(table).values()
        ]
        head = "| option | values | default | meaning | example | answer |\n|---|---|---|---|---|---|"
        parts.append("\n".join([f"## {title}\n\n{sentence}\n", head, *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
