"""The whole way of a new user, each step checked by what lies outside it: train, sweep, compare, report, view, export,
check, publish.

    python demo/journey.py --model FOLDER -o out/journey     # the short form: 20 training steps
    python demo/journey.py --whole -o out/acceptance         # SmolLM2; then browser, notebook and site, where installed

Every command is printed before it runs, in the folder of the journey, and nothing is sent anywhere. Ends with code 1 at
the first thing that is not as it must be; what is not installed is said and skipped.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from prepare_model import FOLDER, prepare_model

import lm_eval_lora_drop as lora_drop

ROOT = Path(__file__).resolve().parents[1]
TASK = "lora_drop_demo"
PROGRAMS = {"lm_eval": "lm_eval", "lora-drop": "lm_eval_lora_drop.commands.main"}
SENT = "Nothing was sent."


@dataclass(frozen=True)
class Form:
    """How much of everything. `metric` is what K is chosen by: after a few steps only log-likelihoods tell layers
    apart."""

    steps: int
    batch: int
    learning_rate: float
    test: int
    validation: int
    metric: str


SHORT = Form(steps=20, batch=4, learning_rate=0.01, test=12, validation=8, metric="reference_loglikelihood")
WHOLE = Form(steps=40, batch=8, learning_rate=1e-3, test=50, validation=24, metric="exact_match")


class Journey:
    """A folder, a model and a form. A step raises SystemExit with the reason where something is not as it must be."""

    def __init__(self, folder: Path, model: Path, form: Form) -> None:
        self.folder, self.model, self.form = folder.resolve(), model.resolve(), form
        self.run_of_choice = "auto"
        self.exported = self.folder

    def run(self, *words: str) -> str:
        """Print and run a command; what it wrote to standard output. Any exit code but 0 ends the journey.

        The program is started as a module of this Python, so that no other installation answers.
        """
        print(f"\n$ {shlex.join(words)}", flush=True)
        done = subprocess.run(  # noqa: S603  nothing of it is input
            self.command(words), cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, end="", flush=True)
        must(done.returncode == 0, f"exit code {done.returncode} of: {shlex.join(words)}")
        return done.stdout

    @staticmethod
    def command(words: Sequence[str]) -> list[str]:
        """The words of a command with its program as a module of this Python."""
        return [sys.executable, "-m", PROGRAMS[words[0]], *words[1:]]

    def train(self) -> None:
        """An adapter, of exactly the steps that were asked for, whose loss falls."""
        form = self.form
        self.run(
            *("lora-drop", "train", "--pretrained", str(self.model), "--task", TASK, "-o", "adapter"),
            *("--limit", str(form.steps * form.batch), "--batch-size", str(form.batch), "--epochs", "1"),
            *("--learning-rate", str(form.learning_rate), "--rank", "8", "--checkpoints", "1"),
        )
        steps = json.loads((self.folder / "adapter" / "training.json").read_text(encoding="utf-8"))["steps"]
        losses = [step["loss"] for step in steps]
        must(len(losses) == form.steps, f"{len(losses)} steps were trained, not {form.steps}")
        must(sum(losses[-5:]) < sum(losses[:5]), f"the loss does not fall: {losses}")

    def evaluate(self, name: str, *model_args: str, model: str = "hf-lora-drop", adapter: str = "adapter") -> str:
        """`lm_eval` on the task's test documents; its output."""
        given = ",".join([f"pretrained={self.model}", f"peft={adapter}", *model_args])
        return self.run(
            *("lm_eval", "--model", model, "--model_args", given, "--tasks", TASK, "--batch_size", "16"),
            *("--limit", str(self.form.test), "--output_path", f"runs/{name}", "--log_samples"),
        )

    def sweep(self) -> None:
        """The last screen says the verdict that the results file holds, and how to export."""
        self.evaluate("full", "boundary=full")
        said = self.evaluate(
            "auto",
            f"boundary=auto,sweep_limit={self.form.validation},sweep_metric={self.form.metric}",
            "sweep_dir=sweeps,sweep_select=one_se",
        )
        found = lora_drop.read(self.folder / "runs" / "auto")
        must(one_line(found.verdict) in one_line(said), f"the last screen does not say: {found.verdict}")
        must(any((self.folder / "runs" / "auto").glob("*/sweep-*.png")), "no figure beside the results")
        if found.variant.is_full or found.variant.is_base:
            half = found.variant.num_layers // 2
            print(f"\nThe rule keeps {found.variant.label}; for the rest of the way K = {half}, by hand.")
            self.run_of_choice = "by_hand"
            said = self.evaluate("by_hand", f"boundary={half}")
        exports = [line.removeprefix("Export") for line in said.splitlines() if line.startswith("Export")]
        if not exports:
            print("\nThe last screen speaks against this choice; it is exported all the same.")
            exports = [f" lora-drop export --results runs/{self.run_of_choice} --output adapter-{self.run_of_choice}"]
        words = shlex.split(exports[-1])
        self.run(*words)
        self.exported = self.folder / words[words.index("--output") + 1]
        must((self.exported / "adapter_model.safetensors").is_file(), f"{self.exported} holds no adapter")

    def compare(self) -> None:
        """Paired tests on all documents, a table, and how sure the choice is."""
        said = self.run("lora-drop", "compare", "full=runs/full", "auto=runs/auto")
        must(f"{self.form.test} documents" in said, "compare does not name its documents")
        self.run("lora-drop", "leaderboard", "runs", "--baseline", "full")
        must("resamples of the" in self.run("lora-drop", "stability", "runs/auto"), "stability resampled nothing")

    def report(self) -> None:
        """One page that asks for nothing from elsewhere and says the verdict."""
        self.run("lora-drop", "report", "runs", "-o", "report.html")
        page = (self.folder / "report.html").read_text(encoding="utf-8")
        must(html.escape(self.verdict, quote=False) in html.unescape(page), "the page does not say the verdict")
        must("http-equiv" in page and "Content-Security-Policy" in page, "the page has no content security policy")

    @property
    def verdict(self) -> str:
        """What the sweep's results file says."""
        return lora_drop.read(self.folder / "runs" / "auto").verdict

    @contextmanager
    def view(self) -> Iterator[str]:
        """`lora-drop view` while it serves, ended as a user ends it; the address."""
        words = ["lora-drop", "view", "runs"]
        print(f"\n$ {shlex.join(words)}", flush=True)
        server = subprocess.Popen(  # noqa: S603
            self.command(words),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            print(first, end="", flush=True)
            must("http://127.0.0.1:" in first, "view does not say where it serves")
            yield next(word for word in first.split() if word.startswith("http://127.0.0.1:"))
        finally:
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=60)
        must("Traceback" not in errors, f"view ends with a traceback: {errors[-500:]}")

    def look(self) -> None:
        """The page as it is served."""
        with self.view() as address, urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310  ours
            page = answer.read().decode("utf-8")
        must(self.verdict in html.unescape(page), "the served page does not say the verdict")

    def check(self) -> None:
        """The exported adapter, on its own under `--model hf`, answers every test document as the run did."""
        run = self.run_of_choice
        self.run("lora-drop", "check", "--results", f"runs/{run}", "--export", self.exported.name)
        self.evaluate("exported", model="hf", adapter=self.exported.name)
        one, other = self.answers(run), self.answers("exported")
        must(len(one) == self.form.test and one == other, f"the export answers otherwise than the run {run}")

    def answers(self, name: str) -> list[tuple[int, str]]:
        """What a run answered, by document."""
        (file,) = (self.folder / "runs" / name).glob("*/samples_*.jsonl")
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return sorted((row["doc_id"], row["resps"][0][0]) for row in rows)

    def publish(self) -> None:
        """A dry run: a card with `model-index`, and nothing sent; the export's card says the same score."""
        said = self.run("lora-drop", "publish", "runs/auto")
        must(SENT in said, "publish does not say that nothing was sent")
        must("model-index:" in said, "publish does not show the card")
        card = (self.exported / "README.md").read_text(encoding="utf-8")
        (entry,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
        (result,) = entry["results"]
        must(result["task"]["name"] == TASK, "the export's card names another task")

    def browse(self) -> None:
        """The served page in Chromium: the verdict is there, and the console is silent."""
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is None:
            skip("browser", "no Chromium on the PATH")
            return
        with self.view() as address:
            words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
            # The page asks every two seconds whether a run has arrived: virtual time passes as soon as it waits.
            words += ["--virtual-time-budget=3000", "--dump-dom", address]
            done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)  # noqa: S603
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        must(self.verdict in html.unescape(done.stdout), "the browser does not show the verdict")
        must(not said, f"the browser's console says: {said}")


def must(holds: object, otherwise: str) -> None:
    """End the journey with a reason unless something holds."""
    if not holds:
        raise SystemExit(f"journey: {otherwise}")


def skip(what: str, why: str) -> None:
    """Say what was not done."""
    print(f"\nskipped: {what} ({why})", flush=True)


def one_line(text: str) -> str:
    """Without what a terminal's width does."""
    return " ".join(text.split())


def notebook(folder: Path) -> None:
    """The notebook of the docs, executed from start to end."""
    missing = [name for name in ("nbclient", "nbformat", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        skip("notebook", f"{', '.join(missing)} not installed: pip install --group docs")
        return
    words = [sys.executable, str(ROOT / "demo" / "execute_notebook.py"), "-o", str(folder / "notebook.ipynb")]
    must(subprocess.run(words, check=False).returncode == 0, "the notebook does not run")  # noqa: S603


def site(folder: Path) -> None:
    """The documentation, built strictly: a page or link that is missing ends it."""
    if importlib.util.find_spec("mkdocs") is None:
        skip("site", "mkdocs not installed: pip install --group docs")
        return
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "site")]
    must(subprocess.run(words, cwd=ROOT, check=False).returncode == 0, "the site does not build")  # noqa: S603
    must((folder / "site" / "index.html").is_file(), "the site has no first page")


def main() -> int:
    """Go the whole way; 0 at its end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--model", type=Path, help="a small base model (default: SmolLM2-135M-Instruct, prepared)")
    parser.add_argument("--whole", action="store_true", help="more of everything, then browser, notebook and site")
    args = parser.parse_args()
    must(not args.output.exists(), f"--output must be a new folder, and {args.output} exists.")
    args.output.mkdir(parents=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    journey = Journey(args.output, args.model or prepare_model(FOLDER), WHOLE if args.whole else SHORT)
    for step in (
        journey.train,
        journey.sweep,
        journey.compare,
        journey.report,
        journey.look,
        journey.check,
        journey.publish,
    ):
        step()
    if args.whole:
        journey.browse()
        notebook(journey.folder)
        site(journey.folder)
    print("\nThe journey is complete.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
