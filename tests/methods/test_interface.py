"""What every method promises: its options in a config, its name, its parts; and how trees grow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import context_with, inputs_of, random_trees, trees
from streams import assert_bit_equal
from tiny import (
    CONFIG,
    LORA,
    OPTIMIZER,
    TASKS,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    starting_of,
)

from moecl_jax.data.rehearsal import AllTasks, ExamplePolicy, Reservoir
from moecl_jax.errors import UserError
from moecl_jax.methods import (
    METHODS,
    Method,
    NoOptions,
    Penalty,
    TaskEnd,
    TaskStart,
    Traits,
    check_method,
    find_method,
    register,
    spec_of,
)
from moecl_jax.methods.few_shot import Options as FewShotOptions
from moecl_jax.methods.few_shot import Shown
from moecl_jax.methods.moe_cl import Adversarial, MoeCl
from moecl_jax.methods.moe_cl import Options as MoeClOptions
from moecl_jax.methods.o_lora import OLora
from moecl_jax.methods.options import from_sections, to_sections
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.methods.stream import StreamState, in_corner
from moecl_jax.models.settings import Lora
from moecl_jax.runs.settings import Settings, settings_of
from moecl_jax.training.steps import init_train_state, loss, train_step

# Options


@pytest.mark.parametrize("name", METHODS)
def test_options_come_back_out_of_their_sections(name):
    method = METHODS[name]
    default = method.Options()
    assert from_sections(method, to_sections(method, default)) == default
    assert from_sections(method, {}) == default
    assert method().options == default


def test_a_field_that_is_a_section_has_its_own_name_in_a_config():
    options = MoeClOptions("moving", adversarial=Adversarial("confusion", 0.3, "sum"))
    sections = to_sections(MoeCl, options)
    adversarial = {"objective": "confusion", "alpha": 0.3, "reduction": "sum", "past": "none"}
    own = {"shared": "moving", "snapshot_dtype": "float32", "frozen_after": 1, "directions": 64}
    meta = {"kind": "none", "support": 0, "inner_steps": 4, "outer_steps": 100}
    meta |= {"inner_rate": 0.1, "learning_rate": 0.1}
    assert sections == {"moe_cl": own, "adversarial": adversarial, "meta": meta}
    assert from_sections(MoeCl, sections) == options
    assert MoeCl(shared="moving", adversarial=adversarial).options == options
    partly = from_sections(MoeCl, {"adversarial": {"alpha": 2}})
    assert partly == MoeClOptions(adversarial=Adversarial(alpha=2.0))
    assert to_sections(SequentialLora, NoOptions()) == {}


def test_a_method_made_in_python_is_the_one_that_its_settings_make():
    made = MoeCl(Lora(rank=3, alpha=5.0), shared="moving", adversarial=Adversarial("off"))
    settings = Settings().changed(settings_of(made))
    assert settings.method == "moe_cl"
    again = settings.method_object()
    assert type(again) is MoeCl
    assert (again.lora, again.options) == (made.lora, made.options)
    assert Settings.from_mapping(settings.to_mapping()) == settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoeCl(shares="moving"), "unknown config key 'moe_cl.shares'; did you mean"),
        (lambda: OLora(composed="yes"), "config: o_lora.composed = 'yes' must be True or False"),
        (lambda: Adversarial("of"), "adversarial.objective = 'of' is not one of paper, original"),
        (
            lambda: from_sections(MoeCl, {"adversarial": {"alpa": 1.0}}),
            "unknown config key 'adversarial.alpa'; did you mean 'adversarial.alpha'",
        ),
        (
            lambda: from_sections(MoeCl, {"adversarial": {"alpha": "much"}}),
            "config: adversarial.alpha = 'much' must be a number",
        ),
        (
            lambda: from_sections(MoeCl, {"moe_cl": {"shared": 1}}),
            "config: moe_cl.shared = 1 must be a text",
        ),
        (
            lambda: from_sections(MoeCl, {"adversarial": 1.0}),
            "config: adversarial = 1.0 must be a section of keys and values",
        ),
        (
            lambda: MoeCl(adversarial={"alpa": 1.0}),
            "unknown config key 'adversarial.alpa'; did you mean 'adversarial.alpha'",
        ),
        (lambda: MoeCl(adversarial="off"), "config: adversarial = 'off' must be a section of keys"),
        (lambda: OLora(wait=1.0), "unknown config key 'o_lora.wait'; did you mean"),
        (lambda: SequentialLora(weight=1.0), "unknown config key 'sequential_lora.weight'"),
    ],
)
def test_options_that_do_not_exist_or_have_another_type_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Decay:
    """A section of a user's, without checks of its own."""

    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """Options of a user's, an ordinary dataclass."""

    strength: int = 1
    decay: Decay = Decay()


class Own(SequentialLora):
    """A method of a user's."""

    name = "own"
    Options = OwnOptions


def test_a_user_s_options_are_sections_too():
    values = {"method": spec_of(Own), "own": {"strength": 2}, "decay": {"rate": 1}}
    settings = Settings.from_mapping(values)
    assert settings.to_mapping()["decay"] == {"rate": 1.0}
    options = settings.method_object().options
    assert options == OwnOptions(2, Decay(1.0))
    assert settings_of(Own(strength=2)) == {
        "method": f"{__name__}:Own",
        "lora": Lora(),
        "own": {"strength": 2},
        "decay": {"rate": 0.5},
    }


def test_a_user_s_section_does_not_hide_one_of_the_config():
    @dataclasses.dataclass(frozen=True)
    class Hiding:
        batch: Decay = Decay()

    class Hides(SequentialLora):
        name = "hides"
        Options = Hiding

    with pytest.raises(UserError, match="method 'hides': 'batch' is a config key already"):
        Settings.from_mapping({"method": spec_of(find_method(Hides))})


# Names


def test_methods_are_found_by_name_by_path_and_as_classes():
    assert find_method("moe_cl") is MoeCl
    assert find_method(f"{__name__}:Own") is Own
    assert find_method(Own) is Own
    assert find_method("moecl_jax.methods.o_lora:OLora") is OLora
    assert spec_of(OLora) == "o_lora"
    assert spec_of(Own) == f"{__name__}:Own"


def test_a_class_that_cannot_be_imported_is_found_once_it_was_passed():
    class Local(SequentialLora):
        name = "local"

    find_method(Local)
    assert find_method(spec_of(Local)) is Local


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moe", "config: method = 'moe' is not one of ewc, .*; one of your own is named 'package"),
        ("no_such_module:Own", "method 'no_such_module:Own': there is no module 'no_such_module'"),
        (f"{__name__}:Missing", "has no 'Missing'"),
        (f"{__name__}:Decay", "the class Decay does not inherit from moecl_jax.methods.base.Me"),
        (dict, "<class 'dict'> is no method: expected a subclass of moecl_jax.Method"),
    ],
)
def test_what_is_no_method_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find_method(name)


def test_registered_methods_are_known_by_name(monkeypatch):
    monkeypatch.setitem(METHODS, "own", Own)  # taken out again after the test
    del METHODS["own"]
    assert register(Own) is Own
    assert register(Own) is Own  # twice changes nothing
    assert find_method("own") is Own
    assert spec_of(Own) == "own"
    with pytest.raises(UserError, match=r"a method named 'own' is known already \(test_.*\.Own\)"):
        register(type("Other", (Own,), {}))
    assert METHODS["own"] is Own


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    strength: int


class Unnamed(SequentialLora):
    name = 3


class Spaced(SequentialLora):
    name = "two words"


class Demanding(SequentialLora):
    name = "demanding"
    Options = WithoutDefault


class Nameless(Method):
    def init_shared(self, key, sizes, task_count):
        del key, sizes, task_count
        return {}

    def adapter(self, parameters, query=None):
        del parameters, query
        return {"expert": {}}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (3, "3 is no method"),
        (SequentialLora(), "is no method"),
        (Method, "method moecl_jax.methods.base:Method lacks adapter, init_shared; define them"),
        (Nameless, "Nameless: name = None must be a text of letters, digits and '_'"),
        (Unnamed, "Unnamed: name = 3 must be a text"),
        (Spaced, "Spaced: name = 'two words' must be a text"),
        (Demanding, "Demanding: Options must be a dataclass whose fields all have defaults"),
    ],
)
def test_incomplete_methods_are_refused_with_what_they_lack(method, message):
    before = dict(METHODS)
    for refuse in (check_method, register):
        with pytest.raises(UserError, match=message):
            refuse(method)
    assert before == METHODS


# Traits and defaults


def test_what_the_built_in_methods_declare():
    per_task = {name for name, method in METHODS.items() if method().traits.expert_per_task}
    assert per_task == {"moe_cl", "per_task", "few_shot", "knn", "retrieval"}
    assert OLora(composed=False).traits.expert_per_task
    assert not OLora().traits.expert_per_task  # an object's traits are its own
    outputs = {name: method.traits.output for name, method in METHODS.items()}
    assert {n: o for n, o in outputs.items() if o != "any"} == {
        "lwf": "lm",
        "few_shot": "lm",
        "retrieval": "lm",
        "zero_shot": "lm",
        "replay": "shared",
        "joint": "shared",
    }
    assert [name for name, method in METHODS.items() if method.traits.trains_llm] == [
        "sequential_full"
    ]
    assert [name for name, method in METHODS.items() if method().traits.reads_query] == [
        "gain_lora",
        "mocl",
    ]
    assert [name for name, method in METHODS.items() if method.traits.reads_moments] == ["inf_lora"]
    no_single = {name for name, method in METHODS.items() if method().traits.no_single_lora}
    untrained = {name for name, method in METHODS.items() if not method.traits.trains}
    assert untrained == {"zero_shot", "few_shot", "knn", "retrieval"}
    precedes = {name for name, method in METHODS.items() if method.traits.precedes}
    assert precedes == {"few_shot", "retrieval"}
    assert [name for name, method in METHODS.items() if method.traits.votes] == ["knn"]
    assert no_single == {"moe_cl", "mocl", "gain_lora", "sequential_full", *untrained}
    assert MoeCl.traits.experts == ("shared", "task")
    assert METHODS["replay"](memory=7, batch=2).examples == Reservoir(7, 2)
    assert isinstance(METHODS["joint"]().examples, AllTasks)
    assert METHODS["few_shot"](k=2).examples == Shown(FewShotOptions(k=2))
    own_alone = set(METHODS) - {"replay", "joint", "few_shot", "retrieval"}
    assert all(type(METHODS[name]().examples) is ExamplePolicy for name in own_alone)


def test_a_method_of_two_functions_adds_nothing_and_keeps_nothing():
    class Least(Nameless):
        name = "least"

    method = Least()
    assert (method.traits, method.options, method.lora) == (Traits(), NoOptions(), Lora())
    parameters = trees({}, {"kept": jnp.ones(2)})
    penalty = method.penalty(parameters, inputs_of())
    assert (float(penalty.term), float(penalty.adversarial)) == (0.0, 0.0)
    assert penalty.reported is None and penalty.metrics == {}
    assert method.init_expert(jax.random.key(0), CONFIG) == {}
    assert method.init_memory(CONFIG, TASKS) == {}
    start = TaskStart(0, jax.random.key(0), CONFIG)
    assert method.begin_task(parameters, start) is parameters.memory
    assert method.finish_task(parameters, TaskEnd(0, jax.random.key(0), CONFIG)) is parameters
    assert method.llm_weights(frozen_params(), {}) is frozen_params()


@pytest.mark.parametrize("reported", [None, 0.25])
def test_a_penalty_is_differentiated_and_what_it_reports_is_logged(reported):
    class Added(SequentialLora):
        name = "added"

        def penalty(self, parameters, inputs):
            del inputs
            size = jnp.sum(parameters.shared["expert"]["up_proj"]["a"] ** 2)
            seen = None if reported is None else reported * size
            return Penalty(size, seen, adversarial=3.0 * size, metrics={"size": size})

    contexts = [context_with(kind(LORA)) for kind in (Added, SequentialLora)]
    parameters = random_trees(contexts[0])
    batch = batch_of(random_examples([3, 5]), "lm", training=True)
    found = []
    for context in contexts:
        state = init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))
        step = jax.jit(functools.partial(jax.value_and_grad(loss, has_aux=True), context=context))
        found.append(step(state.active, state, frozen_params(), batch))
    ((total, metrics), gradients), ((plain, _), without) = found
    size = float(metrics["size"])
    assert size > 0.1
    assert float(total) == pytest.approx(float(plain) + size, rel=1e-6)
    assert float(metrics["loss_instruction"]) == float(plain)
    logged = size if reported is None else reported * size
    assert float(metrics["loss"]) == pytest.approx(float(plain) + logged, rel=1e-6)
    assert float(metrics["loss_adversarial"]) == pytest.approx(3.0 * size, rel=1e-6)
    assert set(metrics) == {"loss", "loss_instruction", "loss_adversarial", "size"}
    for target, factors in gradients.shared["expert"].items():
        slope = 2.0 * parameters.shared["expert"][target]["a"] if target == "up_proj" else 0.0
        expected = without.shared["expert"][target]["a"] + slope
        np.testing.assert_allclose(factors["a"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(factors["b"], without.shared["expert"][target]["b"])


# What a method returns may be what it was given


class Returning(SequentialLora):
    """Keeps the shared tree itself, twice, in its memory."""

    name = "returning"

    def init_memory(self, sizes, task_count):
        shared = self.init_shared(jax.random.key(0), sizes, task_count)
        return {"start": shared, "again": shared}

    def begin_task(self, parameters, start):
        del start
        return {"start": parameters.shared, "again": parameters.shared}

    def penalty(self, parameters, inputs):
        del inputs
        shared, start = parameters.shared, parameters.memory["start"]
        moved = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), shared, start)
        return Penalty(1e-3 * sum(jax.tree.leaves(moved)))

    def finish_task(self, parameters, end):
        del end
        return parameters.replace(memory={"start": parameters.shared, "again": parameters.shared})


def test_a_step_that_overwrites_its_state_leaves_what_a_method_was_given():
    method = Returning(LORA)
    context, batch = context_with(method), batch_of(random_examples([3, 5]), "lm", training=True)
    parameters = random_trees(context)
    step = jax.jit(
        functools.partial(train_step, context=context, optimizer=OPTIMIZER), donate_argnums=0
    )
    for _ in range(2):  # two tasks, the second of which begins with what the first one left
        start = TaskStart(0, jax.random.key(1), CONFIG)
        state = init_train_state(method, OPTIMIZER, parameters, jax.random.key(0), start)
        begun = jax.tree.map(np.array, parameters)
        for _ in range(2):
            state, _ = step(state, frozen_params(), batch, jnp.float32(1e-2))
        for kept in state.memory.values():
            assert_bit_equal(kept, begun.shared)
        assert_bit_equal(parameters, begun)
        parameters = method.finish_task(state.answering, TaskEnd(0, state.key, CONFIG))


# Trees grow in their corner


def test_what_was_saved_is_put_into_the_corner_of_what_is_fresh():
    saved = {"rows": np.array([[1.0, 2.0], [3.0, 4.0]]), "same": np.array([5.0])}
    fresh = {"rows": np.full((3, 2), 9.0), "same": np.array([8.0])}
    grown = in_corner(saved, fresh)
    np.testing.assert_array_equal(grown["rows"], [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    assert grown["same"] is saved["same"]
    np.testing.assert_array_equal(fresh["rows"], np.full((3, 2), 9.0))
    both = in_corner(np.ones((1, 2)), np.zeros((2, 3)))
    np.testing.assert_array_equal(both, [[1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [
        ({"a": np.ones(2)}, {"a": np.zeros(3), "b": np.zeros(3)}),
        ({"a": np.ones(2)}, {}),
        ({}, {"a": np.zeros(3)}),
        ({"a": np.ones(4)}, {"a": np.zeros(3)}),
        ({"a": np.ones((4, 1))}, {"a": np.zeros((3, 2))}),
        ({"a": np.ones(2)}, {"a": np.zeros((3, 3))}),
        ({"a": np.ones(())}, {"a": np.zeros(3)}),
    ],
)
def test_what_does_not_fit_stays_as_it_was_saved(saved, fresh):
    kept = in_corner(saved, fresh)
    assert kept.keys() == saved.keys()
    for name, leaf in saved.items():
        assert kept[name] is leaf


def test_a_discriminator_s_new_rows_are_those_of_a_longer_stream():
    starting = starting_of(context_of())
    short, long = starting.stream(2), starting.stream(TASKS)
    # A row depends on its own task alone, so that tasks can be added.
    rows = long.shared["discriminator"]
    np.testing.assert_array_equal(rows[:, :2], short.shared["discriminator"])
    learned = jax.tree.map(lambda leaf: leaf + 1.0, short.shared)
    saved = StreamState(learned, {"a": None, "b": None})
    grown = starting.extended(saved, TASKS)
    assert list(grown.finished) == ["a", "b"]
    for part in ("expert", "gate"):
        assert_bit_equal(grown.shared[part], learned[part])
    np.testing.assert_array_equal(grown.shared["discriminator"][:, :2], learned["discriminator"])
    np.testing.assert_array_equal(grown.shared["discriminator"][:, 2:], rows[:, 2:])
    assert_bit_equal(starting.extended(grown, TASKS).shared, grown.shared)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_trees_grow_to_the_shapes_of_a_longer_stream(name):
    starting = starting_of(context_with(METHODS[name](LORA)))
    short, long = (
        jax.tree.map(np.asarray, (stream.shared, stream.memory))
        for stream in (starting.stream(1), starting.stream(TASKS))
    )
    grown = starting.extended(StreamState(short[0], {}, short[1]), TASKS)
    shapes = [jax.tree.map(np.shape, tree) for tree in ((grown.shared, grown.memory), long)]
    assert shapes[0] == shapes[1]
    assert_bit_equal((grown.shared, grown.memory), long)  # nothing was learnt yet
