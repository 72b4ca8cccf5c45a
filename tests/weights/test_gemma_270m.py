"""Gemma 3 270M (Q4_K_M) as transformers reads the same file: logits, greedy texts, tokenizer.

It comes in four Python packages; without them these tests are skipped, and say why.
"""

import csv
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import logits_of, run
from tiny import LORA, generator_of

import moecl_jax as mj
from moecl_jax.errors import UserError
from moecl_jax.methods import TaskParameters
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.config import AttentionKind, DecoderConfig
from moecl_jax.models.model import Architecture
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.gguf_tokenizer import from_gguf
from moecl_jax.weights.load import load_backbone
from moecl_jax.weights.packaged import packaged_file

pytestmark = pytest.mark.slow

TEXTS = {
    "English": "The capital of France is",
    "Chinese": "中国的首都是北京,人口超过两千万。今天天气",
    "emoji, digits, white space, bytes": "🙂👍🏽 12345  3.14   x\n\n\n\ty\r\n ಠ_ಠ \x07\ue000",
    "longer than the window": " ".join(str(number**2) for number in range(170)),
}


@pytest.fixture(name="file", scope="module")
def fixture_file(tmp_path_factory):
    """The joined file, in a folder that the session deletes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOECL_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            yield packaged_file("gemma3-270m")
        except UserError as error:
            pytest.skip(str(error))


@pytest.fixture(name="backbone", scope="module")
def fixture_backbone(file):
    return load_backbone(file)


@pytest.fixture(name="theirs", scope="module")
def fixture_theirs(file):
    """The model in transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(name="tokenizers", scope="module")
def fixture_tokenizers(file):
    """Ours and that of transformers, which takes half a minute to build."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return from_gguf(read_gguf(file)[0], file), theirs


def test_the_architecture_and_the_size(backbone):
    full, sliding = AttentionKind(), AttentionKind(512, 10_000.0)
    assert backbone.config == DecoderConfig(
        vocabulary_size=262_144,
        width=640,
        ffn_width=2048,
        layers=18,
        heads=4,
        kv_heads=1,
        head_width=256,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        tied_embeddings=True,
        context_length=32_768,
        activation="gelu_tanh",
        qk_norm="before_rotary",
        post_norms=True,
        embedding_scale=640**0.5,
        attention_scale=256**-0.5,
        attention_kinds=(full, sliding),
        layer_kinds=(1, 1, 1, 1, 1, 0) * 3,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(backbone.params)) == 268_098_176
    assert backbone.fingerprint == "c879433109529f58"


@pytest.mark.oracle
@pytest.mark.parametrize("text", TEXTS)
def test_logits_are_those_of_transformers(backbone, theirs, text):
    import torch

    ids = np.array([backbone.tokenizer(TEXTS[text])["input_ids"]], np.int32)
    where = np.arange(ids.size, dtype=np.int32)[None]
    ones = np.ones_like(ids)
    hidden = run(backbone.config, backbone.params, ids, where, ones, 0 * ones, jnp.float32)
    ours = np.asarray(logits_of(backbone.config, backbone.params, hidden))[0]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids.astype(np.int64))).logits[0].numpy()
    assert (ids.size > 512) == (text == "longer than the window")
    assert np.abs(ours - expected).max() < 1e-3


@pytest.mark.oracle
def test_twenty_greedy_tokens_are_those_of_transformers(backbone, theirs):
    """Also after a prompt that is longer than the window."""
    import torch

    texts = [TEXTS[name] for name in ("English", "Chinese", "longer than the window")]
    prompts = [np.array(backbone.tokenizer(text)["input_ids"], np.int32) for text in texts]
    expected = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        written = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(written[0, len(prompt) :].tolist())
    method = SequentialLora(dataclasses.replace(LORA, targets=()))
    plain = StepContext(Architecture(backbone.config, jnp.float32), method, "lm")
    generator = generator_of(plain, backbone.params, context_length=2048)
    active = TaskParameters({"expert": {}}, {}, {})
    written = generator.write(active, prompts, max_tokens=20)
    assert [ids.tolist() for ids in written] == expected
    assert all(len(ids) == 20 for ids in expected)


def assert_same(tokenizers, texts):
    ours, theirs = (each(texts, return_offsets_mapping=True) for each in tokenizers)
    for index, text in enumerate(texts):
        assert ours["input_ids"][index] == theirs["input_ids"][index], text
        assert ours["offset_mapping"][index] == theirs["offset_mapping"][index], text


@pytest.mark.oracle
def test_the_tokenizer_is_that_of_transformers(tokenizers):
    ours, theirs = tokenizers
    assert ours.get_vocab() == theirs.get_vocab()
    contents = [json.loads(each.backend_tokenizer.to_str()) for each in tokenizers]
    assert contents[0]["model"]["merges"] == contents[1]["model"]["merges"]
    assert contents[0]["added_tokens"] == contents[1]["added_tokens"]
    roles = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    assert [getattr(ours, role) for role in roles] == [2, 1, 3, 0]
    assert [getattr(theirs, role) for role in roles] == [2, 1, 3, 0]
    spaces = [f"a{kind * count}b" for kind in (" ", "\n", "\t") for count in range(1, 40)]
    assert_same(
        tokenizers,
        [
            *TEXTS.values(),
            *spaces,
            "<eos><bos>x<start_of_turn>user\n<unused7><h1> <0x41>▁the",
            "👨‍👩‍👧‍👦🏳️‍🌈 ٣ ४ Ⅷ ½ ﬁ 你好\uff0c世界\uff01𠮷 \u200b\u00a0\u3000|",
            "",
        ],
    )


@pytest.mark.oracle
@pytest.mark.shared
def test_the_tokenizer_is_that_of_transformers_on_2000_real_texts(tokenizers, shared):
    texts = []
    for task in ("agnews", "amazon", "dbpedia", "yahoo", "yelp"):
        file = shared / "data" / "mtl5" / task / "test.json"
        texts += [entry["sentence"] for entry in json.loads(file.read_text("utf-8"))[:200]]
    for task in ("gender", "race", "region"):
        with (shared / "data" / "cold" / task / "test.tsv").open(encoding="utf-8") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            texts += [row["comment"] for row in rows][:334]
    assert len(texts) >= 2000
    assert sum(any("一" <= character <= "鿿" for character in text) for text in texts) > 900
    assert_same(tokenizers, texts[:2000])


def test_chinese_tasks_are_learnt_and_answered(file):
    """A few steps of MoE-CL in bfloat16, then labels and free answers."""
    good = ["味道很好", "服务周到", "房间干净", "非常满意", "值得推荐", "物美价廉"]
    bad = ["味道很差", "服务糟糕", "房间很脏", "非常失望", "不要购买", "又贵又差"]
    records: list[dict[str, Any]] = [
        {"text": text, "label": label}
        for texts, label in ((good, "好"), (bad, "坏"))
        for text in texts
    ]
    pairs = [("大", "小"), ("高", "矮"), ("冷", "热"), ("快", "慢"), ("新", "旧"), ("多", "少")]
    mood = mj.Task("mood", train=records, template="评论:{text}\n态度:")
    antonym = mj.Task(
        "antonym",
        train=[{"text": text, "response": response} for text, response in pairs],
        response_field="response",
        template="{text}的反义词是",
    )
    trainer = mj.Trainer(
        mj.load_model(file),
        "moe_cl",
        head="lm",
        epochs=4,
        data={"max_length": 40, "max_response": 8},
        batch={"row_length": 80},
        optimizer={"learning_rate": 1e-3},
    )
    session = trainer.fit([mood, antonym])
    texts = ["味道很好", "又贵又差", "下次还来😀"]
    predictions = session.predict(texts, task="mood")
    assert [each.label for each in predictions[:2]] == ["好", "坏"]
    for each in predictions:
        assert sum(each.probabilities.values()) == pytest.approx(1)
    written = session.generate(["大", "冷", "黑"], task="antonym", max_tokens=4)
    assert len(written) == 3 and all(isinstance(text, str) and text for text in written)
