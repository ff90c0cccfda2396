"""Several adapters of one base model in one sweep: which one, at which boundary."""

import json
import shutil
from dataclasses import replace

import pytest
from lm_eval.models.huggingface import HFLM

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.files import adapter_sources, source_of
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.listeners.screen import export_command
from lm_eval_lora_drop.show.verdict.answer import answers
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing.tiny import make_adapter, make_base
from tests.candidates.toys import evaluate, texts


@pytest.fixture(scope="module")
def run_folder(tiny_base, tmp_path_factory):
    """The checkpoints of one run: different ranks and targets, so that a mix-up would show."""
    folder = tmp_path_factory.mktemp("run")
    make_adapter(tiny_base, folder / "checkpoint-5", seed=5, r=2, target_modules=["q_proj", "down_proj"])
    make_adapter(tiny_base, folder / "checkpoint-10", seed=6)
    make_adapter(tiny_base, folder / "checkpoint-20", seed=7, use_rslora=True)
    return folder


def test_names_of_adapters(run_folder, tmp_path):
    assert list(adapter_sources(str(run_folder))) == ["checkpoint-20", "checkpoint-10", "checkpoint-5"]
    assert adapter_sources("me/one") == {"": "me/one"}
    assert adapter_sources("me/one+you/t.wo") == {"one": "me/one", "t_wo": "you/t.wo"}
    odd = tmp_path / "a+b"
    shutil.copytree(run_folder / "checkpoint-5", odd)
    assert adapter_sources(str(odd)) == {"": str(odd)}
    with pytest.raises(ArgumentError, match="alike: one, one"):
        adapter_sources("me/one+you/one")
    assert source_of("me/one+you/two", "two") == "you/two"
    for peft, name in (("me/one+you/two", "three"), ("me/one", "two")):
        with pytest.raises(ArgumentError, match=r"peft=me/one.*Name"):
            source_of(peft, name)


def test_which_checkpoint_at_which_boundary(make, run_folder, tmp_path):
    lm = make(peft=str(run_folder), boundary="auto", sweep_limit=4, sweep_engine="shared")
    results = evaluate(lm)
    run = from_config(results["config"], "here")
    record = run.tasks["toy"]
    names = ("checkpoint-20", "checkpoint-10", "checkpoint-5")
    expected = {str(Variant.below(k, 4, name)) for name in names for k in (1, 2, 3, 4)} | {"none"}
    assert {row.variant for row in record.sweep.candidates} == expected
    assert record.sweep.candidate_set == "adapters+boundary"
    assert record.sweep.candidates[0].variant == "checkpoint-20@0-3"
    assert record.sweep.check["passed"]
    assert "checkpoint-10 K = 4" in sweep_table(record)
    assert len({row.items for row in record.sweep.candidates}) > 6
    # The oracle: each checkpoint alone, which has never met another one.
    for name in names:
        alone = make(peft=str(run_folder / name), boundary="auto", sweep_limit=4, sweep_engine="plain")
        swept = from_config(evaluate(alone)["config"], "here").tasks["toy"].sweep
        for k in (0, 1, 2, 3, 4):
            mine = record.sweep.candidate(str(Variant.below(k, 4, name if k else "")))
            assert mine.items == swept.candidate(str(Variant.below(k, 4))).items
    # The evaluated answers are the chosen adapter's, and its export is plain PEFT.
    assert record.kept.adapter in names
    export_adapter(run.adapter.path, record.kept, tmp_path / "exported")
    assert texts(evaluate(make(HFLM, peft=str(tmp_path / "exported")))) == texts(results)


@pytest.fixture(scope="module")
def chosen_run(tiny_base, run_folder, tmp_path_factory):
    """A results file of a run over the checkpoints, whose choice is of the second of them and no whole one."""
    folder = tmp_path_factory.mktemp("chosen")
    lm = LoraDropLM(
        str(tiny_base), str(run_folder), boundary="auto", sweep_limit=3, sweep_dir=str(folder / "sweeps"), device="cpu"
    )
    results = evaluate(lm)
    entry = results["config"]["lora_drop"]
    entry["tasks"]["toy"] |= {"variant": "checkpoint-10@0-2", "boundary": 3}
    entry["tasks"]["toy"]["sweep"]["chosen"] = "checkpoint-10@0-2"
    kept = {name: results[name] for name in ("results", "config", "n-samples", "higher_is_better")}
    file = folder / "results_2026-01-01T00-00-00.json"
    file.write_text(json.dumps(kept, default=str))
    return file


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_export_finds_the_adapter_that_the_choice_is_of(chosen_run, run_folder, tiny_base, tmp_path, capsys):
    told = json.loads(chosen_run.read_text())["config"]["lora_drop"]["adapter"]
    assert list(told["several"]) == ["checkpoint-20", "checkpoint-10", "checkpoint-5"]
    export_adapter(run_folder / "checkpoint-10", Variant.below(3, 4), tmp_path / "expected")
    expected = weights(tmp_path / "expected")
    command = ["export", "--results", str(chosen_run), "-o"]
    # Where the run had it; the one alone, elsewhere; all of them.
    moved = shutil.copytree(run_folder / "checkpoint-10", tmp_path / "moved")
    both = f"{run_folder / 'checkpoint-5'}+{run_folder / 'checkpoint-10'}"
    for place, given in enumerate(([], ["--peft", str(moved)], ["--peft", both], ["--peft", str(run_folder)])):
        assert main([*command, str(tmp_path / str(place)), *given]) == 0, capsys.readouterr().err
        assert weights(tmp_path / str(place)) == expected
    lora_drop.read(chosen_run)["toy"].export(tmp_path / "api")
    assert weights(tmp_path / "api") == expected
    lora_drop.read(chosen_run)["toy"].export(tmp_path / "merged", merge=True)
    assert (tmp_path / "merged" / "config.json").is_file()
    assert (
        main([*command[:1], "--peft", str(run_folder), "--layers", "checkpoint-10@0-2", "-o", str(tmp_path / "l")]) == 0
    )
    assert weights(tmp_path / "l") == expected
    capsys.readouterr()
    for given, message in (
        (["--peft", str(run_folder / "checkpoint-20")], "is not the adapter of this run: its digest is"),
        (["--peft", f"{run_folder / 'checkpoint-5'}+{run_folder / 'checkpoint-20'}"], "got 'checkpoint-10'. Name one"),
    ):
        assert main([*command, str(tmp_path / "no"), *given]) == 1
        assert message in capsys.readouterr().err
    for layers, message in (("0-2", "no named adapter came"), ("checkpoint-7@0-2", "got 'checkpoint-7'")):
        assert main(["export", "--peft", str(run_folder), "--layers", layers, "-o", str(tmp_path / "no")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_export_needs_only_the_adapter_that_the_choice_is_of(chosen_run, run_folder, tmp_path, capsys):
    data = json.loads(chosen_run.read_text())
    several = data["config"]["lora_drop"]["adapter"]["several"]
    for name in ("checkpoint-5", "checkpoint-20"):
        several[name]["path"] = str(tmp_path / "gone" / name)
    file = tmp_path / chosen_run.name
    file.write_text(json.dumps(data))
    assert main(["export", "--results", str(file), "-o", str(tmp_path / "out")]) == 0
    # What lies there now is another one.
    changed = copied(run_folder / "checkpoint-10", tmp_path / "changed", lora_alpha=99)
    several["checkpoint-10"]["path"] = str(changed)
    file.write_text(json.dumps(data))
    assert main(["export", "--results", str(file), "-o", str(tmp_path / "no")]) == 1
    assert "is not the adapter of this run" in capsys.readouterr().err
    del several["checkpoint-10"]
    file.write_text(json.dumps(data))
    assert main(["export", "--results", str(file), "-o", str(tmp_path / "no")]) == 1
    assert "its choice is of 'checkpoint-10'" in capsys.readouterr().err


def test_the_screen_names_the_command_that_exports_it(chosen_run):
    data = json.loads(chosen_run.read_text())
    record = from_config(data["config"], chosen_run)
    (answer,) = answers(data, record)
    answer = replace(answer, doubts=())  # a model of random weights scores 0, against which the screen speaks
    assert export_command(answer, record, chosen_run).endswith("--output checkpoint-10-0-2")
    assert "--layers checkpoint-10@0-2" in export_command(answer, record, None)


def test_only_which_adapter(make, run_folder):
    two = f"{run_folder / 'checkpoint-10'}+{run_folder / 'checkpoint-5'}"
    lm = make(peft=two, boundary="auto", sweep_candidates="adapters", sweep_limit=3)
    run = from_config(evaluate(lm)["config"], "here")
    sweep = run.tasks["toy"].sweep
    assert {row.variant for row in sweep.candidates} == {"checkpoint-10@0-3", "checkpoint-5@0-3", "none"}
    one = make(peft=str(run_folder / "checkpoint-10"), boundary="full")
    assert one.fingerprint_parts()["adapter"]["fingerprint"] != run.adapter.fingerprint
    swapped = "+".join(reversed(two.split("+")))
    other = make(peft=swapped, boundary="auto", sweep_candidates="adapters", sweep_limit=3)
    assert other.fingerprint_parts()["adapter"]["fingerprint"] != run.adapter.fingerprint


def test_a_fixed_setting_names_its_adapter(make, run_folder):
    said = texts(evaluate(make(peft=str(run_folder), layers="checkpoint-5@0-1x0.5")))
    assert said == texts(evaluate(make(peft=str(run_folder / "checkpoint-5"), layers="0-1x0.5")))
    assert said != texts(evaluate(make(peft=str(run_folder), layers="checkpoint-10@0-1x0.5")))


def copied(source, folder, **config):
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def test_what_does_not_go_together_is_refused_before_the_model_is_loaded(make, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model is loaded"))
    one = run_folder / "checkpoint-10"
    other = copied(run_folder / "checkpoint-5", tmp_path / "other", base_model_name_or_path="org/Another-Base")
    with pytest.raises(AdapterError, match=r"one base model, got checkpoint-10: .*, other: org/Another-Base"):
        make(peft=f"{one}+{other}", boundary="auto")
    larger = make_base(tmp_path / "larger", num_layers=6)
    six = make_adapter(larger, tmp_path / "six")
    with pytest.raises(AdapterError):
        make(peft=f"{one}+{six}", boundary="auto")
    with pytest.raises(AdapterError, match="missing"):
        make(peft=f"{one}+{tmp_path / 'missing'}", boundary="auto")
    biased = copied(run_folder / "checkpoint-5", tmp_path / "biased", bias="lora_only")
    with pytest.raises(AdapterError, match="bias=lora_only"):
        make(peft=f"{one}+{biased}", boundary="auto")
    for given in ({"boundary": 2}, {"boundary": "full"}, {"boundary": "probe"}, {"layers": "0-2"}, {"layers": "x@0-2"}):
        with pytest.raises(ArgumentError, match="does not say which"):
            make(peft=str(run_folder), **given)
    with pytest.raises(ArgumentError, match="layers must lie in 0..3"):
        make(peft=str(run_folder), layers="checkpoint-5@0-4")
    with pytest.raises(ArgumentError, match="several adapters, got one"):
        make(peft=str(one), boundary="auto", sweep_candidates="adapters")


def test_every_set_of_every_adapter():
    shape = AdapterShape(6, ("q_proj", "up_proj"), 4, ("one", "two"))
    candidate_set = make_candidates(["strength", "modules"], shape)
    alone = make_candidates(["strength", "modules"], AdapterShape(6, ("q_proj", "up_proj"), 4))
    assert len(candidate_set.variants) == 2 * (len(alone.variants) - 1) + 1
    assert candidate_set.full == Variant.full(6, "one")
    assert not make_candidates(["boundary"], shape).ordered
