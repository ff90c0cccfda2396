"""Transformers' trainer with the loss on answers only: no logits are computed for prompts and padding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback

from lm_eval_lora_drop.train.tokens import IGNORED


class AnswerTrainer(Trainer):
    """`Trainer` for batches of `collate`; the loss is the mean over the answer tokens of an optimiser step."""

    # `compute_loss` divides by the answer tokens of all micro-batches of a step, which the trainer then counts.
    loss_is_scaled_for_ga = True

    def __init__(self, *, model: PreTrainedModel | PeftModel, **given: Any) -> None:
        super().__init__(model=model, **given)
        self.model_accepts_loss_kwargs = True
        self._head = model.get_output_embeddings()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The cross entropy of a micro-batch's answers, divided by the number of answer tokens of the step."""
        assert not return_outputs, "only an evaluation asks for outputs"
        labels = inputs.pop("labels")
        loss = answer_loss(model, self._head, inputs, labels)
        loss = loss / ((labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        # The number is that of all processes, and the gradient their mean.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the loss per answer token of `eval_dataset`. `Trainer`'s own is a mean of batches, whatever the number of
        tokens in each. Every process takes all documents, so all have the same number."""
        documents: Any = self.eval_dataset
        size, total, tokens = self.args.per_device_eval_batch_size, 0.0, 0
        model: Any = self.model
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for start in range(0, len(documents), size):
                inputs = self._prepare_inputs(collate(documents[start : start + size]))
                labels = inputs.pop("labels")
                total += float(answer_loss(model, self._head, inputs, labels))
                tokens += int((labels[:, 1:] != IGNORED).sum())
        model.train()
        measured = {"eval_loss": total / tokens}
        self.log(measured)
        return measured


def answer_loss(model: Any, head: torch.nn.Module | None, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """The summed cross entropy of the labels that are not `IGNORED`, as a scalar.

    The head is the last module of the model: it gets the hidden states of the positions before a label and no others,
    so that `vocabulary x prompt` logits are neither computed nor stored. `logits_to_keep` of Transformers' models would
    take one set of positions for all rows, and some models know no such argument. Everything around the head (scaling,
    soft caps) stays the model's own. Where the head is called with anything but one state per token, all logits are
    computed and the same ones are used.

    Args:
        model: called with `inputs`, and returns logits.
        head: its output embedding, None if it has none.
        inputs: `input_ids` and `attention_mask`, `(batch, tokens)`.
        labels: `(batch, tokens)`, each the token that stands there, or `IGNORED`.
    """
    # The last position predicts nothing.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    wanted = targets != IGNORED
    selected = False

    def select(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal selected
        if not given or given[0].shape[:2] != wanted.shape:
            return None
        selected = True
        # One row of all wanted positions: models index logits by (batch, position, vocabulary).
        return (given[0][wanted][None], *given[1:])

    handle = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    chosen = logits[0] if selected else logits[wanted]
    return torch.nn.functional.cross_entropy(chosen.float(), targets[wanted], reduction="sum")


def collate(examples: Sequence[dict[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Token ids and labels of several examples, padded at the right, with the attention mask: `(batch, tokens)` each.

    Padding is masked and has no label, so its token id (0) is immaterial.
    """

    def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    ids = [one["input_ids"] for one in examples]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([one["labels"] for one in examples], IGNORED),
    }


class TrainingProgressBar(TrainerCallback):
    """One bar over all steps, on standard error. Puts the seconds spent so far into the trainer's log, so that a
    checkpoint knows what it took."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._start = time.monotonic()
        self._before = 0.0
        self._validation: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin where a checkpoint left off."""
        self._start = time.monotonic()
        self._before = next((one["seconds"] for one in reversed(state.log_history) if "seconds" in one), 0.0)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._title,
            unit="step",
            mininterval=2,
            dynamic_ncols=True,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Show the losses; note the time."""
        if logs and "eval_loss" in logs:
            self._validation = {"validation": f"{logs['eval_loss']:.3f}"}
        if self._bar is None or not logs or "loss" not in logs:
            return
        self._bar.update(state.global_step - self._bar.n)
        self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}", **self._validation, refresh=False)
        if state.log_history:
            state.log_history[-1]["seconds"] = round(self._before + time.monotonic() - self._start, 2)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
