"""Commands that cannot work, typed as a user types them: is what comes back of help?

    python -m campaign.commands [--folder .campaign/commands] [--only N]

The rule, for each: the exit code is not 0; no traceback; at most three lines on standard error besides log lines;
the argument (or file) that is wrong is named in them, and no more than 30 seconds of CPU were used. The commands run
in processes forked from this one, in which everything is imported already.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
import traceback
from pathlib import Path

from campaign.tries import load, print_table, save

_STARTUP = Path(__file__).resolve().parents[1] / "lm_eval_lora_drop" / "_startup.py"
_LOG = re.compile(r"^(\d{4}-\d\d-\d\d|WARNING|INFO|warning:|`torch_dtype`|Overwriting)")
MOST_LINES = 3
MOST_CPU = 30.0

# What is typed and, after the bar, what its message must name. {run}: a good results file, {runs}: its folder, {base} and
# {adapter}: a small model and its adapter, {out}: a folder that is not there yet, {text}: a text file that is nothing else.
HARNESS_ARGS = """
K=3|boundary
k=3|boundary
lora_boundary=3|boundary
boundary_layer=3|boundary
boundry=3|boundary
Boundary=3|boundary
boundary=-1|boundary
boundary=5|boundary.*4
boundary=2.5|boundary
boundary=1e99|boundary
boundary=nan|boundary
boundary=atuo|auto
boundary=True|boundary
boundary=|boundary
boundary=[0,2,4]|boundary.*layers=0\\+2\\+4
boundary=@|boundary
boundary=@/nope.json|/nope.json
boundary=@{text}|words.txt
boundary=full,layers=0-1|exclude
layers=0,1,2|layers=0\\+1\\+2
layers=|layers
layers=0-9|layers
layers=3-1|layers
layers=a|layers
layers=0-3x0|strength
layers=0-3r0|rank
layers=0-3x1e400|strength
layers=0+0|layer 0
layers=-1|layers
layers=99999999999|layers
limit=3|sweep_limit
metric=acc|sweep_metric
adapter=x|peft
lora=x|peft
lora_path=x|peft
peft_model=x|peft
adapter_path=x|peft
model=x|pretrained
base_model=x|pretrained
pretraned=x|pretrained
merged=True|merge
merge=yes|merge
seed=3|sweep_seed
strategy=racing|sweep_strategy
select=one_se|sweep_select
engine=shared|sweep_engine
sweep=all|sweep_boundaries
backend=seq2seq|backend
dtype=float15|dtype
dtype=fp16|dtype
dtype=int8|dtype
batch_size=0|batch_size
batch_size=-4|batch_size
batch_size=many|batch_size
sweep_limit=0|sweep_limit
sweep_limit=-3|sweep_limit
sweep_limit=ten|sweep_limit
sweep_limit=1.5|sweep_limit
sweep_limit=True|sweep_limit
sweep_limit=99999999999999999999|sweep_limit
sweep_limits=3|sweep_limit
sweep_foo=3|sweep_foo
sweep_metric=|sweep_metric
sweep_metric=exact_match,strict-match|key=value|sweep_metric
sweep_metrics=acc|sweep_metric
sweep_boundaries=1,2|sweep_boundaries=1\\+2
sweep_boundaries=9-1|sweep_boundaries
sweep_boundaries=0-30000000|sweep_boundaries
sweep_boundaries=0-9|sweep_boundaries
sweep_boundaries=a|sweep_boundaries
sweep_boundaries=0-4:0|sweep_boundaries
sweep_boundaries=0-2,sweep_family=window|sweep_boundaries
sweep_family=windos|sweep_family
sweep_family=|sweep_family
sweep_size=-1|sweep_size
sweep_strategy=race|sweep_strategy
sweep_select=bset|best
sweep_select=|sweep_select
sweep_seed=-1|sweep_seed
sweep_seed=x|sweep_seed
sweep_engine=fast|sweep_engine
sweep_batch_size=0|sweep_batch_size
sweep_batch_size=x|sweep_batch_size
sweep_dir=|sweep_dir
sweep_dir={text}/x|sweep_dir
sweep_dir=/proc/nope|sweep_dir
sweep_dir=~nosuchuser/x|sweep_dir
sweep_log=tensorboard|sweep_log
devise=cpu|device
nonsense=1|nonsense
revison=main|revision
word|comma
"""
# Whole commands of the harness.
HARNESS = """
--model hf-lora-drop --model_args peft={adapter} --tasks lora_drop_gsm8k|pretrained
--model hf-lora-drop --model_args pretrained={base} --tasks lora_drop_gsm8k|peft
--model hf-lora-drop --tasks lora_drop_gsm8k|pretrained
--model hf-lora-drop --model_args pretrained={base},peft={adapter}|task
--model hf-lora-drop --model_args pretrained=/nope,peft={adapter},boundary=2 --tasks {task}|pretrained|SLOW
--model hf-lora-drop --model_args pretrained={base},peft=/nope,boundary=2 --tasks {task}|/nope|SLOW
--model hf-lora-drop --model_args pretrained={base},peft={base},boundary=2 --tasks {task}|peft|SLOW
--model hf-lora-drop --model_args pretrained={base},peft={adapter},nonsense=1,boundary=2 --tasks {task}|nonsense|SLOW
--model hf-lora-drop --model_args pretrained={base},peft={adapter},boundary=5 --tasks {task}|boundary|SLOW
--model hf-lora-drop --model_args pretrained={base},peft={adapter},layers=0-9 --tasks {task}|layers|SLOW
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks nope|nope
--model hf-lora-drop --model_args pretrained={base},peft={adapter},sweep_metric=zzz --tasks lora_drop_gsm8k|sweep_metric
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks lora_drop_gsm8k --include_path /nope|include_path
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks lora_drop_gsm8k --device toaster|device
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks lora_drop_gsm8k --log_samples|output_path
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks lora_drop_gsm8k --metadata data_dir=/nope|data_dir
--model hf-lora-drop --model_args '{{"pretrained": "{base}", "peft": "{adapter}", "boundary": -1.0}}' --tasks t|got -1\\b
--model hf-lora-drop --model_args '{{"pretrained": "{base}", "peft": "{adapter}", "boundary": [0, 2]}}' --tasks t|layers=0\\+2
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --config /nope.yaml --tasks t|/nope.yaml
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks t --num_fewshot x|num_fewshot
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks t --limit x|limit
--model hf-lora-drop --model_args pretrained={base},peft={adapter} --tasks t --seed x|seed
"""
OURS = """
report {runs}|output
report /nope -o {out}|/nope
report {empty} -o {out}|results
report {text} -o {out}|words.txt
report {runs} -o {out} --documents -1|documents
report {runs} -o {out} --seed x|seed
report {runs} -o {out} --baseline nope|baseline
report {runs} -o {empty}|cannot be written
report {runs} -o {text}/x/y.html|cannot be written
report {runs} -o /proc/nope/x.html|cannot be written
report /dev/zero -o {out}|/dev/zero
report {pipe} -o {out}|pipe
report|PATH
leaderboard {runs} --metric zzz|metric.*acc
leaderboard {runs} --baseline nope|baseline
leaderboard {runs} --format word|format
leaderboard {runs} --seed -1|seed
leaderboard /nope|/nope
leaderboard {text}|words.txt
leaderboard {empty}|results
leaderboard {runs} -o {text}/x|cannot be written
leaderboard|PATH
compare {run}|two systems
compare {run} /nope|/nope
compare {run} {text}|words.txt
compare {run} {run} --metric zzz|zzz
compare {run} {run} --resamples x|resamples
compare {run} {run} --show -1|show
compare|PATH
stability {runs} --task nope|nope.*t
stability {runs} --sizes x|sizes
stability {runs} --seed 1.5|seed
stability {unswept}|no sweep
stability {text}|words.txt
stability /nope|/nope
plan|nothing to plan
plan --discordance 2|discordance
plan --discordance x|discordance
plan --discordance nan|discordance
plan --spread -1|standard deviation
plan --spread 3 --power 2|power
plan --spread 3 --power x|power
plan --spread 3 --documents -1|documents
plan --spread 3 --documents 0|documents
plan --spread 3 --difference 0|difference
plan --spread 3 --difference -1|difference
plan --spread 3 --candidates x|candidates
plan --spread 3 --candidates 5 --pairs-per-second 0|pairs-per-second
plan --spread 3 --candidates 5 --pairs-per-second -2|pairs-per-second
plan {unswept}|no sweep
plan {runs} --task nope|nope
plan --pilot {run} /nope|/nope
figures {runs}/nope.json|nope.json
figures {text}|words.txt
figures {run} --task nope|task
figures {run} --formats bmp|bmp
figures {run} -o {text}/x|cannot be written
figures {unswept}|hf-lora-drop
figures|FILE
probe --pretrained {base} --peft {adapter} --task nope -o {out}|task.*nope
probe --pretrained {base} --peft {adapter} --include_path /nope --task t_ok -o {out}|include_path
probe --pretrained {base} --peft {adapter} --task t -o {out} --boundary auto|boundary
probe --pretrained {base} --peft {adapter} --task t -o {out} --boundary -1|boundary
probe --pretrained {base} --peft {adapter} --task t -o {out} --layers x|layers
probe --pretrained {base} --peft {adapter} --task t -o {out} --tokens 0|tokens
probe --pretrained {base} --peft {adapter} --task t -o {out} --limit -1|limit
probe --pretrained {base} --peft {adapter} --task t -o {out} --seed x|seed
probe --pretrained {base} --peft {adapter} --task t -o {out} --metadata x|metadata
probe --pretrained {base} --peft {adapter} --task t -o {out} --metadata [1]|metadata
probe --pretrained {base} --peft {adapter} --task t -o {out} --formats bmp|bmp
probe --pretrained {base} --peft {adapter} --task t -o {text}/x|output
probe --peft {adapter} --task t -o {out}|pretrained
export -o {out}|exactly one
export --peft {adapter} -o {out}|exactly one
export --peft {adapter} --boundary 2|output
export --boundary 2 -o {out}|peft
export --peft {adapter} --boundary 9 -o {out}|boundary
export --peft {adapter} --boundary auto -o {out}|boundary=auto
export --peft {adapter} --boundary x -o {out}|boundary
export --peft {adapter} --layers 0-9 -o {out}|layers
export --peft {adapter} --layers x -o {out}|layers
export --peft {adapter} --boundary 2 --layers 0 -o {out}|exactly one
export --peft /nope --boundary 2 -o {out}|/nope
export --peft {text} --boundary 2 -o {out}|words.txt
export --peft {base} --boundary 2 -o {out}|base
export --peft {adapter} --boundary 2 -o {empty} --merge --dtype float15|dtype
export --peft {adapter} --boundary 2 -o {out} --merge --dtype float15|dtype
export --peft {adapter} --boundary 2 -o {text}|words.txt
export --peft {adapter} --pretrained /nope --boundary 2 -o {out}|/nope
export --results /nope -o {out}|/nope
export --results {unswept} -o {out}|hf-lora-drop
export --results {run} --task nope -o {out}|task
export --results {run} --peft {adapter} -o {out}|fingerprint
export --results {empty} -o {out}|results
check --peft {adapter} --boundary 9|boundary
check --peft {adapter} --boundary 2 --dtype x|dtype
check --peft {adapter} --boundary 2 --limit 0|limit
check --peft {adapter} --boundary 2 --tokens -1|tokens
check --peft {adapter} --boundary 2 --prompts /nope|/nope
check --peft {adapter} --boundary 2 --export /nope|/nope
check --boundary 2|peft
check|exactly one
publish /nope|/nope
publish {unswept}|hf-lora-drop
publish {run} --push|repo
publish {run} --create-pr|create-pr
publish {run} --repo nope|repo
publish {run} --card /nope|card
publish {run} --relationship x|relationship
publish {run} --task nope|task
study|config
study --config /nope.yaml|/nope.yaml
study --config {empty}|empty
study --config {text}|words.txt
study --config {text} --only x|only
train --task t -o {out}|model
train --model {base} --task t -o {out} --rank x|rank
train --model {base} --task t -o {out} --rank -1|rank
train --model {base} --task t -o {out} --epochs 0|epochs
train --model {base} --task t -o {out} --layers x|layers
train --model {base} --task t -o {out} --precision x|precision
train --model {base} --task t -o {out} --config /nope|/nope
train --model {base} --task t -o {out} --config {text}|words.txt
train --model {base} --task t -o {out} --metadata x|metadata
judge|COMMAND
judge nope|nope
judge rescore /nope|/nope
judge rescore {run} --judges /nope|/nope
judge collect /nope {text}|/nope
judge collect {text} {text}|words.txt
judge pairwise {run} /nope|/nope
judge sheet {run} /nope -o {out}|/nope
nope|nope
|COMMAND
"""


def places(folder: Path) -> dict[str, str]:
    """The files that the commands name, made once."""
    from tests.report.files import swept, write_run
    from tests.tiny import make_adapter, make_base

    base, adapter = folder / "base", folder / "adapter"
    if not adapter.exists():
        make_base(base)
        make_adapter(base, adapter)
    run = write_run(folder / "runs", {"acc": [0.0, 1.0, 1.0, 0.0]}, lora_drop=swept())
    unswept = write_run(folder / "unswept", {"acc": [0.0, 1.0, 1.0, 0.0]})
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "words.txt").write_text("just words\n")
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    made = {"base": base, "adapter": adapter, "run": run, "runs": run.parent, "unswept": unswept, "out": folder / "out"}
    made |= {"empty": folder / "empty", "text": folder / "words.txt", "pipe": folder / "pipe"}
    return {**{name: str(path.absolute()) for name, path in made.items()}, "task": "lora_drop_gsm8k"}


def commands(where: dict[str, str]) -> list[tuple[list[str], str]]:
    """Each command as a list of words, with what its message must match."""
    found = []
    model = f"--model hf-lora-drop --model_args pretrained={where['base']},peft={where['adapter']},"
    for line in filter(None, HARNESS_ARGS.split("\n")):
        text, _, names = line.partition("|")
        text = text.format(**where)
        found.append((["lm_eval", *shlex.split(model), "--tasks", "lora_drop_gsm8k"], names))
        found[-1][0][4] += text
    for line in filter(None, HARNESS.split("\n")):
        text, _, names = line.partition("|")
        found.append((["lm_eval", *shlex.split(text.format(**where))], names.removesuffix("|SLOW")))
    for line in filter(None, OURS.split("\n")):
        text, _, names = line.partition("|")
        found.append((["lora-drop", *shlex.split(text.format(**where))], names))
    return found


def warm() -> None:
    """Import what the commands import, with our hook on the harness as an installation arms it."""
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "__name__", "") != "_LoraDropFinder"]
    exec(_STARTUP.read_text(), {"sys": sys})

    import lm_eval_lora_drop.commands.main
    import lm_eval_lora_drop.models.hf  # noqa: F401


def run(words: list[str], folder: Path) -> tuple[int, str, float]:
    """Exit code, standard error and CPU seconds of one command, in a process of its own."""
    errors = folder / "stderr.txt"
    child = os.fork()
    if not child:
        code = 99
        try:
            out = os.open(folder / "stdout.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            err = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.chdir(folder)
            sys.argv = words
            code = _call(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 255)
    deadline = time.monotonic() + 300
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:  # it waits for something, a pipe perhaps
            os.kill(child, 9)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return code, errors.read_text(errors="replace"), used.ru_utime + used.ru_stime


def _call(words: list[str]) -> int:
    if words[0] == "lora-drop":
        from lm_eval_lora_drop.commands.main import main as ours

        return ours(words[1:])
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


def wrong(code: int, said: str, cpu: float, names: str) -> str | None:
    """Which part of the rule (see above) a command's end breaks, None where it breaks none."""
    lines = [line for line in said.split("\n") if line.strip() and not _LOG.match(line)]
    if code == 0:
        return "exit code 0"
    if code < 0:
        return f"ended by signal {-code}"
    if "Traceback" in said:
        return f"a traceback: {lines[-1][:200]}"
    if len(lines) > MOST_LINES:
        return f"{len(lines)} lines"
    if not any(re.search(one, said, re.IGNORECASE) for one in names.split("|")):
        return f"does not name {names}: {' '.join(lines)[:200]}"
    return f"{cpu:.0f} seconds of CPU" if cpu > MOST_CPU else None


def main() -> int:
    """Run them all; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".campaign/commands"))
    parser.add_argument("--only", type=int, help="this command alone, with what it says")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = commands(places(args.folder))
    warm()
    if args.only is not None:
        print(shlex.join(found[args.only][0]), *run(found[args.only][0], args.folder), sep="\n")
        return 0
    state = load(args.folder, {"commands": len(found)})
    for number in range(state["done"], len(found)):
        words, names = found[number]
        reason = wrong(*run(words, args.folder), names)
        if reason is not None:
            state["failures"].append(f"{number}: {shlex.join(words)}: {reason}")
        state["done"] = number + 1
        save(args.folder, state)
    failures = state["failures"]
    rows = [("commands that cannot work: not clear by the rule", len(found), len(failures))]
    return print_table(rows, failures)


if __name__ == "__main__":
    sys.exit(main())
