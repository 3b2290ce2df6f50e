"""Vision transformers and ConvNeXt V2: against plain formulas, against timm where it is, and in use."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kclf
from kclf.backbones import build_backbone, split_backbone, transformers
from kclf.backbones.convnext import CONVNEXTS, ConvNeXtPlan, convnext
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan, transformer
from kclf.errors import BackboneError
from kclf.layers.tokens import GlobalResponseNormalization, resampling_matrix
from kclf.weights import from_torch, layer_keys, to_torch
from tests.conftest import with_random_logits

TINY = {
    "token": TransformerPlan(32, 2, 4, patch=4, grid=6),
    "token_and_mean": TransformerPlan(
        32, 2, 4, patch=4, grid=7, reading="token_and_mean", interpolation="dinov2", layer_scale=True
    ),
    "registers": TransformerPlan(
        32,
        2,
        4,
        patch=4,
        grid=7,
        reading="token_and_mean",
        interpolation="dinov2_registers",
        layer_scale=True,
        registers=4,
    ),
    "attention": TransformerPlan(
        32, 2, 4, patch=4, grid=6, reading="attention", interpolation="bicubic", activation="gelu_tanh"
    ),
}


@pytest.fixture(autouse=True)
def _tiny_transformers(monkeypatch):
    for name, plan in TINY.items():
        monkeypatch.setitem(TRANSFORMERS, name, plan)
    monkeypatch.setitem(CONVNEXTS, "convnext", ConvNeXtPlan((1, 1, 2, 1), 8))
    monkeypatch.setitem(CONVNEXTS, "convnextv2", ConvNeXtPlan((1, 1, 2, 1), 8, response=True))


def randomized(model: keras.Model) -> dict[str, torch.Tensor]:
    """Give every variable random values; returns them under timm's names, ready for gradients."""
    generator = torch.Generator().manual_seed(0)
    for variable in model.variables:
        values = torch.randn(variable.shape, generator=generator)
        scale = 0.3 if len(variable.shape) < 2 else float(np.prod(variable.shape[:-1])) ** -0.5
        centre = 1.0 if variable.name == "gamma" else 0.0
        variable.assign(centre + scale * values)
    return {name: tensor.clone().requires_grad_() for name, tensor in to_torch(model, "timm").items()}


# ---- the reference: the papers' formulas in plain torch, on timm's names --------------------


def norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def dense(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    return (weights @ v).permute(0, 2, 1, 3).flatten(2)


def mlp(x: torch.Tensor, state: dict[str, torch.Tensor], name: str, plan: TransformerPlan) -> torch.Tensor:
    approximate = "tanh" if plan.activation == "gelu_tanh" else "none"
    return dense(F.gelu(dense(x, state, f"{name}.fc1"), approximate=approximate), state, f"{name}.fc2")


def positions(plan: TransformerPlan, stored: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions of patches (1, grid * grid, channels) on another grid, by torch's own `interpolate`."""
    if rows == columns == plan.grid:
        return stored
    square = stored.reshape(1, plan.grid, plan.grid, -1).permute(0, 3, 1, 2)
    if plan.interpolation == "dinov2":
        factors = ((rows + 0.1) / plan.grid, (columns + 0.1) / plan.grid)
        square = F.interpolate(square, scale_factor=factors, mode="bicubic")
    else:
        antialias = plan.interpolation != "bicubic"
        square = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=antialias)
    return square.flatten(2).transpose(1, 2)


def reference(plan: TransformerPlan, state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=plan.patch)
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    first = int("cls_token" in state)
    x = x + positions(plan, state["pos_embed"][:, first:], rows, columns)
    if first:
        token = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
        registers = [state["reg_token"].expand(len(x), -1, -1)] if plan.registers else []
        x = torch.cat([token, *registers, x], 1)
    for block in range(plan.depth):
        at = f"blocks.{block}"
        scales = [state[f"{at}.ls{i}.gamma"] if plan.layer_scale else 1.0 for i in (1, 2)]
        q, k, v = dense(norm(x, state, f"{at}.norm1"), state, f"{at}.attn.qkv").chunk(3, -1)
        x = x + scales[0] * dense(mix(q, k, v, plan.num_heads), state, f"{at}.attn.proj")
        x = x + scales[1] * mlp(norm(x, state, f"{at}.norm2"), state, f"{at}.mlp", plan)
    x = norm(x, state, "norm")
    if plan.reading == "token":
        return x[:, 0]
    if plan.reading == "token_and_mean":
        return torch.cat([x[:, 0], x[:, 1 + plan.registers :].mean(1)], 1)
    query = dense(state["attn_pool.latent"].expand(len(x), -1, -1), state, "attn_pool.q")
    key, value = dense(x, state, "attn_pool.kv").chunk(2, -1)
    x = dense(mix(query, key, value, plan.num_heads), state, "attn_pool.proj")
    return (x + mlp(norm(x, state, "attn_pool.norm"), state, "attn_pool.mlp", plan))[:, 0]


def convnext_reference(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    def channels_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x.permute(0, 2, 3, 1), state, name).permute(0, 3, 1, 2)

    x = F.conv2d(pixels, state["stem.0.weight"], state["stem.0.bias"], stride=4)
    x = channels_norm(x, "stem.1")
    for stage, depth in enumerate((1, 1, 2, 1)):
        if stage:
            at = f"stages.{stage}.downsample"
            x = F.conv2d(
                channels_norm(x, f"{at}.0"), state[f"{at}.1.weight"], state[f"{at}.1.bias"], stride=2
            )
        for block in range(depth):
            at = f"stages.{stage}.blocks.{block}"
            weight = state[f"{at}.conv_dw.weight"]
            y = F.conv2d(x, weight, state[f"{at}.conv_dw.bias"], padding=3, groups=len(weight))
            y = dense(norm(y.permute(0, 2, 3, 1), state, f"{at}.norm"), state, f"{at}.mlp.fc1")
            y = F.gelu(y)
            if f"{at}.mlp.grn.weight" in state:
                length = y.square().sum((1, 2), keepdim=True).sqrt()
                share = length / (length.mean(-1, keepdim=True) + 1e-6)
                y = y + state[f"{at}.mlp.grn.weight"] * (y * share) + state[f"{at}.mlp.grn.bias"]
            y = dense(y, state, f"{at}.mlp.fc2") * state.get(f"{at}.gamma", 1.0)
            x = x + y.permute(0, 3, 1, 2)
    return channels_norm(x, "head.norm").permute(0, 2, 3, 1)


def gradients_by_timm_name(model: keras.Model) -> dict[str, torch.Tensor]:
    for variable in model.variables:
        gradient = variable.value.grad
        variable.assign(torch.zeros_like(variable.value) if gradient is None else gradient)
    return to_torch(model, "timm")


def assert_same_features_and_gradients(model, state, formula, pixels, *, accelerated):
    expected = formula(state, pixels)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    if accelerated:
        kclf.accelerate(model)
    found = model(pixels.permute(0, 2, 3, 1), training=True)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    largest = max(float(tensor.grad.abs().max()) for tensor in state.values())
    for name, gradient in gradients_by_timm_name(model).items():
        torch.testing.assert_close(gradient, state[name].grad, rtol=0, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("sides", [1, (5, 8)])
def test_a_transformer_gives_the_papers_features_and_gradients(name, sides, accelerated):
    plan = TINY[name]
    rows, columns = (plan.grid, plan.grid) if sides == 1 else sides
    model = transformer(name, (rows * plan.patch, columns * plan.patch, 3))
    pixels = torch.rand(2, 3, rows * plan.patch, columns * plan.patch)
    state = randomized(model)
    assert_same_features_and_gradients(
        model, state, lambda s, x: reference(plan, s, x), pixels, accelerated=accelerated
    )


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", ["convnext", "convnextv2"])
def test_a_convnext_gives_the_papers_features_and_gradients(name, accelerated):
    model = convnext(name, (64, 32, 3))
    pixels = torch.rand(2, 3, 64, 32)
    state = randomized(model)
    assert_same_features_and_gradients(model, state, convnext_reference, pixels, accelerated=accelerated)


def test_open_sides_take_any_size():
    model = transformer("token_and_mean")
    assert model.output_shape == (None, 64)
    assert model(np.zeros((1, 12, 20, 3), "float32")).shape == (1, 64)


@pytest.mark.parametrize("name", [*TINY, "convnext", "convnextv2"])
def test_nothing_of_them_is_left_to_keras_by_the_plan(name):
    model = (transformer if name in TINY else convnext)(name, (32, 32, 3) if "conv" in name else (24, 24, 3))
    kclf.accelerate(model)
    assert model.call.plan.fallback == []


@pytest.mark.parametrize("interpolation", ["timm", "dinov2", "dinov2_registers", "bicubic"])
@pytest.mark.parametrize("sides", [(12, 16), (14, 7), (37, 37)])
def test_positions_are_resampled_as_each_source_does(interpolation, sides):
    plan = TransformerPlan(8, 1, 1, patch=1, grid=14, interpolation=interpolation)
    stored = torch.randn(1, 14 * 14, 8)
    lines, across = (torch.from_numpy(resampling_matrix(14, side, interpolation)) for side in sides)
    found = torch.einsum("rg,ch,ghd->rcd", lines, across, stored.reshape(14, 14, 8)).flatten(0, 1)
    torch.testing.assert_close(found, positions(plan, stored, *sides)[0], rtol=0, atol=2e-6)


def test_a_side_that_the_patch_does_not_divide_names_two_that_it_does():
    with pytest.raises(BackboneError, match=r"DINOv2S14.*14 x 14.*224 or 238"):
        build_backbone("DINOv2S14", weights=None, input_shape=(230, 224, 3))


def test_global_response_normalization_starts_as_the_identity():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(GlobalResponseNormalization()(x), x)


# ---- against the sources themselves --------------------

TIMM = {
    "ViTS16": ("vit_small_patch16_224", {}),
    "ViTB16": ("vit_base_patch16_224", {}),
    "ViTB32": ("vit_base_patch32_224", {}),
    "ViTL16": ("vit_large_patch16_224", {}),
    **{
        f"DINOv2{size}14{suffix}": (f"vit_{word}_patch14_{middle}dinov2", {})
        for size, word in {"S": "small", "B": "base", "L": "large"}.items()
        for suffix, middle in {"": "", "Registers": "reg4_"}.items()
    },
    "SigLIP2B16": ("vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}),
    **{f"ConvNeXt{size}22k": (f"convnext_{size.lower()}", {}) for size in ("Tiny", "Small", "Base", "Large")},
    "ConvNeXtXLarge22k": ("convnext_xlarge", {}),
    **{
        f"ConvNeXtV2{size}": (f"convnextv2_{size.lower()}", {})
        for size in ("Atto", "Femto", "Pico", "Nano", "Tiny", "Base")
    },
}
OFTEN = ["ViTS16", "DINOv2S14", "DINOv2S14Registers", "ConvNeXtV2Atto"]


def test_every_name_has_its_model_in_timm():
    assert TIMM.keys() == {*TRANSFORMERS, *CONVNEXTS} - {*TINY, "convnext", "convnextv2"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.heavy) for name in TIMM]
)
def test_every_tensor_of_timm_has_its_place_and_gives_the_same(name):
    timm = pytest.importorskip("timm", reason="timm is not installed: nothing to compare with")
    word, options = TIMM[name]
    dynamic = {"dynamic_img_size": True} if name in TRANSFORMERS else {}
    theirs = timm.create_model(word, num_classes=0, **dynamic, **options).eval()
    plan = TRANSFORMERS.get(name)
    # Other grids are resampled by timm in its own way: that of ViT's positions is also the one here.
    grid = (4, 6) if plan is None or plan.interpolation == "timm" else (plan.grid, plan.grid)
    sides = [(16 if plan is None else plan.patch) * patches for patches in grid]
    ours = build_backbone(name, weights=None, input_shape=(*sides, 3))
    report = from_torch(ours, theirs.state_dict())
    assert len(report.matched) == len(theirs.state_dict())
    pixels = torch.rand(1, 3, *sides)
    with torch.no_grad():
        maps = theirs.forward_features(pixels)
        if name in CONVNEXTS:
            expected = theirs.head.norm(maps).permute(0, 2, 3, 1)
        elif name.startswith("DINOv2"):
            expected = torch.cat([maps[:, 0], maps[:, theirs.num_prefix_tokens :].mean(1)], 1)
        else:
            expected = theirs.forward_head(maps, pre_logits=True)
        found = ours(pixels.permute(0, 2, 3, 1), training=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---- in use --------------------


@pytest.fixture
def tiny_classifier(monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TransformerPlan(24, 12, 2, patch=8, grid=4))
    return lambda **options: with_random_logits(
        kclf.ImageClassifier("ViTS16", ["cat", "dog"], size=32, weights=None, hidden=(), **options)
    )


def test_groups_are_the_stem_with_half_of_the_blocks_and_the_other_half():
    model = transformer("token", (24, 24, 3))
    groups = split_backbone(build_backbone("ViTS16", weights=None), "ViTS16")
    names = [[layer.name for layer in group] for group in groups]
    assert names[0][:2] == ["patch_embed_proj", "tokens"]
    assert names[0][-1] == "block6_mlp_fc2"
    assert (names[1][0], names[1][-1]) == ("block7_norm1", "norm")
    assert [key for key in layer_keys(model) if "#" in key] == []


@pytest.mark.parametrize(
    "dtype", ["float32", "mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.heavy)]
)
def test_a_transformer_trains_and_comes_back_from_its_file(tiny_classifier, tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("uint8")
    labels = np.array([0, 1] * 4)
    model = tiny_classifier(dtype=dtype)
    model.unfreeze()
    model.compile(keras.optimizers.AdamW(1e-3))
    before = [variable.numpy().copy() for variable in model.backbone.variables]
    model.fit(pixels, labels, batch_size=4, epochs=8 if dtype == "mixed_float16" else 1, verbose=0)
    after = [variable.numpy() for variable in model.backbone.variables]
    assert sum(not np.array_equal(*pair) for pair in zip(before, after, strict=True)) > 40
    model.save(tmp_path / "vit.h5")
    again = kclf.load(tmp_path / "vit.h5", check=True)
    ours, theirs = (np.asarray(m(pixels).detach().cpu()) for m in (model, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-6 if dtype == "float32" else 1e-2)


def test_grad_cam_maps_the_patches(tiny_classifier):
    model = tiny_classifier()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype("uint8")
    maps = kclf.grad_cam(model, pixels).maps
    assert maps.shape == (3, 4, 4)
    assert maps.max() <= 1.0


def test_precomputed_features_are_the_vector_itself(tiny_classifier):
    model = tiny_classifier()
    assert model.head.input_shape == (None, 24)
    assert model.head.get_layer("pooling").output.shape == (None, 24)
    assert transformers.EPSILON == 1e-6


def test_rates_decay_by_the_block(tiny_classifier):
    model = tiny_classifier()
    model.unfreeze()
    groups = model.block_groups
    assert len(groups) == 14  # the stem, twelve blocks, the head
    assert groups[-2][-1].name == "norm"
    optimizer = kclf.LayerGroupOptimizer("sgd", groups, kclf.layer_decay(0.75, len(groups)))
    model.compile(optimizer)
    model.fit(np.zeros((2, 32, 32, 3), "uint8"), np.array([0, 1]), verbose=0)
    assert optimizer.learning_rates[0] == pytest.approx(0.01 * 0.75**13, rel=1e-4)
    assert {id(v) for group in groups for layer in group for v in layer.variables} == {
        id(v) for group in model.layer_groups for layer in group for v in layer.variables
    }


def test_blocks_of_a_convnext_and_of_others():
    convnexts = kclf.backbones.split_blocks(convnext("convnextv2", (32, 32, 3)), "ConvNeXtV2Atto")
    assert [len(group) for group in convnexts][:2] == [2, 5]


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")  # of torch's exporter about itself
def test_a_transformer_goes_to_onnx(tiny_classifier, tmp_path):
    pytest.importorskip("onnxscript", reason="onnx is not installed")
    kclf.to_onnx(tiny_classifier(), tmp_path / "vit.onnx")
    assert (tmp_path / "vit.onnx").stat().st_size > 10_000
