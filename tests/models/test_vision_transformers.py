# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision transformers where they differ from other families: other sizes, `timm`, towers and heads, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import clip as tiny_clip
from published import siglip as tiny_siglip
from published import vit as tiny

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.models import clip, deit
from tl_jax.nn.residual import drop_path
from tl_jax.tasks import classification


def published(folder, name, **fields):
    """A class of `transformers` with its files in the folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**fields)).eval()
    model.save_pretrained(folder)
    return torch, model


def load_resized(folder, **overrides):
    """The network with these fields over those of its `config.json`, its parameters and the receipt."""
    checkpoint = loading.open_checkpoint(str(folder), overrides=overrides)
    model = loading.abstract(checkpoint)
    loaded = loading.load(checkpoint, model)
    return model, loaded.params, loaded.receipt


def test_vit_takes_images_of_another_size(tmp_path):
    """As `transformers` does with positions that PyTorch has resized, antialiased as in `timm`."""
    torch, reference = published(tmp_path, "ViTModel", **tiny.CONFIGS[0])
    model, params, receipt = load_resized(tmp_path, image_size=20)
    assert "resized  stem/position [1, 10, 16] to [1, 26, 16] (grid)" in str(receipt)

    old = reference.embeddings.position_embeddings.detach()
    square = old[:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(square, (5, 5), mode="bicubic", antialias=True)
    new = torch.cat([old[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    larger = type(reference)(type(reference.config)(**tiny.CONFIGS[0] | {"image_size": 20})).eval()
    larger.load_state_dict({**reference.state_dict(), "embeddings.position_embeddings": new})
    pixels = np.random.default_rng(0).normal(size=(2, 20, 20, 3)).astype(np.float32)
    with torch.no_grad():
        expected = larger(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state

    def run(params):
        batch = {"pixel_values": pixels}
        outputs, _ = chain.run_chains(model, chain.split(model)[0], params, batch, lambda _: chain.EVAL)
        return outputs["last_hidden_state"]

    # Float32 sums of a few dozen terms in another order.
    np.testing.assert_allclose(run(params), expected, atol=1e-4)
    slope = jax.grad(lambda params: (run(params)[:, 0] ** 3).sum())(params)["stem/position"]
    assert np.abs(slope).max() > 0


def test_a_resized_network_is_saved_in_its_new_size(tmp_path):
    """`transformers` loads it at that size, and so do we."""
    _, reference = published(tmp_path / "old", "ViTModel", **tiny.CONFIGS[0])
    checkpoint = loading.open_checkpoint(str(tmp_path / "old"), overrides={"image_size": 20})
    model = loading.abstract(checkpoint)
    loaded = loading.load(checkpoint, model)
    chain.merge_into(model, loaded.params)
    pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published).save(tmp_path / "new")
    again = tl_jax.load_pretrained(tmp_path / "new")
    for path, leaf in loaded.params.items():
        np.testing.assert_array_equal(again.params[path], leaf)
    found, info = type(reference).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and found.config.image_size == 20


def test_vit_takes_other_channels_and_patches(tmp_path):
    """One grey channel gives what three equal ones gave; nothing is resized that was not asked for."""
    _, _ = published(tmp_path, "ViTModel", **tiny.CONFIGS[0])
    grey = np.random.default_rng(0).normal(size=(2, 12, 12, 1)).astype(np.float32)
    expected = tl_jax.load_pretrained(tmp_path)({"pixel_values": np.repeat(grey, 3, axis=3)})["last_hidden_state"]
    model, params, _ = load_resized(tmp_path, num_channels=1)
    chain.merge_into(model, params)
    np.testing.assert_allclose(model({"pixel_values": grey})["last_hidden_state"], expected, atol=1e-5)
    _, params, _ = load_resized(tmp_path, patch_size=6)
    assert params["stem/patch/kernel"].shape == (6, 6, 3, 16) and params["stem/position"].shape == (1, 5, 16)
    with pytest.raises(UserError, match=r"mlp/up/kernel is \[16, 20\], the file has"):
        load_resized(tmp_path, intermediate_size=20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "vit_base_patch16_clip_224"}, "'vit_base_patch16_clip_224' is not built"),
        ({"architecture": "vit_base_patch16_224", "model_args": {"init_values": 0.1}}, "model_args.init_values is 0.1"),
        ({"architecture": "vit_base_patch16_224", "global_pool": "map"}, "global_pool is 'map', only 'token' "),
        ({"architecture": "deit3_base_patch16_224"}, "'deit3_base_patch16_224' is not built; .* deit_SIZE_distilled"),
        ({"architecture": "vit_base_distilled_patch16_224"}, "is not built; there are vit_SIZE_patch16_224"),
        ({"model_type": "swin", "use_absolute_embeddings": True}, "use_absolute_embeddings is True"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head is False"),
        ({"model_type": "swin", "depths": [2, 2]}, "must be of one length"),
    ],
)
def test_what_is_not_built_is_refused(fields, message):
    """Variants whose tensors, or some of them, would fit."""
    with pytest.raises(UserError, match=message):
        loading.from_config(fields)


def test_deit_with_a_teacher_takes_a_new_head(tmp_path):
    """One over the class token; the two published ones are ignored by name."""
    published(tmp_path, "DeiTForImageClassificationWithTeacher", **tiny.CONFIGS[0])
    checkpoint = loading.open_checkpoint(str(tmp_path)).for_pool("cls")
    task = classification.Task(classification.Config(pool="cls"), ("ant", "bee"), deit.POOLS)
    model = loading.abstract(checkpoint, loading.adder(task))
    loaded = loading.load(checkpoint, model, loading.adder(task), fresh=("head/.*",))
    assert len(loaded.receipt.ignored) == 4 and set(loaded.receipt.fresh) == {"head/kernel", "head/bias"}


def test_a_head_over_tokens_that_are_never_normalised_is_refused():
    """Where `timm` has the last norm behind the mean, the class token's feature has no scale to learn from."""
    checkpoint = loading.from_config({"architecture": "vit_base_patch16_224", "global_pool": "avg"})
    assert checkpoint.for_pool("pooler").config.pooler
    with pytest.raises(UserError, match="task.options.pool: is 'cls', but the last norm.*pool=pooler"):
        checkpoint.for_pool("cls")


def test_dinov2_without_a_head_has_the_class_token_as_pooled(tmp_path):
    """With registers, and in the file of the bare class."""
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
    torch, reference = published(tmp_path, "Dinov2WithRegistersModel", **fields, num_register_tokens=3)
    pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = tl_jax.load_pretrained(tmp_path)({"pixel_values": pixels})
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_swin_takes_images_of_any_size_that_holds_a_window(tmp_path):
    """Not square, other than the config's; too small is refused with the limit."""
    fields = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "image_size": 16, "patch_size": 2}
    torch, reference = published(tmp_path, "SwinModel", **fields, window_size=3)
    loaded = tl_jax.load_pretrained(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(2, 27, 18, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = loaded({"pixel_values": pixels})
    np.testing.assert_allclose(found["last_hidden_state"], expected.last_hidden_state, atol=1e-4)
    with pytest.raises(UserError, match="12 pixels or more"):
        loaded({"pixel_values": pixels[:, :8, :8]})


def test_drop_path_keeps_or_drops_whole_examples():
    """And scales what it keeps."""
    x = np.ones((64, 3, 2), np.float32)
    found = np.asarray(drop_path(x, 0.5, jax.random.key(0)))
    assert set(np.unique(found)) == {0.0, 2.0}
    assert (found == found[:, :1, :1]).all() and 10 < (found[:, 0, 0] > 0).sum() < 54
    assert drop_path(x, 0.5, None) is x


@pytest.mark.parametrize(("family", "name"), [(tiny_clip, "CLIP"), (tiny_siglip, "Siglip")])
def test_a_head_on_two_towers_reads_the_image_tower_alone(family, name, tmp_path):
    """The text tower's tensors are ignored by name; the feature is the bare tower's."""
    published(tmp_path / "both", f"{name}Model", **family.CONFIGS[0])
    torch, reference = published(tmp_path / "alone", f"{name}VisionModel", **family.CONFIGS[0]["vision_config"])
    pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    alone = tl_jax.load_pretrained(tmp_path / "alone")
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for output in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(alone({"pixel_values": pixels})[output], expected[output], atol=1e-5)

    checkpoint = loading.open_checkpoint(str(tmp_path / "both")).for_pool("pooler")
    loaded = loading.load(checkpoint, loading.abstract(checkpoint))
    assert loaded.params.keys() == alone.params.keys()
    others = ("text_model", "text_projection", "visual_projection", "logit_")
    assert loaded.receipt.ignored and all(name.startswith(others) for name in loaded.receipt.ignored)
    with pytest.raises(UserError, match="has no input_ids"):
        tl_jax.load_pretrained(tmp_path / "both")({"pixel_values": pixels})


def test_clips_image_tower_may_have_its_projection(tmp_path):
    """Not of length 1, as `transformers` gives it; a task's head reads the tower without it."""
    torch, reference = published(tmp_path, "CLIPVisionModelWithProjection", **tiny_clip.CONFIGS[0]["vision_config"])
    pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    loaded = tl_jax.load_pretrained(tmp_path)
    found = loaded({"pixel_values": pixels})
    for output in ("last_hidden_state", "image_embeds"):
        np.testing.assert_allclose(found[output], expected[output], atol=1e-5)
    loaded.save(tmp_path / "saved")
    _, info = type(reference).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    checkpoint = loading.open_checkpoint(str(tmp_path)).for_pool("pooler")
    headless = loading.load(checkpoint, loading.abstract(checkpoint))
    assert loaded.params.keys() - headless.params.keys() == {"pool/projection/kernel"}
    assert headless.receipt.ignored == ("visual_projection.weight",)


def test_texts_end_where_clip_says():
    """At the first end, or at the largest id where the config is of the first files."""
    ids = np.array([[5, 9, 7, 7], [3, 7, 9, 2]])
    np.testing.assert_array_equal(clip.ends(ids, 7), [2, 1])
    np.testing.assert_array_equal(clip.ends(ids, 2), [1, 2])


def test_a_network_cast_to_bfloat16_stays_there():
    """Tables of words and positions included; the logits too."""
    texts = {"input_ids": np.ones((2, 7), np.int32)}
    fields = {"model_type": "clip", **tiny_clip.CONFIGS[0]}
    model = loading.abstract(loading.from_config(fields))
    chains, params = chain.split(model)
    batch = {"pixel_values": np.ones((3, 12, 12, 3), np.float32), **texts}

    def run(params):
        return chain.run_chains(model, chains, params, batch, lambda _: chain.EVAL, dtype=jnp.bfloat16)[0]

    assert {leaf.dtype for leaf in jax.eval_shape(run, params).values()} == {jnp.dtype(jnp.bfloat16)}
