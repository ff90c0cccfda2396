"""What is typed wrong after `lora-drop` is answered with the rule, what came and the way out, and nothing else."""

import json

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from testing.judged_runs import write_judged
from testing.run_files import swept, write_run


@pytest.fixture
def said(capsys):
    """What a command that must fail writes on standard error, without the name of the command."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        err = capsys.readouterr().err
        assert code in (1, 2)
        assert len(err.splitlines()) == 1
        return err.partition(": ")[2]

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --rank x", "rank must be an integer of at least 1, got 'x'. Example: rank=8."),
        ("train --layers x", "layers must be layers and ranges joined by '+'"),
        ("train --learning-rate inf", "learning_rate must be a number above 0, got 'inf'."),
        ("train --lora-alpha nan", "lora_alpha must be a number of at least 0, got 'nan'."),
        ("train --threads 0", "argument --threads: must be an integer from 1 to "),
        ("train --num_fewshot -1", "argument --num-fewshot/--num_fewshot: must be an integer from 0 to "),
        ("export --boundary auto", "--boundary=auto needs a sweep"),
        (f"export --boundary {'9' * 5000}", "boundary must be an integer from 0"),
        ("export --boundary -1", "boundary must be an integer from 0"),
        ("export --layers 0-9", "layers must lie in 0..3"),
        ("export --layers 0-3x0", "a strength must be a number above 0"),
        ("export --layers 0-3.nope", "no LoRA is left"),
        ("export --boundary 0", "no LoRA is left ... that is the base model"),
        ("export --boundary 9", "boundary must be an integer from 0 to 4"),
        ("export --boundary 2 --layers 0-1", "export needs exactly one of"),
        ("export", "export needs exactly one of"),
    ],
    ids=lambda text: text[:40],
)
def test_nothing_is_made_of(words, message, said, tiny_adapter, tmp_path):
    """Before a task is loaded: there is none of this name."""
    command, *options = words.split()
    given = {"train": ["--pretrained", "/nope", "--task", "nope"], "export": ["--peft", tiny_adapter]}[command]
    told = said(command, *given, "-o", tmp_path / "out", *options)
    begins, _, holds = message.partition(" ... ")
    assert told.startswith(begins)
    assert holds in told
    assert list(tmp_path.iterdir()) == []


def test_train_says_whether_the_file_or_the_option_is_wrong(said, tmp_path):
    command = [
        "train",
        "--pretrained",
        "/nope",
        "--task",
        "nope",
        "-o",
        tmp_path / "out",
        "--config",
        tmp_path / "a.yaml",
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"rank": 4}))
    assert said(*command, "--epochs", "0").startswith("epochs must be a number above 0, got '0'")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"rank": 0}))
    assert said(*command, "--epochs", "1").startswith(
        f"{tmp_path / 'a.yaml'}: rank must be an integer of at least 1, got 0"
    )
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"rnak": 4}))
    assert said(*command) == f"{tmp_path / 'a.yaml'}: there is no option rnak. Did you mean rank?\n"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("lora_drop_dem", "'lora_drop_dem' is not known. Did you mean lora_drop_demo?"),
        ("lora_drop", "'lora_drop' is a group of tasks"),
        ("lora_drop_demo", "cannot be loaded: ValueError: no new problem of kind"),
        ("broken", "cannot be loaded: ZeroDivisionError: "),
    ],
)
def test_a_task_that_cannot_be_loaded(task, message, said, tiny_base, tmp_path):
    """By code of its own, too, which may raise anything."""
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ncustom_dataset: !function broken.load\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: q\ndoc_to_target: a\n"
    )
    (tmp_path / "broken.py").write_text("def load(**_):\n    return 1 / 0\n")
    told = said(
        *("train", "--pretrained", tiny_base, "--task", task, "-o", tmp_path / "out", "--include-path", tmp_path),
        *("--metadata", '{"train_documents": 100000}'),
    )
    assert message in told


def test_a_port_that_there_is_none_of(said, tmp_path):
    write_run(tmp_path, {"acc": [0.0, 1.0]})
    assert said("view", tmp_path, "--port", "65536").startswith(
        "argument --port: must be a port, 0 to 65535, got 65536"
    )


def test_check_takes_a_dtype_that_there_is_and_a_token_at_least(said, tiny_adapter):
    command = ("check", "--peft", tiny_adapter, "--boundary", "2")
    assert "invalid choice: 'float15'" in said(*command, "--dtype", "float15")
    assert "must be an integer from 1" in said(*command, "--tokens", "0")


def test_a_folder_in_place_of_a_file_is_said_once(said, tmp_path):
    told = said("study", "--config", tmp_path)
    assert told == f"{tmp_path} must be a file (a study, YAML), got a folder, pipe or device.\n"


def test_reproduce_names_the_tasks_there_are(said):
    assert "got nope. There are: hotpotqa, gsm8k" in said("reproduce", "--tasks", "nope")


def test_judges(said, tmp_path):
    run = write_run(tmp_path / "run", {"acc": [0.0, 1.0]}, lora_drop=swept())
    assert said("judge", "rescore", "/nope").startswith("/nope does not exist. Give a results file")
    for words in (["rescore", run], ["pairwise", run, run]):
        assert said("judge", *words, "--panel", "nope").startswith("'nope' is not a panel file")
    assert "share no task" in said("judge", "sheet", run, run, "-o", tmp_path / "out")
    judged = write_judged(tmp_path / "judged", ["a", "b"], name="x")
    told = said("judge", "sheet", judged, judged, "-o", tmp_path / "out", "--number", "0")
    assert told.startswith("argument --number: must be an integer from 1 to ")
    (tmp_path / "key.json").write_text(json.dumps({"sheet": "s"}))
    told = said("judge", "collect", tmp_path / "key.json", tmp_path / "key.json")
    assert told.startswith(f"{tmp_path / 'key.json'} must be key.json of `lora-drop judge sheet`, with ")
