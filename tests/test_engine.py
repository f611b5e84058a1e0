"""The inference engine gives what the plain path gives, or says why it does not run."""

import copy
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from engine_helpers import TASKS, S, make_network, observe
from lerobot_policy_vita_vla.vla.engine import TEXT_LENGTHS, TOLERANCE, Engine, padded_length
from lerobot_policy_vita_vla.vla.engine_network import PatchProduct, cuts_into_patches
from lerobot_policy_vita_vla.vla.engine_pictures import Unfit, restate
from lerobot_policy_vita_vla.vla.lora import add_adapters

FAMILIES = ("smolvlm", "idefics3", "internvl", "qwen2_5_vl", "vita_vl")
DEEPER = {"smolvlm": {"num_hidden_layers": 3}, "internvl": {"num_hidden_layers": 3}, "qwen2_5_vl": {}}
LOGGER = "lerobot_policy_vita_vla.vla.engine"
TYPES = {
    # The type of the VLM's weights, and autocast's.
    "float32": (torch.float32, None),
    "autocast": (torch.float32, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}


def relative(found, wanted):
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def both(engine, seen, autocast=None):
    """Features of the engine and of the plain path, and whether their actions agree."""
    images, tasks, state = seen
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        wanted = engine.network.features(images, tasks, state)
        actions = engine.act(images, tasks, state)
        assert engine.reason is None, engine.reason
        program, inputs = engine._prepare(images, tasks, state, autocast)
        found, again = program(*inputs)
        assert torch.equal(actions, again)
        assert torch.equal(actions, engine.network.decoder.to_action(engine.network.decoder(found)))
    return found, wanted


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_gives_the_plain_paths_features(family, kind):
    weights, autocast = TYPES[kind]
    network = make_network(family, dtype=weights)
    tolerance = TOLERANCE[autocast or weights]
    for batch, cameras, padded in ((1, 1, False), (3, 2, False), (1, 2, True), (3, 2, True)):
        attention = "eager" if batch != cameras else "sdpa"
        network.backbone.vlm.set_attn_implementation({"text_config": attention})
        engine = Engine(network, padded=padded)
        found, wanted = both(engine, observe(batch, cameras), autocast)
        assert relative(found, wanted) < tolerance / 5, (batch, cameras, padded)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_reaches_the_engines_features(family):
    engine = Engine(make_network(family))
    seen = observe(1, 2)
    before, _ = both(engine, seen)
    images, tasks, state = seen
    other = [images[0], 1 - images[1]]
    for changed in ((other, tasks, state), (images, [TASKS[1]], state), (images, tasks, state + 1)):
        found, wanted = both(engine, changed)
        assert relative(found, wanted) < 1e-5
        assert relative(found, before) > 1e-3


def test_under_autocast_kept_casts_change_no_bit():
    engine = Engine(make_network("smolvlm"))
    found, wanted = both(engine, observe(2, 2), torch.bfloat16)
    # Kernels over other numbers of rows may round otherwise; the features of one row must not.
    assert relative(found, wanted) < 5e-3


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (torch.nn.Conv2d(3, 5, 4, stride=4), (2, 3, 12, 17)),
        (torch.nn.Conv2d(3, 5, (4, 2), stride=(4, 2), padding="valid", bias=False), (2, 3, 8, 8)),
        (torch.nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=False), (7, 3, 2, 4, 4)),
    ],
)
def test_a_product_over_patches_is_the_convolution(convolution, shape):
    assert cuts_into_patches(convolution)
    pixels = torch.rand(shape)
    with torch.no_grad():
        wanted, found = convolution(pixels), PatchProduct(convolution)(pixels)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}])
def test_other_convolutions_stay_what_they_are(options):
    assert not cuts_into_patches(torch.nn.Conv2d(4, 4, 4, **{"stride": 4} | options))
    assert not cuts_into_patches(torch.nn.Linear(4, 4))


def test_without_a_state_encoder():
    engine = Engine(make_network("internvl", state=False))
    images, tasks, _ = observe(3, 2)
    found, wanted = both(engine, (images, tasks, None))
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_adapters_act_in_the_engine_too(autocast):
    network = make_network("smolvlm")
    seen = observe(2, 1)
    with torch.no_grad():
        without = network.features(*seen)
    add_adapters(network.backbone.vlm, rank=2, alpha=4)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    found, wanted = both(Engine(network.eval()), seen, autocast)
    assert relative(found, wanted) < (5e-3 if autocast else 1e-5) and relative(found, without) > 0.05


def test_bytes_and_numbers_are_the_same_pictures():
    network = make_network("smolvlm")
    images, tasks, state = observe(2, 2)
    frames = [(image * 255).round().to(torch.uint8) for image in images]
    numbers = [frame.float() / 255 for frame in frames]
    engine = Engine(network)
    with torch.no_grad():
        assert torch.equal(engine.act(frames, tasks, state), engine.act(numbers, tasks, state))
        assert torch.equal(network.act(frames, tasks, state), network.act(numbers, tasks, state))


@pytest.mark.parametrize("sizes", [((32, 32), (32, 32)), ((40, 52), (40, 52)), ((96, 64), (30, 70))])
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_the_image_processors_bit_for_bit(family, sizes):
    prompts = make_network(family).backbone.prompts
    images = observe(3, 2, sizes)[0]
    wanted = prompts.pixels(images)["pixel_values"]
    found = restate(prompts, sizes, torch.device("cpu"))(images)
    assert found.shape == wanted.shape and torch.equal(found, wanted)


def test_a_processor_that_does_more_is_used_as_it_is(monkeypatch):
    network = make_network("internvl")
    processor = network.backbone.processor.image_processor
    whole = type(processor).preprocess

    def with_borders(self, images, **kwargs):
        made = whole(self, images, **kwargs)
        made["pixel_values"][..., 0] = 0.0
        return made

    monkeypatch.setattr(type(processor), "preprocess", with_borders)
    with pytest.raises(Unfit, match="gives other pixels"):
        restate(network.backbone.prompts, [(32, 32)], torch.device("cpu"))


def test_what_the_engine_cannot_do_is_said_once_and_done_the_plain_way(caplog):
    seen = observe(2, 1)
    for family, reason in (
        ("qwen3_vl", "type qwen3_vl have no image encoder"),
        ("paligemma", "reads token_type_ids"),
    ):
        network = make_network(family)
        engine = Engine(network)
        caplog.clear()
        with torch.no_grad(), caplog.at_level(logging.WARNING, LOGGER):
            found = [engine.act(*seen) for _ in range(3)]
            wanted = network.act(*seen)
        messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
        assert len(messages) == 1 and reason in messages[0]
        assert all(torch.equal(actions, wanted) for actions in found)


def test_other_features_than_the_plain_paths_are_never_acted_on(caplog, monkeypatch):
    network = make_network("smolvlm")
    engine = Engine(network)
    make = "lerobot_policy_vita_vla.vla.engine.acting_copy"

    def spoiled(network, dtype):
        copied = copy.deepcopy(network)
        copied.mapper.layers[0].weight.data.mul_(1.01)
        return copied

    monkeypatch.setattr(make, spoiled)
    seen = observe(1, 1)
    with torch.no_grad(), caplog.at_level(logging.WARNING, LOGGER):
        found = engine.act(*seen)
    assert "differ from the plain path's" in engine.reason and engine.reason in caplog.text
    assert torch.equal(found, network.act(*seen).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_product_is_in_bfloat16_from_state_to_action(dtype):
    network = make_network("smolvlm", dtype=dtype)
    engine, seen, kinds = Engine(network), observe(1, 2), {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        engine.act(*seen)
        for way, tree in (("plain", network), ("engine", engine._copy)):
            for module in tree.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | PatchProduct):
                    module.register_forward_hook(
                        lambda module, args, out, way=way: kinds.setdefault(way, []).append(out.dtype)
                    )
        engine.act(*seen)
        network.act(*seen)
    assert all(set(found) == {torch.bfloat16} for found in kinds.values())
    # The last layer's products of the two ways are the same ones; state encoder, mapper, decoder are in both.
    assert len(kinds["plain"]) == len(kinds["engine"]) > 20


def test_off_is_silent_and_plain(caplog):
    network = make_network("smolvlm")
    seen = observe(1, 1)
    with torch.no_grad():
        assert torch.equal(Engine(network, "off").act(*seen), network.act(*seen))
    assert not caplog.records
    with pytest.raises(ValueError, match="engine must be one of"):
        Engine(network, "on")


def test_training_goes_the_plain_way_with_gradients():
    network = make_network("smolvlm")
    actions = Engine(network).act(*observe(1, 1))
    assert actions.requires_grad


def test_pictures_of_a_wrong_shape_are_refused():
    engine = Engine(make_network("smolvlm"))
    images, tasks, state = observe(1, 1)
    with torch.no_grad():
        with pytest.raises(ValueError, match="a camera's images"):
            engine.act([images[0][0]], tasks, state)
        with pytest.raises(ValueError, match="observation.state"):
            engine.act(images, tasks, torch.zeros(1, S + 1))
    assert engine.reason is None


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_trained_swapped_and_loaded_weights_are_followed(autocast):
    network = make_network("smolvlm")
    engine, seen = Engine(network), observe(1, 1)
    last, _ = both(engine, seen, autocast)

    def moved():
        nonlocal last
        found, wanted = both(engine, seen, autocast)
        assert relative(found, wanted) < 1e-2
        assert relative(found, last) > 1e-2
        last = found

    # An optimiser's step, an average that is put in place of the weights, a checkpoint.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    network.features(*seen).square().sum().backward()
    optimizer.step()
    moved()
    for parameter in network.parameters():
        parameter.data = parameter.data * 0.8
    moved()
    network.load_state_dict({name: value * 1.2 for name, value in network.state_dict().items()})
    moved()


def test_instructions_are_encoded_once_and_the_vocabulary_is_never_asked(monkeypatch):
    network = make_network("smolvlm")
    engine, seen = Engine(network), observe(3, 2)
    calls = []
    row = network.backbone.prompts._row
    monkeypatch.setattr(network.backbone.prompts, "_row", lambda *a: calls.append(a) or row(*a))
    network.backbone.vlm.lm_head.register_forward_hook(lambda *_: pytest.fail("lm_head was called"))
    with torch.no_grad():
        engine.act(*seen)
        first = len(calls)
        for _ in range(3):
            engine.act(*seen)
    assert len(calls) == first and len(engine._programs) == len(engine._texts) == 1


def test_padded_prompts_of_different_lengths_share_one_program():
    network = make_network("internvl")
    images, _, state = observe(1, 1)
    counts = {}
    for padded in (False, True):
        engine = Engine(network, padded=padded)
        for task in ("slide", "slide a plate"):
            found, wanted = both(engine, (images, [task], state))
            assert relative(found, wanted) < 1e-5
        counts[padded] = len(engine._programs)
    assert counts == {False: 2, True: 1}
    assert [padded_length(n) for n in (1, 32, 33, 65, 129)] == [32, 32, 40, 96, 256]
    assert list(TEXT_LENGTHS) == sorted(TEXT_LENGTHS)


def test_a_rows_numbers_do_not_depend_on_longer_instructions_beside_it():
    # What lets an evaluation put episodes of different tasks into one call (evaluation/batching.py).
    network = make_network("smolvlm", text={"hidden_size": 64, "num_hidden_layers": 3})
    network.backbone.vlm.set_attn_implementation({"text_config": "eager"})
    engine, (images, _, state) = Engine(network), observe(3, 1)
    with torch.no_grad():
        for act in (network.act, engine.act):
            alone = act(images, [TASKS[0]] * 3, state)
            for company in TASKS[1:]:
                assert torch.equal(act(images, [TASKS[0], company, company], state)[0], alone[0])
    assert engine.reason is None


def test_what_is_kept_is_bounded_and_a_copy_starts_anew():
    engine = Engine(make_network("smolvlm"))
    images, _, state = observe(1, 1)
    with torch.no_grad():
        for number in range(20):
            engine.act(images, [f"slide {number}"], state)
    assert len(engine._texts) == 16 and len(engine._programs) <= 16
    assert not copy.deepcopy(engine)._programs


def test_inference_mode_leaves_nothing_behind():
    engine, seen = Engine(make_network("smolvlm")), observe(2, 1)
    with torch.inference_mode():
        first = engine.act(*seen)
    with torch.no_grad():
        assert torch.equal(engine.act(*seen), first)


def test_a_network_made_in_inference_mode_acts():
    with torch.inference_mode():
        engine, seen = Engine(make_network("smolvlm")), observe(1, 1)
        for autocast in (None, torch.bfloat16):
            found, wanted = both(engine, seen, autocast)
            assert relative(found, wanted) < 1e-2


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("family", DEEPER)
def test_the_whole_pass_is_one_graph_for_the_compiler(family, autocast):
    engine, seen = Engine(make_network(family)), observe(2, 2)
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        engine.act(*seen)
        to_pixels, acting = next(iter(engine._encoders.values()))
        _, inputs = engine._prepare(*seen, autocast)
        torch._dynamo.reset()
        found = torch._dynamo.explain(acting)(to_pixels(inputs[:2]), *inputs[2:])
    torch._dynamo.reset()
    assert found.graph_count == 1 and found.graph_break_count == 0, found.break_reasons


@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_the_layers_of_a_stack_are_compiled_once(family):
    network = make_network(family, text={"num_hidden_layers": 5}, vision={"num_hidden_layers": 4})
    engine, seen = Engine(network), observe(1, 1)
    with torch.no_grad():
        wanted = engine.act(*seen)
        to_pixels, acting = next(iter(engine._encoders.values()))
        torch._dynamo.reset()
        counter = CompileCounter()
        for block in (*acting.encoder.blocks, *acting.layers):
            block.compile(fullgraph=True, dynamic=False, backend=counter)
        _, inputs = engine._prepare(*seen, None)
        assert torch.allclose(acting(to_pixels(inputs[:1]), *inputs[1:])[1], wanted, atol=1e-5)
    torch._dynamo.reset()
    assert len(acting.encoder.blocks) == len(acting.layers) == 4
    assert counter.frame_count == 2


def test_layers_that_do_not_compile_run_plainly_and_say_so_once(caplog, monkeypatch):
    def compile_nothing(module, **options):
        def fail(*args, **kwargs):
            raise RuntimeError("no compiler\nwas found")

        module._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", compile_nothing)
    engine = Engine(make_network("smolvlm"), compiled=True)
    with caplog.at_level(logging.WARNING, LOGGER):
        for batch in (1, 2):
            found, wanted = both(engine, observe(batch, 1))
            assert relative(found, wanted) < 1e-5
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert messages == ["The inference engine runs without compiled layers: RuntimeError: no compiler."]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_graph_gives_the_plain_paths_features(family):
    network = make_network(family).cuda()
    engine = Engine(network)
    for batch, seed in ((1, 0), (1, 1), (3, 0), (1, 0)):
        images, tasks, state = observe(batch, 2, seed=seed)
        seen = [image.cuda() for image in images], tasks, state.cuda()
        with torch.no_grad():
            assert torch.allclose(engine.act(*seen), network.act(*seen), atol=1e-3)
        assert engine.reason is None
