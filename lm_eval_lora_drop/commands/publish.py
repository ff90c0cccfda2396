"""`lora-drop publish`: model card and evaluation files of the Hub. Sends only when asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError

if TYPE_CHECKING:
    from lm_eval_lora_drop.show.publishing.publication import Publication


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, metavar="PATH", help="results_<date>.json, or the folder with that one run"
    )
    parser.add_argument("--task", help="this task only")
    parser.add_argument("--card", type=Path, metavar="FILE", help="add the results to this model card (README.md)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="output folder")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument("--push", action="store_true", help="send the files to --repo")
    parser.add_argument("--create-pr", action="store_true", help="with --push: as a pull request")


@command("publish", "model card and evaluation files of a run; sends them with --push", _add_options)
def _publish(args: argparse.Namespace) -> int:
    """Makes a model card with the scores, and the Hub's .eval_results files. Without -o and --push they are only
    printed.

    lora-drop publish out
    lora-drop publish out -o published --card README.md
    lora-drop publish out --repo me/my-adapter --push --create-pr
    """
    from lm_eval_lora_drop.record.find import only_run
    from lm_eval_lora_drop.show.publishing.publication import publication

    if args.push and not args.repo:
        raise ArgumentError("--push needs --repo OWNER/NAME: where to send the files.")
    if args.create_pr and not args.push:
        raise ArgumentError("--create-pr says how --push sends; give both.")
    if args.repo and (args.repo.count("/") != 1 or not all(args.repo.split("/"))):
        raise ArgumentError(f"--repo must be OWNER/NAME, a model repository on the Hub, got {args.repo!r}.")
    if args.card is not None and not args.card.is_file():
        raise ArgumentError(f"--card must be a model card, a file, got {args.card}.")
    card = None if args.card is None else args.card.read_text(encoding="utf-8")
    made = publication(only_run(args.results), args.repo, task=args.task, card=card)
    if args.output is not None:
        print("\n".join(map(str, made.write(args.output))))
    elif not args.push:
        for name, text in made.files.items():
            print(f"==> {name}\n{text}")
    for note in made.notes:
        print(f"Note: {note}")
    if args.push:
        print(f"Sent: {_push(made, args.repo, create_pr=args.create_pr)}")
    else:
        flags = "--push" if args.repo else "--repo OWNER/NAME --push"
        print(f"Nothing was sent. Add {flags} to send the files to the Hub.")
    return 0


add_parser = _publish.add_parser


def _push(made: Publication, repo: str, *, create_pr: bool) -> str:
    """Send all files in one commit; returns its address.

    Raises:
        ArgumentError: the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    operations = [CommitOperationAdd(name, text.encode("utf-8")) for name, text in made.files.items()]
    try:
        sent = HfApi().create_commit(
            repo,
            operations,
            commit_message="Evaluation results by lm-eval-lora-drop",
            repo_type="model",
            create_pr=create_pr,
        )
    except RepositoryNotFoundError as error:
        raise ArgumentError(
            f"--repo {repo} is no model repository that you may write to. Make it on the Hub, or log in with "
            "`hf auth login`."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise ArgumentError(f"the Hub did not take the files for {repo}: {error}") from error
    return str(sent.pr_url or sent.commit_url)
