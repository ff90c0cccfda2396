"""What a sweep would take, in text: `sweep_dry_run=true`."""

from __future__ import annotations

from lm_eval_lora_drop.text import duration_text


def plan_of_sweep(
    task: str,
    metric: str,
    *,
    documents: int,
    split: str,
    candidates: int,
    known: int,
    bound: str,
    seconds_per_pair: float | None,
    processes: int,
    memory: str,
    evaluated: str,
) -> str:
    """A few lines: documents, pairs, time and memory; `evaluated` says what the test split takes.

    Args:
        bound: "at most " where the strategy may ask fewer pairs, "at least " where a search goes on in rounds.
        known: pairs (a candidate on a document) that the journal holds already.
        seconds_per_pair: of one process, as the journal shows it; None where it shows nothing.
    """
    pairs = documents * candidates
    left = pairs - known
    recorded = f", {known:,} of them in the journal" if known else ""
    if seconds_per_pair is None:
        time = "not known before a first sweep; to estimate it, run once with sweep_limit=4 and without sweep_dry_run"
    else:
        time = f"{bound}{duration_text(left * seconds_per_pair / processes)}, at the journal's own speed"
    return "\n".join(
        [
            f"Dry run of {task}, {metric}: nothing was answered.",
            f"  documents  {documents:,} of split {split!r}",
            f"  pairs      {bound}{pairs:,} ({candidates} candidates on each document{recorded})",
            f"  time       {time}",
            f"  memory     {memory}",
            f"  test split {evaluated}",
        ]
    )
