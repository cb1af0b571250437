import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("peft", reason="needs negatron[lora]")

from safetensors.torch import load_model, save_model  # noqa: E402 - after the checks
from sentence_transformers import SentenceTransformer  # noqa: E402

from negatron.errors import SettingError  # noqa: E402
from negatron.training import adapters  # noqa: E402
from negatron.training.adapters import LoraSettings, add_lora, merge  # noqa: E402

TEXTS = ["how do cells divide", "mitosis splits the nucleus", "hydrogen fuses to helium"]


def load(folder):
    return SentenceTransformer(str(folder), device="cpu").eval()


def adapted(folder, seed=0, **settings):
    model = load(folder)
    torch.manual_seed(seed)
    add_lora(model, LoraSettings(**settings))
    return model


def take_steps(model, steps=2):
    """Pushes the vectors of the texts along a fixed direction."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    direction = torch.linspace(-1, 1, 64)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(model.preprocess(TEXTS))["sentence_embedding"] @ direction).sum().backward()
        optimiser.step()
    return optimiser


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def base_weights(model):
    """The weights without adapters, under the names that they have in a plain model."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state(model).items() if ".lora_" not in name}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fresh_adapters_change_no_vector(tiny_encoder):
    assert (adapted(tiny_encoder).encode(TEXTS) == load(tiny_encoder).encode(TEXTS)).all()


def test_steps_change_the_adapters_and_leave_the_base_weights_bit_for_bit(tiny_encoder):
    model = adapted(tiny_encoder)
    before, vectors = state(model), model.encode(TEXTS)
    take_steps(model)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".lora_" in name}, "A too: from the second step on it has a gradient"
    assert equal(base_weights(model), state(load(tiny_encoder)))
    assert abs(model.encode(TEXTS) - vectors).max() > 1e-3, "the steps taught something"


def test_only_adapters_train_in_a_part_outside_the_transformer_too(tiny_encoder):
    from sentence_transformers.sentence_transformer.modules import Dense

    plain = load(tiny_encoder)
    model = SentenceTransformer(modules=[*plain, Dense(64, 32)], device="cpu")
    add_lora(model, LoraSettings())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8  # 2 layers, query and value, A and B
    assert all(".lora_" in name for name in trained)


def test_the_merged_model_gives_the_vectors_of_the_adapted_one_and_loads_as_a_plain_one(tiny_encoder, tmp_path):
    model = adapted(tiny_encoder, rank=4, alpha=16)
    take_steps(model)
    vectors, unadapted = model.encode(TEXTS), load(tiny_encoder).encode(TEXTS)
    assert abs(vectors - unadapted).max() > 1e-3, "nothing to merge"
    merge(model)
    assert abs(model.encode(TEXTS) - vectors).max() < 1e-5
    assert state(model).keys() == state(load(tiny_encoder)).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save(str(tmp_path / "merged"), create_model_card=False)
    assert not list((tmp_path / "merged").rglob("adapter*"))
    assert abs(load(tmp_path / "merged").encode(TEXTS) - vectors).max() < 1e-5


def test_adapters_saved_apart_load_with_their_base(tiny_encoder, tmp_path):
    model = adapted(tiny_encoder)
    take_steps(model)
    model.save(str(tmp_path / "apart"), create_model_card=False)
    assert (tmp_path / "apart" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "apart" / "model.safetensors").exists()
    assert abs(load(tmp_path / "apart").encode(TEXTS) - load(tiny_encoder).encode(TEXTS)).max() > 1e-3
    loaded = load(tmp_path / "apart")
    assert (loaded.encode(TEXTS) == model.encode(TEXTS)).all()
    merge(loaded)
    assert abs(loaded.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-5


def test_a_checkpoint_loads_into_a_model_with_fresh_adapters_and_goes_on_the_same(tiny_encoder, tmp_path):
    model = adapted(tiny_encoder, seed=0)
    optimiser = take_steps(model)
    save_model(model, str(tmp_path / "weights.safetensors"))
    resumed = adapted(tiny_encoder, seed=1)
    assert not equal(state(resumed), state(model)), "nothing to load"
    load_model(resumed, str(tmp_path / "weights.safetensors"))
    assert equal(state(resumed), state(model))
    assert [p.requires_grad for p in resumed.parameters()] == [p.requires_grad for p in model.parameters()]
    assert len(optimiser.param_groups[0]["params"]) == 8
    take_steps(model), take_steps(resumed)
    assert equal(state(resumed), state(model))


def test_the_same_seed_gives_the_same_adapters_and_another_gives_others(tiny_encoder):
    first, same, other = (state(adapted(tiny_encoder, seed=seed)) for seed in (0, 0, 1))
    assert equal(first, same)
    assert not equal(first, other)


def test_every_setting_has_its_effect(tiny_encoder):
    def vectors(**settings):
        model = adapted(tiny_encoder, **settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        model.train()  # only dropout of adapters and of the encoder acts differently then
        torch.manual_seed(0)
        return model(model.preprocess(TEXTS))["sentence_embedding"].detach(), state(model)

    plain, weights = vectors()
    assert weights["0.model.encoder.layer.0.attention.self.query.lora_A.default.weight"].shape == (16, 64)
    assert torch.equal(vectors()[0], plain)
    for changed in ({"rank": 8}, {"alpha": 16}, {"dropout": 0.5}, {"targets": ("key",)}):
        assert not torch.allclose(vectors(**changed)[0], plain, atol=1e-4), changed


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, ["0.attention.self.query", "0.attention.self.value", "1.attention.self.query", "1.attention.self.value"]),
        (("key",), ["0.attention.self.key", "1.attention.self.key"]),
        (("1.attention.self.key", "0.output.dense"), ["0.output.dense", "1.attention.self.key"]),
    ],
)
def test_adapters_stand_where_they_were_asked_for(tiny_encoder, targets, expected):
    layers = adapters.adapted_layers(adapted(tiny_encoder, targets=targets)[0].model)
    assert [name.removeprefix("encoder.layer.") for name in layers] == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bert", ("query", "value")),
        ("roberta", ("query", "value")),
        ("qwen3", ("q_proj", "v_proj")),
        ("unheard of", None),
        ("gemma4", None),
    ],
)
def test_layers_are_chosen_by_the_kind_of_model_and_all_linear_ones_where_it_is_unknown(kind, expected):
    linear = ["layers.0.k_proj", "layers.0.q_proj", "layers.0.query", "layers.0.v_proj", "layers.0.value"]
    assert adapters.known_targets(kind, linear) == (expected or tuple(linear))


def test_a_kind_whose_known_layers_are_not_there_gets_all_linear_ones():
    assert adapters.known_targets("bert", ["layers.0.Wqkv"]) == ("layers.0.Wqkv",)


def test_the_poolers_layer_gets_no_adapter(tiny_encoder):
    linear = adapters.linear_layers(load(tiny_encoder)[0].model)
    assert len(linear) == 12
    assert not [name for name in linear if "pooler" in name]


def test_a_target_that_is_no_linear_layer_is_refused_with_the_nearest_name(tiny_encoder):
    with pytest.raises(SettingError, match=r"no linear layer is called 'qeury'; did you mean 'query'\?"):
        adapted(tiny_encoder, targets=("value", "qeury"))


def test_adapters_go_in_once_and_out_once(tiny_encoder):
    model = adapted(tiny_encoder)
    with pytest.raises(SettingError, match="has adapters already"):
        add_lora(model, LoraSettings())
    merge(model)
    with pytest.raises(SettingError, match="no adapters to merge"):
        merge(model)
    add_lora(model, LoraSettings())  # a second round on the merged weights
    assert len(adapters.adapted_layers(model[0].model)) == 4


def test_a_model_without_a_transformer_is_refused(tiny_encoder):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    model = SentenceTransformer(modules=[StaticEmbedding(load(tiny_encoder).tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    with pytest.raises(SettingError, match="needs a transformer"):
        add_lora(model, LoraSettings())


def test_settings_are_read_without_torch_and_a_missing_peft_says_what_to_install():
    code = """
import sys
sys.modules["peft"] = None  # what an import of something not installed finds
from negatron.errors import MissingExtra
from negatron.training.adapters import LoraSettings, require_peft
assert LoraSettings.checked({"targets": ["query"]}).targets == ("query",)
assert LoraSettings.checked({"targets": "off"}).targets is None
assert "torch" not in sys.modules
try:
    require_peft()
except MissingExtra as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "this needs the Python package peft, which is not installed: pip install 'negatron[lora]'"


def test_settings_that_mean_nothing_are_refused():
    for values in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}, {"ranks": 4}):
        with pytest.raises(SettingError):
            LoraSettings.checked(values)
