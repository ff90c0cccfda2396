"""`lora-drop train`: a LoRA adapter fine-tuned on a task's own prompts and reference answers."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.commands.options import command, json_object, natural, positive
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_yaml
from lm_eval_lora_drop.options import TrainingOptions, declared
from lm_eval_lora_drop.train.settings import TaskSettings, read_settings


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", required=True, help="base model: a folder or a Hub id")
    parser.add_argument("--task", required=True, help="an lm-eval task with a training split")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="output folder of the adapter"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings below as YAML; options override it")
    group = parser.add_argument_group("settings (default)")
    for one in declared(TrainingOptions).values():
        flag = f"--{one.name.replace('_', '-')}"
        about = f"{one.sentence} ({one.shown_default})".replace("%", "%%")
        if one.kind is bool:
            group.add_argument(flag, action="store_true", default=None, help=about)
        else:
            group.add_argument(flag, metavar=one.name.split("_")[-1].upper(), help=about)
    parser.add_argument("--num-fewshot", "--num_fewshot", type=natural, help="few-shot examples (default: the task's)")
    parser.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true", help="as in lm_eval")
    parser.add_argument("--fewshot-as-multiturn", "--fewshot_as_multiturn", action="store_true", help="as in lm_eval")
    parser.add_argument("--system-instruction", "--system_instruction", help="as in lm_eval")
    parser.add_argument("--include-path", "--include_path", help="folder with further tasks, as in lm_eval")
    parser.add_argument("--metadata", type=json_object, default={}, help="JSON handed to the task, as in lm_eval")
    parser.add_argument("--revision", help="revision of the base model on the Hub")
    parser.add_argument("--base-name", metavar="NAME", help="base model name in the adapter (default: --pretrained)")
    parser.add_argument("--device", help="cpu: do not use a GPU (default: the GPU, if any)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--trust-remote-code", "--trust_remote_code", action="store_true", help="as in lm_eval")
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep the checkpoints after the training")
    parser.add_argument("--dry-run", action="store_true", help="print the documents and one example; train nothing")


@command(
    "train",
    "fine-tune a LoRA adapter on a task's own prompts and reference answers",
    _add_options,
    kept="The same command resumes from the last checkpoint.",
)
def _train(args: argparse.Namespace) -> int:
    """Fine-tunes a LoRA adapter on the training split of an lm-eval task, on exactly the text that an evaluation asks,
    loss on the answer only, and excludes documents of the evaluated split and of the sweep. The same command resumes
    from the last checkpoint. For several GPUs: accelerate launch -m lm_eval_lora_drop.commands.main train ...

    lora-drop train --pretrained org/base --task lora_drop_gsm8k -o my-adapter
    lora-drop train --pretrained org/base --task lora_drop_gsm8k -o my-adapter --rank 16 --epochs 1 --limit 1000
    lora-drop train --pretrained org/base --task lora_drop_gsm8k -o my-adapter --checkpoints 8 --keep-checkpoints
    """
    file = _file(args.config)
    read_settings(file, str(args.config))  # so that a message names the file
    given = {name: getattr(args, name) for name in declared(TrainingOptions) if getattr(args, name) is not None}
    settings = read_settings({**file, **given})
    import torch

    from lm_eval_lora_drop.harness.evaluation import log_with_the_harness
    from lm_eval_lora_drop.train.run import Training, prepare, train

    log_with_the_harness("INFO")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device not in (None, "cpu"):
        raise ArgumentError(
            f"device must be cpu or be left out, got {args.device!r}. To choose a GPU, set CUDA_VISIBLE_DEVICES."
        )
    task = TaskSettings(
        **{one.name: getattr(args, one.name) for one in dataclasses.fields(TaskSettings)},
    )
    training = Training(
        base=args.pretrained,
        output=args.output,
        task=task,
        settings=settings,
        revision=args.revision,
        base_name=args.base_name,
        trust_remote_code=args.trust_remote_code,
        keep_checkpoints=args.keep_checkpoints,
        device=args.device,
    )
    if args.dry_run:
        prepared = prepare(training)
        documents = prepared.documents
        print(
            f"{len(prepared.encoded)} documents of split {documents.split}; {documents.held_out} held out, "
            f"{documents.leaked} in an evaluated split too, {documents.repeated} repeated, {documents.unfit} too long"
        )
        one = prepared.encoded[0]
        print("The first document; the loss is on the text between >>> and <<<:")
        answer = [token for token, label in zip(one.input_ids, one.labels, strict=True) if label >= 0]
        prompt = one.input_ids[: len(one.input_ids) - len(answer)]
        print(f"{prepared.tokenizer.decode(prompt)}>>>{prepared.tokenizer.decode(answer)}<<<")
        return 0
    record = train(training)
    print(
        f"{args.output}: LoRA on layers {record.trained_layers}, {record.trained_parameters:,} parameters, "
        f"{len(record.data.doc_ids)} documents, loss {record.steps[0].loss:.3f} -> {record.steps[-1].loss:.3f}, "
        f"{record.seconds / 60:.1f} minutes"
    )
    return 0


add_parser = _train.add_parser


def _file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    data = read_yaml(path, "the settings of a training, YAML")
    if not isinstance(data, dict):
        raise ArgumentError(f"{path} must hold keys and values, got {type(data).__name__}.")
    return data
