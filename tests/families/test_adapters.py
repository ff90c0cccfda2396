"""Several adapters of one base model in one sweep: which one, at which boundary."""

import json
import shutil

import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.files import adapter_sources, source_of
from lm_eval_lora_drop.models.hf import LoraDropLM
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.sweeping.families import make_family
from lm_eval_lora_drop.variant import Variant
from lm_eval_lora_drop.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.work import AdapterShape
from tests.families.toys import evaluate, texts
from tests.tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def run_folder(tiny_base, tmp_path_factory):
    """The checkpoints of one run: different ranks and targets, so that a mix-up would show."""
    folder = tmp_path_factory.mktemp("run")
    make_adapter(tiny_base, folder / "checkpoint-5", seed=5, r=2, target_modules=["q_proj", "down_proj"])
    make_adapter(tiny_base, folder / "checkpoint-10", seed=6)
    make_adapter(tiny_base, folder / "checkpoint-20", seed=7, use_rslora=True)
    return folder


@pytest.fixture
def make(tiny_base, tmp_path):
    def build(cls=LoraDropLM, **model_args):
        if cls is LoraDropLM and "layers" not in model_args:
            model_args.setdefault("sweep_dir", str(tmp_path / "sweeps"))
        return cls(pretrained=str(tiny_base), device="cpu", dtype="float32", batch_size=4, **model_args)

    return build


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
    assert record.sweep.family == "adapters+boundary"
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


def test_only_which_adapter(make, run_folder):
    two = f"{run_folder / 'checkpoint-10'}+{run_folder / 'checkpoint-5'}"
    lm = make(peft=two, boundary="auto", sweep_family="adapters", sweep_limit=3)
    run = from_config(evaluate(lm)["config"], "here")
    sweep = run.tasks["toy"].sweep
    assert {row.variant for row in sweep.candidates} == {"checkpoint-10@0-3", "checkpoint-5@0-3", "none"}
    one = make(peft=str(run_folder / "checkpoint-10"), boundary="full")
    assert one.fingerprint_parts()["adapter"]["fingerprint"] != run.adapter.fingerprint
    swapped = "+".join(reversed(two.split("+")))
    other = make(peft=swapped, boundary="auto", sweep_family="adapters", sweep_limit=3)
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
        make(peft=str(one), boundary="auto", sweep_family="adapters")


def test_every_family_of_every_adapter():
    shape = AdapterShape(6, ("q_proj", "up_proj"), 4, ("one", "two"))
    family = make_family(["strength", "modules"], shape)
    alone = make_family(["strength", "modules"], AdapterShape(6, ("q_proj", "up_proj"), 4))
    assert len(family.variants) == 2 * (len(alone.variants) - 1) + 1
    assert family.full == Variant.full(6, "one")
    assert not make_family(["boundary"], shape).ordered
