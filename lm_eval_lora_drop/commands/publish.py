"""`lora-drop publish`: the model card of a run. Sends only when asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, metavar="PATH", help="results_<date>.json, or the folder with that one run"
    )
    parser.add_argument("--task", help="this task only")
    parser.add_argument("--card", type=Path, metavar="FILE", help="add the results to this model card (README.md)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="output folder")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument("--push", action="store_true", help="send the card to --repo")
    parser.add_argument("--create-pr", action="store_true", help="with --push: as a pull request")


@command("publish", "model card of a run; sends it with --push", _add_options)
def _publish(args: argparse.Namespace) -> int:
    """Makes a model card with the scores, or adds them to one. Without -o and --push it is only printed.

    lora-drop publish out
    lora-drop publish out -o published --card README.md
    lora-drop publish out --repo me/my-adapter --push --create-pr
    """
    from lm_eval_lora_drop.record.find import only_run
    from lm_eval_lora_drop.show.model_card import model_card

    if args.push and not args.repo:
        raise ArgumentError("--push needs --repo OWNER/NAME: where to send the card.")
    if args.create_pr and not args.push:
        raise ArgumentError("--create-pr says how --push sends; give both.")
    if args.repo and (args.repo.count("/") != 1 or not all(args.repo.split("/"))):
        raise ArgumentError(f"--repo must be OWNER/NAME, a model repository on the Hub, got {args.repo!r}.")
    if args.card is not None and not args.card.is_file():
        raise ArgumentError(f"--card must be a model card, a file, got {args.card}.")
    card = None if args.card is None else args.card.read_text(encoding="utf-8")
    made = model_card(only_run(args.results), args.repo, task=args.task, card=card)
    if args.output is not None:
        write_atomically(args.output / "README.md", made)
        print(args.output / "README.md")
    elif not args.push:
        print(made)
    if args.push:
        print(f"Sent: {_push(made, args.repo, create_pr=args.create_pr)}")
    else:
        flags = "--push" if args.repo else "--repo OWNER/NAME --push"
        print(f"Nothing was sent. Add {flags} to send the card to the Hub.")
    return 0


add_parser = _publish.add_parser


def _push(card: str, repo: str, *, create_pr: bool) -> str:
    """Send the card in one commit; returns its address.

    Raises:
        ArgumentError: the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    operation = CommitOperationAdd("README.md", card.encode("utf-8"))
    message = "Evaluation results by lm-eval-lora-drop"
    try:
        sent = HfApi().create_commit(repo, [operation], commit_message=message, repo_type="model", create_pr=create_pr)
    except RepositoryNotFoundError as error:
        raise ArgumentError(
            f"--repo {repo} is no model repository that you may write to. Make it on the Hub, or log in with "
            "`hf auth login`."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise ArgumentError(f"the Hub did not take the card for {repo}: {error}") from error
    return str(sent.pr_url or sent.commit_url)
